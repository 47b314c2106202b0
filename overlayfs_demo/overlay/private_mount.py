"""How are layers read so that no access time in them tells of it?

As the kernel's overlayfs does (fs/overlayfs/super.c, ovl_get_upper and ovl_get_layers): each layer is used
through a private mount of its own, which no path leads to. The lowers are read-only there, and keep their access
times. The upper's change as the flags of the view say, whatever the mount is like that the upper lies on. Other
mounts below a layer's directory are not part of it. Who may not make such a mount uses the directories where they are.
"""

from __future__ import annotations

import errno
import os
from typing import NamedTuple

from overlayfs_demo.linux import syscalls

# MOUNT_ATTR_* of a lower. A device is never opened there, whatever name it was put under: a view's devices are opened
# by the kernel, by their numbers.
LOWER = syscalls.MOUNT_ATTR_RDONLY | syscalls.MOUNT_ATTR_NOATIME | syscalls.MOUNT_ATTR_NODEV

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_ONLY_A_PLACE = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
# No privilege; a mount that may not be copied (unbindable, or locked by a user namespace); Linux before 5.12.
_IMPOSSIBLE = (errno.EPERM, errno.EINVAL, errno.ENOSYS)


class Root(NamedTuple):
    """A directory, open as `fd`, which belongs to whoever asked for it.

    `reads_quietly` says that its mount would note access times that should stay: whoever lists directories below it
    had better do so through a descriptor with O_NOATIME.
    """

    fd: int
    reads_quietly: bool


def upper_attributes(flags: int) -> int:
    """The MOUNT_ATTR_* of an upper, for a view that is mounted with these MS_* flags of mount(2)."""
    files = syscalls.MOUNT_ATTR_STRICTATIME if flags & syscalls.MS_STRICTATIME else syscalls.MOUNT_ATTR_RELATIME
    if flags & (syscalls.MS_NOATIME | syscalls.MS_RDONLY):
        files = syscalls.MOUNT_ATTR_NOATIME
    directories = syscalls.MOUNT_ATTR_NODIRATIME if flags & syscalls.MS_NODIRATIME else 0
    return files | directories | syscalls.MOUNT_ATTR_NODEV


def open_root(path: bytes, attributes: int) -> Root:
    """The directory, on a private mount with these MOUNT_ATTR_* where that can be had. Raises OSError."""
    tree = _clone(path, attributes)
    if tree is None:
        return Root(os.open(path, _DIRECTORY), True)
    try:
        return Root(os.open(b".", _DIRECTORY, dir_fd=tree), False)
    finally:
        os.close(tree)


def open_upper(upper: bytes, work: bytes, attributes: int) -> tuple[Root, int]:
    """Like `open_root`, for two directories: they share a mount, for rename(2) and link(2) do not leave one.

    The second descriptor, the caller's as well, is one of O_PATH.
    """
    above, below = os.path.realpath(upper), os.path.realpath(work)
    common = os.path.commonpath([above, below])
    tree = _clone(common, attributes)
    if tree is None:
        quietly = attributes & (syscalls.MOUNT_ATTR_NOATIME | syscalls.MOUNT_ATTR_NODIRATIME)
        return Root(os.open(upper, _DIRECTORY), bool(quietly)), os.open(work, _ONLY_A_PLACE)
    try:
        root = Root(os.open(os.path.relpath(above, common), _DIRECTORY, dir_fd=tree), False)
        try:
            return root, os.open(os.path.relpath(below, common), _ONLY_A_PLACE, dir_fd=tree)
        except OSError:
            os.close(root.fd)
            raise
    finally:
        os.close(tree)


def _clone(path: bytes, attributes: int) -> int | None:
    try:
        return syscalls.clone_mount(path, attributes)
    except OSError as error:
        if error.errno in _IMPOSSIBLE:
            return None
        raise
