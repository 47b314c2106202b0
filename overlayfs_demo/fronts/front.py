"""The interface of a front: what it is given, and what it promises.

A front shows an `Overlay` at a mount point. It decodes a request, calls one verb of the engine, and
encodes the answer. It contains no rule of the union.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from overlayfs_demo.linux import mounting
from overlayfs_demo.linux.mount_flags import MOUNT_FLAGS
from overlayfs_demo.named_tuple import NamedTuple

if TYPE_CHECKING:  # Only a daemon needs the engine, and `umount`, `watch` and `ps` import this module, too.
    from overlayfs_demo.fronts.keeper import Keeper
    from overlayfs_demo.overlay.engine import Overlay

FILESYSTEM_TYPE = "fuse.overlayfs-demo"
SUBTYPE = "overlayfs-demo"

# The flags that libfuse and fusermount3 are told, by mount(8)'s words (libfuse, lib/mount.c and util/fusermount.c).
_LIBFUSE_WORDS = {"ro", "nosuid", "nodev", "noexec", "noatime", "sync", "dirsync"}
LIBFUSE_FLAGS = tuple(flag for flag in MOUNT_FLAGS if flag.word in _LIBFUSE_WORDS)

# CLOCK_REALTIME_COARSE, Linux clock 5: the kernel takes file times from it. Python has no name for it.
_COARSE = 5
# With either of these mount(2) flags, no access time changes.
NO_READING_NOTED = mounting.MS_NOATIME | mounting.MS_RDONLY
# Seconds. A timeout this long says that the layers do not change.
_AT_REST = 3600.0
# An access time this old is updated again: relatime_need_update in fs/inode.c.
_DAY_NS = 24 * 60 * 60 * 1_000_000_000


class View(NamedTuple):
    """An overlay and where to show it.

    `source` is the device that mount(8) lists. `flags` are the MS_* flags of mount(2). `timeout` is the number of
    seconds for which the kernel may trust names and attributes without asking again; None lets the front choose.
    `allow_other` admits all users, not just the one who mounts. `passthrough` lets the kernel read and write files of
    the upper by itself where it can. `polling` looks for the next request for a moment before sleeping. `asked` counts
    the requests by name, such as `lookup`. It always counts, because adding one costs no more than checking whether
    anyone is interested. Threads add without a lock, so a request may occasionally be missed.
    """

    overlay: Overlay
    mountpoint: bytes
    asked: Counter[str]
    source: str = SUBTYPE
    flags: int = 0
    timeout: float | None = None
    allow_other: bool = True
    passthrough: bool = True
    polling: bool = True

    @property
    def checked(self) -> bool:
        """Whether the kernel checks permissions, using the owners and modes that the view shows."""
        return self.allow_other or self.overlay.decides_access

    @property
    def at_rest(self) -> bool:
        """Whether the user says that nobody changes the layers behind the view."""
        return is_at_rest(self.timeout)


class Front(Protocol):
    """A way to carry requests from the kernel to the engine.

    `is_resumable`: another process can go on where one ended, with what the keeper has.
    """

    is_resumable: bool

    def serve(self, view: View, ready: Callable[[], None], keeper: Keeper) -> None:
        """Mount the view, unless the keeper has it mounted; call `ready` once it answers; return when it is unmounted.

        Call it in the main thread of the process; the caller closes the overlay. Raises MountError if the view
        cannot be mounted.
        """


def is_at_rest(timeout: float | None) -> bool:
    """Return whether a timeout, in seconds or None, says that nobody changes the layers behind the view."""
    return timeout is not None and timeout >= _AT_REST


def escape_value(text: str) -> str:
    """Escape a value for libfuse's and fusermount3's comma-separated list of options (libfuse, lib/fuse_opt.c)."""
    return text.replace("\\", "\\\\").replace(",", "\\,")


def now_ns() -> int:
    """Return the time that the kernel would give a file now, in nanoseconds since the epoch."""
    return time.clock_gettime_ns(_COARSE)


def reading_is_noted(flags: int, status: os.stat_result) -> bool:
    """Return whether reading a file of the upper changes its access time, in a view with these MS_* flags of mount(2).

    The rule is the VFS's (fs/inode.c, relatime_need_update).
    """
    if flags & NO_READING_NOTED:
        return False
    if flags & mounting.MS_STRICTATIME:
        return True
    atime = status.st_atime_ns
    return atime <= status.st_mtime_ns or atime <= status.st_ctime_ns or now_ns() - atime >= _DAY_NS
