"""Private mounts, through which layers are read without changing access times.

As in the kernel's overlayfs (fs/overlayfs/super.c, ovl_get_upper and ovl_get_layers), each layer is used
through a private mount that no path leads to. Lowers are read-only there and keep their access
times. The upper's access times follow the flags of the view, whatever the flags of the mount it is on. Other
mounts below a layer's directory are not part of the layer. A user who may not make such a mount uses the directories
where they are.
"""

from __future__ import annotations

import errno
import os

from overlayfs_demo.linux import mounting
from overlayfs_demo.named_tuple import NamedTuple

# MOUNT_ATTR_* of a lower. No device may ever be opened there, whatever its name: the kernel opens a view's devices by
# their numbers.
LOWER = mounting.MOUNT_ATTR_RDONLY | mounting.MOUNT_ATTR_NOATIME | mounting.MOUNT_ATTR_NODEV

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_ONLY_A_PLACE = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
# In this order: no privilege; a mount that may not be cloned (unbindable, or locked by a user namespace); Linux before
# 5.12.
_IMPOSSIBLE = (errno.EPERM, errno.EINVAL, errno.ENOSYS)


class Root(NamedTuple):
    """A directory, open as `fd`, which the caller owns.

    `reads_quietly`: its mount would change access times that should stay, so directories below it should be listed
    through a descriptor with O_NOATIME.
    """

    fd: int
    reads_quietly: bool


class Roots(NamedTuple):
    """The open directories of one stack: of the lowers and then the data-only layers, of the upper, and of its work
    directory, an O_PATH descriptor (None and -1 without an upper)."""

    lowers: tuple[Root, ...]
    upper: Root | None
    work: int

    @property
    def fds(self) -> list[int]:
        """All descriptors."""
        return [*(root.fd for root in self.lowers), *([self.upper.fd, self.work] if self.upper else [])]

    def close(self) -> None:
        """Close them all."""
        for fd in self.fds:
            os.close(fd)


def upper_attributes(flags: int) -> int:
    """Return the MOUNT_ATTR_* of an upper for a view that is mounted with these MS_* flags of mount(2)."""
    files = mounting.MOUNT_ATTR_STRICTATIME if flags & mounting.MS_STRICTATIME else mounting.MOUNT_ATTR_RELATIME
    if flags & (mounting.MS_NOATIME | mounting.MS_RDONLY):
        files = mounting.MOUNT_ATTR_NOATIME
    directories = mounting.MOUNT_ATTR_NODIRATIME if flags & mounting.MS_NODIRATIME else 0
    return files | directories | mounting.MOUNT_ATTR_NODEV


def open_root(path: bytes, attributes: int) -> Root:
    """Open a directory on a private mount with these MOUNT_ATTR_*, or directly where that is not allowed.

    Raises OSError.
    """
    tree = _clone(path, attributes)
    if tree is None:
        return Root(os.open(path, _DIRECTORY), True)
    try:
        return Root(os.open(b".", _DIRECTORY, dir_fd=tree), False)
    finally:
        os.close(tree)


def open_upper(upper: bytes, work: bytes, attributes: int) -> tuple[Root, int]:
    """Like `open_root`, for an upper and its work directory.

    They share a mount because rename(2) and link(2) do not work across mounts. The caller owns both descriptors;
    the second one is open with O_PATH.
    """
    above, below = os.path.realpath(upper), os.path.realpath(work)
    common = os.path.commonpath([above, below])
    tree = _clone(common, attributes)
    if tree is None:
        quietly = attributes & (mounting.MOUNT_ATTR_NOATIME | mounting.MOUNT_ATTR_NODIRATIME)
        return _open_both(upper, work, None, bool(quietly))
    try:
        return _open_both(os.path.relpath(above, common), os.path.relpath(below, common), tree, False)
    finally:
        os.close(tree)


def _open_both(upper: bytes, work: bytes, dir_fd: int | None, quietly: bool) -> tuple[Root, int]:
    root = Root(os.open(upper, _DIRECTORY, dir_fd=dir_fd), quietly)
    try:
        return root, os.open(work, _ONLY_A_PLACE, dir_fd=dir_fd)
    except OSError:
        os.close(root.fd)
        raise


def _clone(path: bytes, attributes: int) -> int | None:
    try:
        return mounting.clone_mount(path, attributes)
    except OSError as error:
        if error.errno in _IMPOSSIBLE:
            return None
        raise
