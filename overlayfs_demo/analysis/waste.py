"""Analysis of where the bytes of an image went.

Every layer ships bytes, and an image still ships what a later layer overwrites or deletes. `analyse` says for each
layer what it added, changed and deleted, and for each file that is no longer visible which layer hid it, and why.
Layers are numbered from 1, the bottom, as `build_layers` names their directories.

The size of each file and symbolic link (`layer_size`) counts once for each inode of a layer, however many names the
inode has there. It is live while any of its names is visible in the view of all layers, so shipped is exactly live plus
wasted, and a layer ships what Docker calls its SIZE.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path

from overlayfs_demo.analysis.accounts import Accounts, Hidden, LayerReport
from overlayfs_demo.analysis.dive_score import DiveScore, reason
from overlayfs_demo.analysis.inventory import Root, opened
from overlayfs_demo.analysis.layer_walk import walk
from overlayfs_demo.analysis.same_data import Duplicate, SameData, same_data
from overlayfs_demo.errors import ImageError
from overlayfs_demo.images.progress import SILENT, Progress
from overlayfs_demo.images.record_file import open_file
from overlayfs_demo.images.tarsplit import file_checksums


@dataclass(frozen=True, slots=True)
class Analysis:
    """What became of an image's bytes.

    `layers` are sorted from the bottom up; `hidden` by path, the newest version first. `ghosts` are the hidden regular
    files whose path is not visible at all in the end, though they can still be extracted from the image. `duplicates`
    are sorted with the costliest first. `dive_score` is dive's efficiency, from 0 to 1: see the module `dive_score`.
    """

    layers: tuple[LayerReport, ...]
    hidden: tuple[Hidden, ...]
    ghosts: tuple[Hidden, ...]
    duplicates: tuple[Duplicate, ...]
    dive_score: float

    @property
    def shipped(self) -> int:
        """The bytes of all layers."""
        return sum(layer.shipped for layer in self.layers)

    @property
    def live(self) -> int:
        """The bytes that are visible."""
        return sum(layer.live for layer in self.layers)

    @property
    def wasted(self) -> int:
        """The bytes that are shipped but not visible."""
        return self.shipped - self.live

    @property
    def dive_reason(self) -> str:
        """One sentence: why `dive_score` differs from the share of bytes that is visible."""
        return reason(self.dive_score, self.live / self.shipped if self.shipped else 1)


def analyse(
    directories: Sequence[Path],
    titles: Sequence[str],
    *,
    duplicates: bool = True,
    recipes: Sequence[Path] = (),
    progress: Progress = SILENT,
) -> Analysis:
    """Analyse an image's layer directories, given from the bottom up, each with its title (its instruction).

    All layers are walked once, side by side. Data is read where one name has the same size in two layers. Unless
    `duplicates` is False, the data of files that may be the same is also read: files of the same size, or, where the
    layers' recipes are given, of the same size and checksum; `progress` gets the bytes of these. Memory does not grow
    with the number of files, but with what is found, with the longest directory, and with the files that have several
    names. Raises ImageError naming the layer and the file that cannot be read, and ValueError unless there are as many
    titles as directories, and as many recipes if there are any.
    """
    if len(titles) != len(directories) or len(recipes) not in (0, len(directories)):
        raise ValueError("each layer needs a title, and a recipe or None")
    with ExitStack() as stack:
        roots = stack.enter_context(opened(directories))
        same = stack.enter_context(same_data()) if duplicates else None
        if same is not None:
            for number, recipe in enumerate(recipes, start=1):
                _know(same, number, recipe)
        accounts, score = Accounts(titles, same), DiveScore()
        with closing(walk(roots)) as places:
            for place in places:
                accounts.visit(place)
                score.visit(place)
        accounts.finish()
        return Analysis(
            accounts.reports(),
            tuple(accounts.hidden),
            tuple(accounts.ghosts),
            same.duplicates(roots, progress) if same is not None else (),
            _full_score(roots, score),
        )


def _know(same: SameData, number: int, recipe: Path) -> None:
    """Hand over a recipe's checksums, if possible: the files of a layer without a sound recipe are read instead."""
    with suppress(OSError, ImageError), open_file(recipe) as file:
        same.know(number, file_checksums(file))


def _full_score(roots: Sequence[Root], score: DiveScore) -> float:
    """Return dive's score. If the count of a layer ends early, a second walk counts what comes before the end."""
    if not score.found_ends:
        return score.score()
    again = DiveScore(score.found_ends)
    with closing(walk(roots)) as places:
        for place in places:
            again.visit(place)
    return again.score()
