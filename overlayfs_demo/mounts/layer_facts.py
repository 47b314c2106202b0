"""The layers of a mounted view, with their sizes and numbers of entries."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from overlayfs_demo.mounts.registry import MountRecord
from overlayfs_demo.named_tuple import NamedTuple
from overlayfs_demo.overlay.layer_size import inode_size
from overlayfs_demo.overlay.whiteout import IMAGE_OPAQUE, IMAGE_WHITEOUT_PREFIX, is_whiteout

UPPER = "upper"
_IMAGE_PREFIX = os.fsdecode(IMAGE_WHITEOUT_PREFIX)
_IMAGE_OPAQUE = os.fsdecode(IMAGE_OPAQUE)


def number_of(label: str) -> str:
    """Return a layer's label without the part in parentheses, such as `layer 3`."""
    return label.partition(" (")[0]


class Count(NamedTuple):
    """The layer's size in bytes (`layer_size`), the number of names without marks, and the number of whiteouts.

    An opaque mark is not a whiteout: it hides what is below a directory, and a whiteout one name.
    """

    size: int
    entries: int
    whiteouts: int


@dataclass(frozen=True, slots=True)
class LayerFacts:
    """One layer as it is shown to a person.

    `label` is its name in events, `title` says what made it ("" if unknown), and `path` is its directory. `count` is
    None until the layer has been walked, and also if it may not be read.
    """

    label: str
    title: str
    path: str
    count: Count | None = None

    @property
    def name(self) -> str:
        """The label without the part in parentheses, such as `layer 3`."""
        return number_of(self.label)


def unwalked(record: MountRecord) -> list[LayerFacts]:
    """Return the layers of a view from the top down, the upper first, with no counts yet."""
    upper = [] if record.upper is None else [LayerFacts(UPPER, "", record.upper)]
    paths = [*record.lowers, *record.data_only]
    titles = [*record.titles, *[""] * (len(paths) - len(record.titles))]
    return upper + [LayerFacts(*layer) for layer in zip(record.labels, titles, paths, strict=True)]


def told(labels: Iterable[str]) -> list[LayerFacts]:
    """Return the layers with these labels, such as `layer 2 (app)`, if nothing else about them is known."""
    return [LayerFacts(label, label.partition(" (")[2].removesuffix(")"), "") for label in labels]


def walked(layer: LayerFacts) -> LayerFacts:
    """Walk the layer, and return it with its count.

    Memory holds one directory, the paths of the directories still to be read, and the inode numbers of files with
    several names, which count once. In a lower the image format's `.wh.` names also count as whiteouts.
    """
    try:
        return replace(layer, count=counted(_below(layer.path), image_marks=layer.label != UPPER))
    except OSError:
        # No count is better than half a count.
        return replace(layer, count=None)


def counted(found: Iterable[tuple[str, os.stat_result]], *, image_marks: bool) -> Count:
    """Count names with their status. `image_marks` says whether `.wh.` names are whiteouts.

    The data of a file with several names counts once.
    """
    size = entries = whiteouts = 0
    linked: set[tuple[int, int]] = set()
    for name, status in found:
        if image_marks and name == _IMAGE_OPAQUE:
            continue
        if is_whiteout(status) or (image_marks and name.startswith(_IMAGE_PREFIX)):
            whiteouts += 1
            continue
        entries += 1
        if (status.st_dev, status.st_ino) in linked:
            continue
        if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
            linked.add((status.st_dev, status.st_ino))
        size += inode_size(status)
    return Count(size, entries, whiteouts)


def _below(root: str) -> Iterator[tuple[str, os.stat_result]]:
    """Return the name and status of everything below a directory. Raises OSError.

    Symbolic links are not followed. Whatever is removed meanwhile is left out.
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
