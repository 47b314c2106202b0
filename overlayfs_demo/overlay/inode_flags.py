"""Which inode flags (chattr(1)) has a file, and which changes do they forbid?

Most are the real file's. "Immutable" and "append-only" are not set on the upper's file, for then nothing could be
copied up into such a directory: they stand in `overlay.protattr`, as `i` and `a`, and are enforced here, as the VFS
does it elsewhere (fs/overlayfs/util.c, ovl_set_protattr; ioctl_iflags(2)). In a lower they are real.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import sys
from dataclasses import dataclass

from overlayfs_demo.linux import syscalls
from overlayfs_demo.overlay.node import DirNode, Node
from overlayfs_demo.overlay.pinned import Pinned
from overlayfs_demo.overlay.types import Caller
from overlayfs_demo.overlay.whiteout import PrivateXattrs

IMMUTABLE, APPEND = b"i", b"a"


@dataclass(frozen=True, slots=True)
class Format:
    """One of the two ways in which flags are asked for and set: the ioctls, how many bytes they exchange, of which
    the first four are the flags, and which bits are immutable and append-only."""

    get: int
    set: int
    size: int
    immutable: int
    append: int

    def protection(self, value: bytes) -> bytes:
        """The two flags of a value, as `overlay.protattr` has them."""
        flags = int.from_bytes(value[:4], sys.byteorder)
        return (APPEND if flags & self.append else b"") + (IMMUTABLE if flags & self.immutable else b"")

    def with_protection(self, value: bytes, protection: bytes) -> bytes:
        """The value with exactly these two flags."""
        flags = int.from_bytes(value[:4], sys.byteorder) & ~(self.immutable | self.append)
        flags |= (self.immutable if IMMUTABLE in protection else 0) | (self.append if APPEND in protection else 0)
        return flags.to_bytes(4, sys.byteorder) + value[4:]


# ioctl_iflags(2), and ioctl_xfs_fsgetxattr(2), which other filesystems have as well.
PLAIN = Format(syscalls.FS_IOC_GETFLAGS, syscalls.FS_IOC_SETFLAGS, 4, 0x10, 0x20)
EXTENDED = Format(syscalls.FS_IOC_FSGETXATTR, syscalls.FS_IOC_FSSETXATTR, 28, 0x08, 0x10)


def protection(node: Node, xattrs: PrivateXattrs) -> bytes:
    """The flags that forbid changes of a node: some of `i` and `a`. Raises OSError.

    In the upper, those that the real file may have as well are left to its filesystem. Like the kernel, which asks when
    it makes an inode (ovl_check_protattr), this asks once: a copy-up keeps the flags.
    """
    if node.protection is None:
        node.protection = _protection(node, xattrs)
    return node.protection


def _protection(node: Node, xattrs: PrivateXattrs) -> bytes:
    if not isinstance(node, DirNode) and node.kind != stat.S_IFREG:
        return b""
    pinned = node.pin()
    return pinned.xattr(xattrs.protattr) or b"" if node.in_upper else lower_protection(pinned)


def lower_protection(pinned: Pinned) -> bytes:
    """The same of an object of a lower."""
    attributes = syscalls.statx(pinned.place, follow=True).attributes
    immutable, append = attributes & syscalls.STATX_ATTR_IMMUTABLE, attributes & syscalls.STATX_ATTR_APPEND
    return (APPEND if append else b"") + (IMMUTABLE if immutable else b"")


def refuse(node: Node, xattrs: PrivateXattrs, *, appends: bool = False) -> None:
    """EPERM for a change of a node that its flags forbid; `appends` says that it may be append-only."""
    found = protection(node, xattrs)
    if IMMUTABLE in found or (APPEND in found and not appends):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), node.name)


def read(node: Node, xattrs: PrivateXattrs, form: Format) -> bytes:
    """A node's flags. ENOTTY for what is neither file nor directory, or where the filesystem has none."""
    pinned = node.pin()
    if isinstance(pinned.place, int):
        value = _ask(pinned.place, form)
    elif node.kind == stat.S_IFREG:
        fd = pinned.open(os.O_RDONLY)
        try:
            value = _ask(fd, form)
        finally:
            os.close(fd)
    else:
        raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY), node.name)
    return form.with_protection(value, form.protection(value) + protection(node, xattrs))


def _ask(fd: int, form: Format) -> bytes:
    value = bytearray(max(form.size, 8))
    fcntl.ioctl(fd, form.get, value, True)
    return bytes(value[: form.size])


def check_permission(before: bytes, after: bytes, form: Format, owner: int, caller: Caller) -> None:
    """EPERM unless the caller, of the same numbering as `owner`, may make this change (fs/file_attr.c)."""
    if caller.uid == 0:
        return
    if caller.uid != owner or form.protection(before) != form.protection(after):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
