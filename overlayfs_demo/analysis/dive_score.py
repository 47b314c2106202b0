"""The efficiency that dive would give an image.

People measure images with dive (github.com/wagoodman/dive, dive/filetree/efficiency.go), so its number stands beside
ours, computed by its own rule. Over all layers, each path that is a leaf of a layer (a file, a link, an empty
directory, a whiteout) has a minimum size and a sum of sizes. The score is the total of the minimum sizes divided by the
total of the sums. A whiteout of a directory has the size of everything below the directory at that moment; a whiteout
of anything else has size 0.

The score differs from what the image wastes in these cases:
- `rm -rf DIR` in a later layer costs nothing: the files in DIR never meet a whiteout of their own, and the
  whiteout of DIR has the same minimum size and sum, which even brings the score nearer to 1.
- Opaque marks are not read at all: what they hide counts as live, even for later whiteouts.
- A live copy counts as waste when it is larger than the one it replaces: a 1-byte file overwritten by a
  1 MB file gives a score near 0, although only 1 byte is wasted.
- A whiteout of something that no layer below shows ends the count of its layer: the rest is not counted.
- A directory that a file replaces keeps what was below it, and has it back when it becomes a directory again.

dive reads tars; we read what was unpacked from them. So we count the first name of a file, in sort order, as the file
and its other names as hard links of size 0, as archivers write them. We assume that the tar lists every directory. A
whiteout that hid nothing does not end the count, because `unpack` leaves it out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from overlayfs_demo.analysis.inventory import Thing
from overlayfs_demo.analysis.layer_walk import Place
from overlayfs_demo.overlay.merge import Says
from overlayfs_demo.overlay.whiteout import IMAGE_WHITEOUT_PREFIX

# A score that differs by less from the share of visible bytes is the same for a reader.
_ABOUT = 0.005

# The path at which the count of a layer ends, as the list of names that dive sorts by.
End = list[bytes]


@dataclass(slots=True)
class _Directory:
    """A directory on the path to the current place.

    `sizes` holds the place's own sizes, by layer; `deleted` the layers with a whiteout of it or of a directory above
    it; `growth` the bytes that each layer adds below it in dive's stacked tree.
    """

    place: Place
    sizes: Mapping[int, int]
    deleted: frozenset[int]
    growth: Counter[int] = field(default_factory=Counter)


def reason(score: float, seen: float) -> str:
    """Return in one sentence why dive's score differs from the share of bytes that is seen; both are from 0 to 1."""
    if score > seen + _ABOUT:
        return (
            "dive is kinder than the share of visible bytes, because it charges only for a path that a later layer has "
            "again or deletes by its own name: a whole directory is removed for nothing."
        )
    if score < seen - _ABOUT:
        return (
            "dive is stricter than the share of visible bytes, because of several copies of a path it takes the "
            "smallest for needed and charges for all others, even for the one that is visible."
        )
    return "dive agrees with the share of visible bytes: it charges for the copies that later layers hide."


class DiveScore:
    """dive's count. Call `visit` for every place of a walk; it keeps only the directories on the current path.

    `ends` says where the count of a layer ends; it is the `found_ends` of an earlier walk. The second walk is needed
    because a walk does not have dive's order: when it finds an end, it has already counted places that come after it.
    """

    def __init__(self, ends: Mapping[int, End] | None = None) -> None:
        self._ends = ends or {}
        # The first whiteout of nothing in each layer.
        self.found_ends: dict[int, End] = {}
        self._least = 0
        self._total = 0
        self._way: list[_Directory] = []
        self._growth: Counter[int] = Counter()
        # Files with several names whose first name has been visited, keyed by layer and inode.
        self._linked: set[tuple[int, int]] = set()

    def visit(self, place: Place) -> None:
        """Count what the layers have at this place."""
        if len(self._way) >= place.depth:
            self._leave(place.depth)
        above, growth = (self._way[-1].deleted, self._way[-1].growth) if self._way else (frozenset(), self._growth)
        if len(place.things) == 1 and not above and not self._ends:
            [(number, thing)] = place.things.items()
            if thing.says is Says.FILE:
                # The usual case is handled first and quickly: one layer, nothing to compare.
                size = self._size(number, thing)
                self._least += size
                self._total += size
                growth[number] += size
                return
        sizes = {number: self._size(number, thing) for number, thing in place.things.items()}
        if any(thing.directory for thing in place.things.values()):
            whiteouts = {number for number, thing in place.things.items() if thing.says is Says.WHITEOUT}
            self._way.append(_Directory(place, sizes, above | whiteouts))
        else:
            self._count(place, sizes, above, growth)

    def score(self) -> float:
        """Return the score of all visited places, from 0 to 1."""
        self._leave(1)
        return self._least / self._total if self._total else 1.0

    def _leave(self, depth: int) -> None:
        """Count and drop the directories that do not contain a place of this depth."""
        while len(self._way) >= depth:
            left = self._way.pop()
            above = self._way[-1] if self._way else None
            self._count(left.place, left.sizes, above.deleted if above else frozenset(), left.growth)
            (above.growth if above else self._growth).update(left.growth)

    def _size(self, number: int, thing: Thing) -> int:
        """Return a file's size at its first name, and 0 at its other names and for a link: a tar has none there."""
        if not thing.regular:
            return 0
        if thing.links > 1:
            key = (number, thing.inode)
            if key in self._linked:
                return 0
            self._linked.add(key)
        return thing.size

    def _count(self, place: Place, sizes: Mapping[int, int], above: frozenset[int], growth: Counter[int]) -> None:
        """Count one path, and add its own size to `growth`, which already has everything below it."""
        there, directory, size = False, False, 0
        counted = []
        for number in sorted(place.things.keys() | above) if above else place.things:
            thing = place.things.get(number)
            before, deleted = size, thing is None or thing.says is Says.WHITEOUT
            if thing is None or deleted:
                size = 0
                if thing is not None and not there:
                    self._end(number, place)
                elif thing is not None and self._counts(number, place):
                    counted.append(_until(number, growth) if directory else 0)
            else:
                size, directory = sizes[number], thing.directory
                if number not in place.filled and self._counts(number, place):
                    counted.append(size)
            there = not deleted
            growth[number] += size - before
        self._total += sum(counted)
        self._least += min(counted, default=0)

    def _counts(self, number: int, place: Place) -> bool:
        return number not in self._ends or _names(number, place) < self._ends[number]

    def _end(self, number: int, place: Place) -> None:
        names = _names(number, place)
        self.found_ends[number] = min(names, self.found_ends.get(number, names))


def _until(number: int, growth: Mapping[int, int]) -> int:
    """Return the bytes that the layers below this one have."""
    return sum(change for layer, change in growth.items() if layer < number)


def _names(number: int, place: Place) -> End:
    """Return the names that dive sorts by: a whiteout's name has the prefix that it has in a tar."""
    names = place.path.split(b"/")
    if place.things[number].says is Says.WHITEOUT:
        names[-1] = IMAGE_WHITEOUT_PREFIX + names[-1]
    return names
