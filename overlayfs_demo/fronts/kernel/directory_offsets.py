"""Stable offsets for the names of a directory.

readdir(3), telldir(3) and seekdir(3) need an offset that stays valid while names come and go, for as long
as anyone reads the directory. So each name gets a number when it is first seen, and keeps it. A name
that is gone is skipped, and a new one comes last. The kernel then need not open and release directories.
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
    """A listed name and its number."""

    number: int
    listed: Listed


class Numbering(NamedTuple):
    """The names of a directory as of one `snapshot`, in the order of their numbers."""

    snapshot: Snapshot
    entries: Sequence[Numbered]

    def after(self, offset: int) -> Iterator[Numbered]:
        """Return the names after `offset`, which is the number of the last one read (0: none yet)."""
        entries = self.entries
        for index in range(bisect_right(entries, offset, key=_number), len(entries)):
            yield entries[index]


class DirectoryStream:
    """The numbers of one directory's names, shared by all its readers. Safe to use from several threads.

    `current` is the latest numbering, None before the first `refresh`.
    """

    __slots__ = ("_last_directory", "_lock", "_next", "current")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._next = DOT_DOT + 1
        self._last_directory = 0
        self.current: Numbering | None = None

    def refresh(self, take: Callable[[], Snapshot]) -> Numbering:
        """Number the names that the directory holds now, which `take` returns.

        `take` is called with the lock held, because an older snapshot must not follow a newer one: a name missing
        from it would later get a new number, and a reader in the middle of the directory would list it twice.
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
        """Return the name of the first subdirectory, then of the second, and so on; None at the end.

        The count starts again at each `refresh`.
        """
        with self._lock:
            for number, listed in self.current.after(self._last_directory) if self.current else ():
                if listed.kind == stat.S_IFDIR:
                    self._last_directory = number
                    return listed.name
            return None


def _number(entry: Numbered) -> int:
    return entry.number
