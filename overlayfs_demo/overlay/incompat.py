"""Marks in a work directory that say that its upper must not be mounted again without a check.

They are the kernel's (overlayfs.rst, "Volatile mount"; fs/overlayfs/super.c): any name in WORKDIR/work/incompat
forbids the mount. A volatile mount creates `volatile` there when it starts, and never removes it.
"""

from __future__ import annotations

import os

from overlayfs_demo.overlay.workdir import let_owner_in

VOLATILE = b"volatile"
_DIRECTORY = b"incompat"


def features(work: bytes) -> list[bytes]:
    """Return the names that forbid a mount with this `workdir=`. Raises OSError."""
    path = os.path.join(work, b"work")
    try:
        let_owner_in(path)
        path = os.path.join(path, _DIRECTORY)
        let_owner_in(path)
        return sorted(os.listdir(path))
    except FileNotFoundError:
        return []


def mark_volatile(work_fd: int) -> None:
    """Mark the emptied directory WORKDIR/work as volatile: from now on the upper may lose data in a crash."""
    # The kernel creates these directories with mode 0. Then only root could create or remove anything in them.
    mode = 0 if os.geteuid() == 0 else 0o700
    os.mkdir(_DIRECTORY, mode, dir_fd=work_fd)
    os.mkdir(_DIRECTORY + b"/" + VOLATILE, mode, dir_fd=work_fd)
    dirty = os.path.join(_DIRECTORY, VOLATILE, b"dirty")
    os.close(os.open(dirty, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0, dir_fd=work_fd))
