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


class NameTable:
    """What the `lowers` of one directory (topmost first) listed when it was made.

    `listed` are the names that they show, merged; the caller must not change it. `size` is the number of entries in
    the lowers. `is_used` is set by its users, see `lower_names`. `_several` has the positions of all lowers with an
    entry for a name, in ascending order, and `_only` the position of the only one (of any one, if there are several).
    """

    __slots__ = ("__weakref__", "_only", "_several", "is_used", "listed", "lowers", "size")

    def __init__(self, lowers: Sequence[LayerDir], at_most: int, most_entries: int) -> None:
        """Read the lowers. Raises OSError; TooManyNamesError if there are more names or entries than this."""
        names = Names(at_most, merged=True)
        only: dict[bytes, int] = {}
        several: dict[bytes, list[int]] = {}
        left = most_entries
        for position, lower in enumerate(lowers):
            entries = names.read(lower, most_entries=left)
            left -= len(entries)
            if lower.layer.image_dialect:
                marks = [entry for entry in entries if entry.startswith(IMAGE_WHITEOUT_PREFIX)]
                entries += [mark[len(IMAGE_WHITEOUT_PREFIX) :] for mark in marks]
            found = dict.fromkeys(entries, position)
            for name in only.keys() & found.keys():
                several.setdefault(name, [only[name]]).append(position)
            only.update(found)
        self._only = only
        shared: dict[tuple[int, ...], tuple[int, ...]] = {}
        self._several = {name: shared.setdefault(key := tuple(places), key) for name, places in several.items()}
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
        positions = self._several.get(name)
        if positions is None:
            positions = (self._only[name],) if name in self._only else ()
        for index in range(bisect_left(positions, start - before), len(positions)):
            yield before + positions[index]
