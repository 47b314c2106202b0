"""How large is each layer of a mounted view, and how much is in it?"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from overlayfs_demo.mounts.registry import Record
from overlayfs_demo.overlay.whiteout import IMAGE_WHITEOUT_PREFIX, is_whiteout

UPPER = "upper"
_IMAGE_PREFIX = os.fsdecode(IMAGE_WHITEOUT_PREFIX)


class Count(NamedTuple):
    """The bytes of files' data, the number of names but for whiteouts, and that of whiteouts."""

    size: int
    entries: int
    whiteouts: int


@dataclass(frozen=True, slots=True)
class LayerFacts:
    """One layer as a person looks at it.

    `label` is how events name it, `title` what made it ("" if unknown), `path` its directory. `count` is None as long
    as it was not walked, and if it may not be read.
    """

    label: str
    title: str
    path: str
    count: Count | None = None

    @property
    def name(self) -> str:
        """The label without what is in its parentheses: `layer 3`."""
        return self.label.partition(" (")[0]


def unwalked(record: Record) -> list[LayerFacts]:
    """The layers of a view from the top down, the upper first, without what only a walk can tell."""
    upper = [] if record.upper is None else [LayerFacts(UPPER, "", record.upper)]
    paths = [*record.lowers, *record.data_only]
    titles = [*record.titles, *[""] * (len(paths) - len(record.titles))]
    return upper + [LayerFacts(*one) for one in zip(record.labels, titles, paths, strict=True)]


def told(labels: Iterable[str]) -> list[LayerFacts]:
    """Layers of which only the labels are known, such as `layer 2 (app)`."""
    return [LayerFacts(label, label.partition(" (")[2].removesuffix(")"), "") for label in labels]


def walked(layer: LayerFacts) -> LayerFacts:
    """The same layer with what a walk through it tells.

    In memory are one directory, the paths of those still to be read, and the numbers of files with several names,
    which count once. In a lower the image format's `.wh.` names count as whiteouts, too.
    """
    try:
        return replace(layer, count=counted(_below(layer.path), image_marks=layer.label != UPPER))
    except OSError:
        # To say that nobody knows is better than to tell half of it.
        return replace(layer, count=None)


def counted(found: Iterable[tuple[str, os.stat_result]], *, image_marks: bool) -> Count:
    """Count names with their status; `image_marks` says that `.wh.` names are whiteouts. A file of several names
    counts its data once."""
    size = entries = whiteouts = 0
    linked: set[tuple[int, int]] = set()
    for name, status in found:
        if is_whiteout(status) or (image_marks and name.startswith(_IMAGE_PREFIX)):
            whiteouts += 1
            continue
        entries += 1
        if not stat.S_ISREG(status.st_mode) or (status.st_dev, status.st_ino) in linked:
            continue
        if status.st_nlink > 1:
            linked.add((status.st_dev, status.st_ino))
        size += status.st_size
    return Count(size, entries, whiteouts)


def _below(root: str) -> Iterator[tuple[str, os.stat_result]]:
    """The name and status of all that is below a directory, and does not go meanwhile. Raises OSError.

    Symbolic links are not followed.
    """
    waiting = [root]
    while waiting:
        path = waiting.pop()
        try:
            with os.scandir(path) as listing:
                entries = list(listing)
        except FileNotFoundError:
            if path == root:
                raise
            continue
        for entry in entries:
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            if stat.S_ISDIR(status.st_mode):
                waiting.append(entry.path)
            yield entry.name, status
