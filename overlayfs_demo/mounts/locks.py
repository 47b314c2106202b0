"""Locks on upper and work directories, which end with their holders and show what is in use."""

from __future__ import annotations

import fcntl
import os
import time

from overlayfs_demo.errors import MountError
from overlayfs_demo.mounts.registry import MountRecord, live_records

# How long to wait for a daemon that has nothing left to serve, or that is starting up, in seconds.
_TIMEOUT = 10.0
_POLL = 0.02


def lock(path: bytes) -> int:
    """Lock the upper or work directory for this process and its children, and return the descriptor of the lock.

    The caller closes it. A daemon whose view was just unmounted may take a moment to release its locks, so this waits
    for a lock that belongs to no live mount. Raises MountError if the directory stays in use.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    deadline = time.monotonic() + _TIMEOUT
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = user_of(path)
            if holder is not None or time.monotonic() > deadline:
                os.close(fd)
                where = f" (mounted on {holder.mountpoint} by process {holder.pid})" if holder else ""
                raise MountError(
                    f"{os.fsdecode(path)} is in use by another mount{where}",
                    "unmount that first, or use a separate upper and work directory for this mount",
                ) from None
            time.sleep(_POLL)
        else:
            return fd


def user_of(path: bytes) -> MountRecord | None:
    """Return the record of the live mount whose upper this directory is, if there is one."""
    return next((record for record in live_records() if _same(record.upper, path)), None)


def _same(recorded: str | None, path: bytes) -> bool:
    return recorded is not None and os.path.exists(recorded) and os.path.samefile(os.fsencode(recorded), path)
