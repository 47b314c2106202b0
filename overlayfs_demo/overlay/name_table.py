"""A table of the names in the lowers of one merged directory: which of them have an entry for a name?

It holds what directories list, and no rule of the union: a whiteout is an entry like any other, and what it means is
decided when somebody asks for the name.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence

from overlayfs_demo.overlay.layer import LayerDir
from overlayfs_demo.overlay.listing import Listed, Names
from overlayfs_demo.overlay.whiteout import IMAGE_WHITEOUT_PREFIX

# The positions of the lowers that have an entry, in ascending order, or the only one.
_Positions = int | tuple[int, ...]


class NameTable:
    """What the `lowers` of one directory (topmost first) listed when it was made.

    `listed` are the names that they show, merged; the caller must not change it. `size` is the number of entries in
    the lowers. `is_used` is set by its users, see `lower_names`.
    """

    __slots__ = ("__weakref__", "_positions", "is_used", "listed", "lowers", "size")

    def __init__(self, lowers: Sequence[LayerDir], at_most: int, most_entries: int) -> None:
        """Read the lowers. Raises OSError; TooManyNamesError if there are more names or entries than this."""
        positions: dict[bytes, int | list[int]] = {}
        names = Names(at_most, merged=True)
        left = most_entries
        for position, lower in enumerate(lowers):
            entries = names.read(lower, most_entries=left)
            left -= len(entries)
            if lower.layer.image_dialect:
                entries += [entry[len(IMAGE_WHITEOUT_PREFIX) :] for entry in entries if _is_mark(entry)]
            for name in entries:
                _add(positions, name, position)
        shared: dict[tuple[int, ...], tuple[int, ...]] = {}
        self._positions: dict[bytes, _Positions] = {
            name: found if isinstance(found, int) else shared.setdefault(key := tuple(found), key)
            for name, found in positions.items()
        }
        self.lowers = lowers
        self.listed: dict[bytes, Listed] = names.listed
        self.size = most_entries - left
        self.is_used = False

    def asked(self, name: bytes, start: int, before: int) -> Iterator[int]:
        """Yield the positions, from `start` on, of the sources that may have something to say about the name.

        The sources are `before` others, then the lowers. A lower has something to say if it has an entry for the name:
        an object of that name, or its mark in the image format.
        """
        yield from range(start, before)
        positions = self._positions.get(name, ())
        if isinstance(positions, int):
            positions = (positions,)
        for index in range(bisect_left(positions, start - before), len(positions)):
            yield before + positions[index]


def _is_mark(entry: bytes) -> bool:
    return entry.startswith(IMAGE_WHITEOUT_PREFIX)


def _add(positions: dict[bytes, int | list[int]], name: bytes, position: int) -> None:
    before = positions.setdefault(name, position)
    if isinstance(before, list):
        if before[-1] != position:
            before.append(position)
    elif before != position:
        positions[name] = [before, position]
