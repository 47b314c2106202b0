"""Which marks in a work directory say that its upper must not be mounted just like that?

The kernel's way (overlayfs.rst, "Volatile mount"; fs/overlayfs/super.c): any name in WORKDIR/work/incompat
forbids it. A volatile mount leaves `volatile` there, in the beginning and for good.
"""

from __future__ import annotations

import os

VOLATILE = b"volatile"
_DIRECTORY = b"incompat"


def features(work: bytes) -> list[bytes]:
    """The names that stand in the way, in the work directory given as `workdir=`. Raises OSError."""
    try:
        return sorted(os.listdir(os.path.join(work, b"work", _DIRECTORY)))
    except FileNotFoundError:
        return []


def mark_volatile(work_fd: int) -> None:
    """Mark the emptied directory WORKDIR/work: from now on the upper may lose data in a crash."""
    # The kernel makes them with no rights at all. Only root could then put anything into them, or take it out again.
    mode = 0 if os.geteuid() == 0 else 0o700
    os.mkdir(_DIRECTORY, mode, dir_fd=work_fd)
    os.mkdir(_DIRECTORY + b"/" + VOLATILE, mode, dir_fd=work_fd)
    dirty = os.path.join(_DIRECTORY, VOLATILE, b"dirty")
    os.close(os.open(dirty, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0, dir_fd=work_fd))
