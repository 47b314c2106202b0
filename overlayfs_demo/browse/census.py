"""The sizes of directories with everything below them, and all names, as of one layer.

It is taken in slices, so that the directories that a person opens meanwhile do not wait for it.
"""

from __future__ import annotations

import fnmatch
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from overlayfs_demo.browse.depths import Depths, Entry
from overlayfs_demo.errors import printable
from overlayfs_demo.images.upper_diff import Kind

# How many names are kept for the filter, and how many it shows.
MOST_NAMES = 500_000
MOST_FOUND = 2_000


@dataclass(slots=True)
class Sums:
    """The bytes below a directory: `live` as of the layer, `own` those that the layer itself holds.

    They count as Docker's SIZE does: everything except directories, a symbolic link with the length of its target, a
    file with several names once, at the first of them that is found.
    """

    live: int = 0
    own: int = 0


@dataclass(frozen=True, slots=True)
class Found:
    """The paths that a filter matches; `cut` says that there are more."""

    paths: tuple[bytes, ...]
    cut: bool


@dataclass(slots=True)
class Census:
    """The sums of the directories of one layer's view, by absolute path, once `is_done`.

    Until then, a sum may be missing or still grow. `kinds` counts what the layer adds, changes and deletes.
    `unreadable` is the number of directories that could not be read, `seen` that of the names that were read.
    """

    depths: Depths
    place: int
    sums: dict[bytes, Sums] = field(default_factory=dict)
    kinds: dict[Kind, int] = field(default_factory=lambda: dict.fromkeys(Kind, 0))
    unreadable: int = 0
    seen: int = 0
    _names: list[tuple[bytes, bool]] = field(default_factory=list)
    _waiting: list[tuple[bytes, bytes]] = field(default_factory=lambda: [(b"/", b"")])
    _linked: set[tuple[int, bool]] = field(default_factory=set)

    @property
    def is_done(self) -> bool:
        """Whether everything was counted."""
        return not self._waiting

    @property
    def total(self) -> int:
        """The bytes of the whole view."""
        return self.sums[b"/"].live if b"/" in self.sums else 0

    def advance(self, seconds: float) -> None:
        """Count for about so long."""
        until = time.monotonic() + seconds
        while self._waiting and time.monotonic() < until:
            self._count(*self._waiting.pop())

    def find(self, words: str, *, only_changes: bool) -> Found:
        """Return the paths that a filter matches, ignoring case: a part of the name, or a pattern with `*` or `?`.

        With a `/` in it, the filter is about the whole path.
        """
        wanted = words.casefold()
        is_pattern = any(char in wanted for char in "*?")
        pattern = _literal(wanted) if is_pattern else f"*{_literal(wanted)}*"
        found = []
        for path, changed in self._names:
            if only_changes and not changed:
                continue
            text = printable(path if "/" in wanted else path.rpartition(b"/")[2]).casefold()
            if fnmatch.fnmatchcase(text, pattern):
                found.append(path)
                if len(found) > MOST_FOUND:
                    return Found(tuple(found[:MOST_FOUND]), cut=True)
        return Found(tuple(found), cut=len(self._names) >= MOST_NAMES)

    def _count(self, path: bytes, deleted_at: bytes) -> None:
        """Count one directory; `deleted_at` is the highest one on the way that the layer deletes, b"" if none."""
        try:
            entries = self.depths.listing(self.place, path)
        except OSError:
            # The tree says what is wrong when the directory is opened.
            self.unreadable += 1
            entries = ()
        here = Sums()
        for entry in entries:
            below = joined(path, entry.name)
            self._enter(below, entry, deleted_at)
            # What is deleted counts only in a directory that is deleted as a whole.
            if entry.is_deleted == bool(deleted_at):
                self._add(here, entry)
        for above in _upwards(path, deleted_at or b"/"):
            total = self.sums.setdefault(above, Sums())
            total.live += here.live
            total.own += here.own

    def _enter(self, path: bytes, entry: Entry, deleted_at: bytes) -> None:
        if entry.kind is not None:
            self.kinds[entry.kind] += 1
        self.seen += 1
        if len(self._names) < MOST_NAMES:
            self._names.append((path, entry.kind is not None))
        if entry.is_directory:
            self._waiting.append((path, deleted_at or (path if entry.is_deleted else b"")))

    def _add(self, sums: Sums, entry: Entry) -> None:
        key = (entry.inode, entry.is_deleted)
        if entry.inode and key in self._linked:
            return
        if entry.inode:
            self._linked.add(key)
        sums.live += entry.size
        sums.own += entry.size if entry.own else 0


def joined(directory: bytes, name: bytes) -> bytes:
    """Return the path of a name in a directory."""
    return directory.rstrip(b"/") + b"/" + name


def _upwards(path: bytes, last: bytes) -> Iterator[bytes]:
    """Yield a path and the directories above it, up to and including `last`."""
    while path != last:
        yield path
        path = path.rpartition(b"/")[0] or b"/"
    yield last


def _literal(words: str) -> str:
    """Escape what fnmatch takes for a pattern."""
    return words.replace("[", "[[]")
