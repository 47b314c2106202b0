"""The limit on files that the callers of one mount may have open.

Each open file of the view takes a descriptor of this process, and so does each removed file that is still in use.
A user who opens many files must not prevent others from doing anything but opening more: opens are refused while
there are still enough descriptors for every other verb.
"""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable

from overlayfs_demo.linux.failure import failure
from overlayfs_demo.named_tuple import NamedTuple

# The most directories to keep open, and the descriptors reserved for the verbs in progress.
_MOST_DIRECTORIES = 4096
_SPARE = 128


def raise_limit() -> int:
    """Raise this process's soft limit of open files to the hard limit, and return that: getrlimit(2)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


class Budget(NamedTuple):
    """Numbers of descriptors: `directories` may be kept open, and the descriptors of callers are below `most`.

    The kernel hands out the lowest free number (open(2)), so a new descriptor's number tells how many are in use.
    """

    directories: int
    most: int

    @classmethod
    def of_process(cls) -> Budget:
        """Return the budget of this process, after raising its limit."""
        hard = raise_limit()
        directories = min(hard // 2, _MOST_DIRECTORIES)
        return cls(directories, max(hard - directories - _SPARE, hard // 4))

    def has_room(self, fd: int) -> bool:
        """Whether a descriptor with this number may be kept for a caller."""
        return fd < self.most

    def check(self, fd: int) -> None:
        """Raise ENFILE if the descriptor may not be kept."""
        if not self.has_room(fd):
            raise failure(errno.ENFILE)

    def admitted(self, fd: int) -> int:
        """Return the descriptor if it may be kept; else close it and raise ENFILE."""
        return fd if self.has_room(fd) else kept(fd, self.check)


def kept(fd: int, check: Callable[[int], None]) -> int:
    """Return the descriptor if `check` accepts it; else close it and raise the error of `check`."""
    try:
        check(fd)
    except BaseException:
        os.close(fd)
        raise
    return fd
