"""What is every front given, and what does it promise?

A front shows an `Overlay` at a mount point. It decodes a request, calls one verb of the engine, and
encodes the answer: no rule of the union lives here.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from overlayfs_demo.linux import syscalls
from overlayfs_demo.linux.mount_flags import MOUNT_FLAGS
from overlayfs_demo.overlay.engine import Overlay

FILESYSTEM_TYPE = "fuse.overlayfs-demo"
SUBTYPE = "overlayfs-demo"

# The flags that libfuse and fusermount3 are told, by mount(8)'s words (libfuse, lib/mount.c and util/fusermount.c).
_LIBFUSE_WORDS = {"ro", "nosuid", "nodev", "noexec", "noatime", "sync", "dirsync"}
LIBFUSE_FLAGS = tuple(flag for flag in MOUNT_FLAGS if flag.word in _LIBFUSE_WORDS)

# Linux clock 5, CLOCK_REALTIME_COARSE: the tick that file times are taken from. Python does not name it.
_COARSE = 5
# With these flags of mount(2) no access time changes.
NO_READING_NOTED = syscalls.MS_NOATIME | syscalls.MS_RDONLY
# After so long an access time is changed again.
_DAY_NS = 24 * 60 * 60 * 1_000_000_000


@dataclass(frozen=True, slots=True)
class View:
    """An overlay and where to show it.

    `source` is what mount(8) lists as the device. `flags` are mount(2)'s MS_* flags. `timeout` is for how
    many seconds the kernel may trust names and attributes without asking again; None lets the front choose.
    `allow_other` lets all users in, not just the one who mounts. `asked` counts the requests by their names, such
    as `lookup`. Always: to add one costs no more than to find out whether anybody wants to know. Threads add
    without a lock, so a request may be missed now and then.
    """

    overlay: Overlay
    mountpoint: bytes
    source: str = SUBTYPE
    flags: int = 0
    timeout: float | None = None
    allow_other: bool = True
    asked: Counter[str] = field(default_factory=Counter)

    @property
    def checked(self) -> bool:
        """Whether the kernel is to check permissions, by the owners and modes that the view shows."""
        return self.allow_other or self.overlay.owners_are_real


class Front(Protocol):
    """One way to carry requests from the kernel to the engine."""

    def serve(self, view: View, ready: Callable[[], None]) -> None:
        """Mount, call `ready` once the view answers, and return when it is unmounted.

        Raises MountError when it cannot be mounted. Called in the process's main thread; the caller
        closes the overlay.
        """


def now_ns() -> int:
    """The time that the kernel would stamp a file with, in nanoseconds since the epoch."""
    return time.clock_gettime_ns(_COARSE)


def reading_is_noted(flags: int, status: os.stat_result) -> bool:
    """Would reading a file of the upper change its access time, in a view with these MS_* flags of mount(2)?

    As the VFS decides (fs/inode.c, relatime_need_update).
    """
    if flags & NO_READING_NOTED:
        return False
    if flags & syscalls.MS_STRICTATIME:
        return True
    atime = status.st_atime_ns
    return atime <= status.st_mtime_ns or atime <= status.st_ctime_ns or now_ns() - atime >= _DAY_NS
