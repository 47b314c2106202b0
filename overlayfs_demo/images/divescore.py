"""How efficient would dive call this image?

dive (github.com/wagoodman/dive, dive/filetree/efficiency.go) is what people measure images with, so its
number stands beside ours, computed by its own rule. Over all layers, each path that is a leaf of a layer
(a file, a link, a directory with nothing in it, a whiteout) has a least size and a sum of sizes; the score
is the sum of all least sizes over the sum of all sums. A whiteout of a directory has the size of all that is
below it just then; a whiteout of anything else has size 0.

Where that is not what the image wastes:
- `rm -rf DIR` in a later layer costs nothing: the files in DIR never meet a whiteout of their own, and the
  whiteout of DIR has the same least size and sum, which even brings the score nearer to 1.
- Opaque marks are not read at all: what they hide counts as live, also for later whiteouts.
- A live copy counts as waste when it is larger than the one it replaces: a file of 1 byte overwritten by one
  of 1 MB gives a score near 0, though 1 byte is wasted.
- A whiteout of something that no layer below shows ends the count of its layer: the rest is not seen.
- A directory that a file replaces keeps what was below it, and has it again when it is a directory again.

dive reads tars, we read what was unpacked from them. So a hard link is taken for size 0 and the first name
of its file, in order, for the file, as archivers write them; a directory is taken for listed; and a
whiteout that hid nothing, which `unpack` leaves out, does not end the count.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from overlayfs_demo.images.survey import Thing
from overlayfs_demo.images.tree import prefixes
from overlayfs_demo.overlay.merge import Says
from overlayfs_demo.overlay.whiteout import IMAGE_WHITEOUT_PREFIX


class _Stacked:
    """A node of dive's stacked tree: a file that replaces a directory keeps its children (file_tree.go, AddPath)."""

    __slots__ = ("children", "directory", "size")

    def __init__(self) -> None:
        self.children: dict[bytes, _Stacked] = {}
        self.directory = True
        self.size = 0

    def find(self, names: Iterable[bytes]) -> _Stacked | None:
        node: _Stacked | None = self
        for name in names:
            node = node.children.get(name) if node is not None else None
        return node

    def put(self, names: Sequence[bytes], directory: bool, size: int) -> None:
        node = self
        for name in names:
            node = node.children.setdefault(name, _Stacked())
        node.directory, node.size = directory, size

    def remove(self, names: Sequence[bytes]) -> None:
        above = self.find(names[:-1])
        if above is not None:
            above.children.pop(names[-1], None)

    def total(self) -> int:
        found, pending = 0, [self]
        while pending:
            node = pending.pop()
            found += node.size
            pending.extend(node.children.values())
        return found


def dive_score(layers: Sequence[Mapping[bytes, Thing]]) -> float:
    """dive's efficiency score, from 0 to 1, of what the layers say, from the bottom to the top."""
    stacked = _Stacked()
    least: dict[bytes, int] = {}
    total = 0
    for things in layers:
        sizes = _sizes(things)
        for path in _leaves(things):
            size = sizes.get(path, 0)
            if things[path].says is Says.WHITEOUT:
                hidden = stacked.find(path.split(b"/"))
                if hidden is None:
                    break
                size = hidden.total() if hidden.directory else 0
            total += size
            least[path] = min(size, least.get(path, size))
        for path, thing in things.items():
            if thing.says is Says.WHITEOUT:
                stacked.remove(path.split(b"/"))
            else:
                stacked.put(path.split(b"/"), thing.directory, sizes.get(path, 0))
    return sum(least.values()) / total if total else 1.0


def _sizes(things: Mapping[bytes, Thing]) -> dict[bytes, int]:
    """The size of each regular file's first name; a tar has the others as links, without size."""
    first: dict[int, bytes] = {}
    for path in sorted((path for path, thing in things.items() if thing.regular), key=lambda path: path.split(b"/")):
        first.setdefault(things[path].inode, path)
    return {path: things[path].size for path in first.values()}


def _leaves(things: Mapping[bytes, Thing]) -> Iterator[bytes]:
    """The leaves of a layer's tree in dive's order: by name, and a whiteout's name has the prefix of the tar's."""

    def order(path: bytes) -> list[bytes]:
        names = path.split(b"/")
        if things[path].says is Says.WHITEOUT:
            names[-1] = IMAGE_WHITEOUT_PREFIX + names[-1]
        return names

    parents = {parent for path in things for parent in prefixes(path.rpartition(b"/")[0])}
    return iter(sorted(things.keys() - parents, key=order))
