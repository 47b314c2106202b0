"""Stable offsets for the names of a directory.

readdir(3), telldir(3) and seekdir(3) need an offset that stays valid while names come and go, for as long
as anyone reads the directory. So each name gets a number when it is first seen, and keeps it. A name
that is gone is skipped, and a new one comes last. The kernel then need not open and release directories.
"""

from __future__ import annotations

import stat
import struct
import threading
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count

from overlayfs_demo.named_tuple import NamedTuple
from overlayfs_demo.overlay.listing import Listed, Snapshot

# The number of names in a packed stream.
_COUNT = struct.Struct("=Q")
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

    `current` is the latest numbering, None before the first `refresh` and after `rest`.
    """

    __slots__ = ("_directories", "_lock", "_names", "_next", "_numbers", "current")

    def __init__(self, packed: bytes | None = None) -> None:
        """Begin with no names, or where another stream was when it was `packed`."""
        self._lock = threading.Lock()
        # What `rest` keeps: the names and their numbers, in few bytes, because there may be millions. The names
        # themselves are those of the nodes.
        self._names: list[bytes] = []
        self._numbers = array("Q")
        if packed:
            (count_,) = _COUNT.unpack_from(packed)
            end = _COUNT.size + count_ * self._numbers.itemsize
            self._numbers.frombytes(packed[_COUNT.size : end])
            self._names = packed[end:].split(b"/")
        self._next = max(self._numbers, default=DOT_DOT) + 1
        # The subdirectories not yet returned, the next one last.
        self._directories: list[bytes] = []
        self.current: Numbering | None = None

    def refresh(self, take: Callable[[], Snapshot]) -> Numbering:
        """Number the names that the directory holds now, which `take` returns.

        `take` is called with the lock held, because an older snapshot must not follow a newer one: a name missing
        from it would later get a new number, and a reader in the middle of the directory would list it twice.
        """
        with self._lock:
            snapshot = take()
            names = snapshot.names
            kept = [Numbered(number, names[name]) for number, name in self._before() if name in names]
            known = {entry.listed.name for entry in kept}
            fresh = [listed for name, listed in names.items() if name not in known] if known else names.values()
            kept.extend(map(Numbered, count(self._next), fresh))
            self._next += len(fresh)
            self._directories = [entry.listed.name for entry in reversed(kept) if entry.listed.kind == stat.S_IFDIR]
            self.current = Numbering(snapshot, kept)
            return self.current

    def rest(self) -> None:
        """Keep only the names and their numbers, because a reader has come to the end.

        Another one who is in the middle reads the directory again.
        """
        with self._lock:
            if self.current is not None:
                self._names = [listed.name for _, listed in self.current.entries]
                self._numbers = array("Q", (number for number, _ in self.current.entries))
                self.current = None

    def packed(self) -> bytes:
        """Return the names and their numbers for `__init__`; b"" if there are none."""
        with self._lock:
            before = list(self._before())
        numbers = array("Q", (number for number, _ in before))
        # No name has a slash.
        return _COUNT.pack(len(before)) + numbers.tobytes() + b"/".join(name for _, name in before) if before else b""

    def _before(self) -> Iterable[tuple[int, bytes]]:
        """Return the numbers and names as of the latest numbering."""
        if self.current is not None:
            return ((number, listed.name) for number, listed in self.current.entries)
        return zip(self._numbers, self._names, strict=True)

    def next_directory(self) -> bytes | None:
        """Return the name of the first subdirectory, then of the second, and so on; None at the end.

        The count starts again at each `refresh`.
        """
        with self._lock:
            return self._directories.pop() if self._directories else None


def _number(entry: Numbered) -> int:
    return entry.number
