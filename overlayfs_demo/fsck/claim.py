"""Locks that keep mounts and writers away from what is checked."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from overlayfs_demo.errors import ImageError, MountError, printable
from overlayfs_demo.mounts import preflight
from overlayfs_demo.mounts.locks import user_of
from overlayfs_demo.overlay.stack import Stack


@contextmanager
def unmounted(stack: Stack) -> Iterator[None]:
    """Keep views from using the upper and the work directory. Raises MountError if one does, or the kernel."""
    held = []
    try:
        for path in filter(None, (stack.upper, stack.work)):
            for used in preflight.written_by_kernel():
                if os.path.exists(used.path) and os.path.samefile(used.path, path):
                    raise _mounted(path, used.mountpoint)
            held.append(fd := os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            # A view's daemon holds the same lock.
            if not _lock(fd):
                user = user_of(path)
                raise _mounted(path, user.mountpoint if user is not None else "")
        yield
    finally:
        for fd in held:
            os.close(fd)


@contextmanager
def unused(root: Path) -> Iterator[None]:
    """Keep others from changing a store. Raises ImageError if somebody does."""
    fd = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        if not _lock(fd):
            raise ImageError(
                f"the store {printable(str(root))} is being changed by another process",
                "wait for it to finish, then check again",
            )
        yield
    finally:
        os.close(fd)


def _lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _mounted(path: bytes, mountpoint: str) -> MountError:
    where = f", on {printable(mountpoint)}" if mountpoint else ""
    return MountError(f"{printable(path)} is mounted{where}", "unmount it first: what changes cannot be checked")
