"""Who reads and writes the data of each open file: the kernel alone, or this process for the kernel's cache.

The kernel (fs/fuse/iomode.c) has one rule: all opens of a file at a time are of one kind. If they pass through, all
use the same real file. An open of the other kind fails with EIO. So the first open of a file decides, until the last
one is released. The kernel is done with an open file before it sends RELEASE, so what is noted here never ends early.

    idle --open--> cached(n)  --release of the last--> idle
    idle --open--> passing(n) --release of the last--> idle
"""

from __future__ import annotations

import errno
import logging
import threading
from collections.abc import Iterable
from typing import Protocol

_log = logging.getLogger(__name__)

# With these, no file of this mount will ever pass: no privilege; filesystems stacked too high; a kernel without it.
_NEVER = (errno.EPERM, errno.ELOOP, errno.ENOTTY, errno.EOPNOTSUPP)


class Backings(Protocol):
    """Gives real files to the kernel, see `linux.passthrough`."""

    def give(self, fd: int) -> int:
        """Give the file open as `fd` and return its id. Raises OSError."""

    def take_back(self, backing: int) -> None:
        """Forget an id. Raises OSError."""


class _Passing:
    """A file whose opens pass through: the id of the real file, and the number of opens."""

    __slots__ = ("backing", "opens")

    def __init__(self, backing: int) -> None:
        self.backing = backing
        self.opens = 1


class IoModes:
    """The modes of the files that are open in one mount, by node id. Safe to use from several threads."""

    __slots__ = ("_backings", "_cached", "_gives", "_lock", "_passing")

    def __init__(self) -> None:
        """Set up the modes. Until `allow` is called, no file passes."""
        self._backings: Backings | None = None
        self._gives = False
        self._lock = threading.Lock()
        self._cached: dict[int, int] = {}
        self._passing: dict[int, _Passing] = {}

    def allow(self, backings: Backings) -> None:
        """Let files pass from now on, because the kernel has agreed to it."""
        self._backings = backings
        self._gives = True

    def resume(self, opens: Iterable[tuple[int, int | None]]) -> None:
        """Note the opens of a process that served this mount before: node ids, and what `open` returned for each."""
        with self._lock:
            for nodeid, backing in opens:
                if backing is None:
                    self._cached[nodeid] = self._cached.get(nodeid, 0) + 1
                elif nodeid in self._passing:
                    self._passing[nodeid].opens += 1
                else:
                    self._passing[nodeid] = _Passing(backing)

    def open(self, nodeid: int, fd: int, *, may_pass: bool) -> int | None:
        """Note an open of a node's file, which is open as `fd`, and return the id of the file to pass through to.

        None: the open is cached. `may_pass` counts only if the file is not open yet.
        """
        with self._lock:
            passing = self._passing.get(nodeid)
            if passing is not None:
                passing.opens += 1
                return passing.backing
            if self._gives and nodeid not in self._cached and may_pass:
                backing = self._give(fd)
                if backing is not None:
                    self._passing[nodeid] = _Passing(backing)
                    return backing
            self._cached[nodeid] = self._cached.get(nodeid, 0) + 1
            return None

    def _give(self, fd: int) -> int | None:
        assert self._backings is not None
        try:
            return self._backings.give(fd)
        except OSError as error:
            if error.errno in _NEVER:
                self._gives = False
            else:
                _log.warning("the kernel cannot use a file itself: %s", error.strerror)
            return None

    def release(self, nodeid: int, *, passed: bool) -> None:
        """Note that an open of a node's file was released. `passed`: `open` returned an id for it."""
        with self._lock:
            if not passed:
                self._cached[nodeid] -= 1
                if not self._cached[nodeid]:
                    del self._cached[nodeid]
                return
            passing = self._passing[nodeid]
            passing.opens -= 1
            if not passing.opens:
                del self._passing[nodeid]
                self._take_back(passing.backing)

    def _take_back(self, backing: int) -> None:
        assert self._backings is not None
        try:
            self._backings.take_back(backing)
        except OSError as error:
            _log.warning("cannot take a file back from the kernel: %s", error.strerror)
