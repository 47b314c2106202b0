"""At which offset does each name of a directory stand?

readdir(3), telldir(3) and seekdir(3) need an offset that stays good while names come and go, for as long
as anybody reads the directory. So each name gets a number when it is first seen and keeps it; a name
that is gone is skipped, a new one comes last. The kernel need not open and release directories then.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import NamedTuple

from overlayfs_demo.overlay.listing import Listed, Snapshot

# The numbers of `.` and `..`; names follow.
DOT, DOT_DOT = 1, 2


class Numbered(NamedTuple):
    """A name, its number, and how it was listed."""

    number: int
    name: bytes
    listed: Listed


class DirectoryStream:
    """The names of one directory in the order of their numbers."""

    __slots__ = ("_entries", "_next", "snapshot")

    def __init__(self) -> None:
        self.snapshot: Snapshot | None = None
        self._entries: list[Numbered] = []
        self._next = DOT_DOT + 1

    def refresh(self, snapshot: Snapshot) -> None:
        """The directory holds the names of `snapshot` now."""
        self.snapshot = snapshot
        names = snapshot.names
        kept = [Numbered(number, name, names[name]) for number, name, _ in self._entries if name in names]
        known = {entry.name for entry in kept}
        fresh = (item for item in names.items() if item[0] not in known) if known else names.items()
        start = len(kept)
        kept.extend(Numbered(number, name, listed) for number, (name, listed) in enumerate(fresh, self._next))
        self._next += len(kept) - start
        self._entries = kept

    def after(self, offset: int) -> Iterator[Numbered]:
        """The names behind `offset`, which is the number of the last one read (0: none yet)."""
        entries = self._entries
        for index in range(bisect_right(entries, offset, key=_number), len(entries)):
            yield entries[index]


def _number(entry: Numbered) -> int:
    return entry.number
