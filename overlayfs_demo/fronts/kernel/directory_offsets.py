"""At which offset does each name of a directory stand?

readdir(3), telldir(3) and seekdir(3) need an offset that stays good while names come and go, for as long
as anybody reads the directory. So each name gets a number when it is first seen and keeps it; a name
that is gone is skipped, a new one comes last. The kernel need not open and release directories then.
"""

from __future__ import annotations

import stat
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import NamedTuple

from overlayfs_demo.overlay.listing import Listed, Snapshot

# The numbers of `.` and `..`; names follow.
DOT, DOT_DOT = 1, 2


class Numbered(NamedTuple):
    """A name as it was listed, and its number."""

    number: int
    listed: Listed


class Numbering(NamedTuple):
    """The names of a directory as of one `snapshot`, in the order of their numbers."""

    snapshot: Snapshot
    entries: Sequence[Numbered]

    def after(self, offset: int) -> Iterator[Numbered]:
        """The names behind `offset`, which is the number of the last one read (0: none yet)."""
        entries = self.entries
        for index in range(bisect_right(entries, offset, key=_number), len(entries)):
            yield entries[index]


class DirectoryStream:
    """The numbers of one directory's names, for all who read it. Safe to use from several threads.

    `current` is the latest numbering, None before the first `refresh`.
    """

    __slots__ = ("_last_directory", "_lock", "_next", "current")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._next = DOT_DOT + 1
        self._last_directory = 0
        self.current: Numbering | None = None

    def refresh(self, take: Callable[[], Snapshot]) -> Numbering:
        """Number the names that the directory holds now, which `take` tells.

        It is called with the lock held, for an older snapshot must not come after a newer one: a name that is
        missing from it would be numbered anew later, and be listed twice by whoever is under way.
        """
        with self._lock:
            snapshot = take()
            names = snapshot.names
            before = self.current.entries if self.current else ()
            kept = [Numbered(number, names[old.name]) for number, old in before if old.name in names]
            known = {entry.listed.name for entry in kept}
            fresh = [listed for name, listed in names.items() if name not in known] if known else names.values()
            kept.extend(map(Numbered, count(self._next), fresh))
            self._next += len(fresh)
            self._last_directory = 0
            self.current = Numbering(snapshot, kept)
            return self.current

    def next_directory(self) -> bytes | None:
        """The name of the first subdirectory, at the next call that of the second, and so on; None at the end."""
        with self._lock:
            for number, listed in self.current.after(self._last_directory) if self.current else ():
                if listed.kind == stat.S_IFDIR:
                    self._last_directory = number
                    return listed.name
            return None


def _number(entry: Numbered) -> int:
    return entry.number
