"""How many files may the callers of one mount have open?

Each open file of the view is a descriptor of this process, and so is each removed file that somebody still has.
One user who opens many must not keep the others from anything but opening more: opens are refused while enough
descriptors are left for every other verb.
"""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable
from dataclasses import dataclass

# Directories that are kept open at most, and descriptors for what a few verbs need at once.
_MOST_DIRECTORIES = 4096
_SPARE = 128


@dataclass(frozen=True, slots=True)
class Budget:
    """Numbers of descriptors: `directories` may be kept open, and what callers have open lies below `most`.

    The kernel gives out the lowest free number (open(2)), so a number tells how many are in use.
    """

    directories: int
    most: int

    @classmethod
    def of_process(cls) -> Budget:
        """The budget of this process, after its limit was raised as far as it may be: getrlimit(2)."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft < hard:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        directories = min(hard // 2, _MOST_DIRECTORIES)
        return cls(directories, max(hard - directories - _SPARE, hard // 4))

    def has_room(self, fd: int) -> bool:
        """May a descriptor with this number be kept for a caller?"""
        return fd < self.most

    def check(self, fd: int) -> None:
        """ENFILE if it may not."""
        if not self.has_room(fd):
            raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))

    def admitted(self, fd: int) -> int:
        """The descriptor, if it may be kept; else it is closed, and ENFILE raised."""
        return kept(fd, self.check)


def kept(fd: int, check: Callable[[int], None]) -> int:
    """The descriptor, if `check` lets it pass; else it is closed, and what `check` raised is raised."""
    try:
        check(fd)
    except BaseException:
        os.close(fd)
        raise
    return fd
