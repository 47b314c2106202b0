"""Inode flags (chattr(1)), and the changes they forbid.

Most flags are those of the real file. "Immutable" and "append-only" are not set on the upper's file, because then
nothing could be copied up into such a directory: they are stored in `overlay.protattr`, as `i` and `a`, and enforced
here as the VFS enforces real ones (fs/overlayfs/util.c, ovl_set_protattr; ioctl_iflags(2)). In a lower they are real.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import sys

from overlayfs_demo.linux import syscalls
from overlayfs_demo.linux.failure import failure
from overlayfs_demo.named_tuple import NamedTuple
from overlayfs_demo.overlay.node import DirNode, Node
from overlayfs_demo.overlay.pinned import Pinned
from overlayfs_demo.overlay.types import Caller
from overlayfs_demo.overlay.whiteout import PrivateXattrs

IMMUTABLE, APPEND = b"i", b"a"


class Format(NamedTuple):
    """One of the two interfaces to read and set flags.

    `get` and `set` are the ioctls. They transfer `size` bytes, and the first four hold the flags. `immutable` and
    `append` are the bits of those two flags.
    """

    get: int
    set: int
    size: int
    immutable: int
    append: int

    def protection(self, value: bytes) -> bytes:
        """Return the two flags of a value in the format of `overlay.protattr`."""
        flags = int.from_bytes(value[:4], sys.byteorder)
        return (APPEND if flags & self.append else b"") + (IMMUTABLE if flags & self.immutable else b"")

    def with_protection(self, value: bytes, protection: bytes) -> bytes:
        """Return the value with these two flags replaced by `protection`."""
        flags = int.from_bytes(value[:4], sys.byteorder) & ~(self.immutable | self.append)
        flags |= (self.immutable if IMMUTABLE in protection else 0) | (self.append if APPEND in protection else 0)
        return flags.to_bytes(4, sys.byteorder) + value[4:]


# ioctl_iflags(2), and ioctl_xfs_fsgetxattr(2), which other filesystems also support.
PLAIN = Format(syscalls.FS_IOC_GETFLAGS, syscalls.FS_IOC_SETFLAGS, 4, 0x10, 0x20)
EXTENDED = Format(syscalls.FS_IOC_FSGETXATTR, syscalls.FS_IOC_FSSETXATTR, 28, 0x08, 0x10)


def protection(node: Node, xattrs: PrivateXattrs, pinned: Pinned | None = None) -> bytes:
    """Return the flags that forbid changes of a node: `i`, `a`, both or none. Raises OSError.

    In the upper, the real file may have such flags as well; its filesystem enforces those. The flags are read once,
    as in the kernel, which reads them when it creates an inode (ovl_check_protattr): a copy-up keeps them. `pinned`
    is the node's real object, if the caller holds it already.
    """
    if node.protection is None:
        node.protection = _protection(node, xattrs, pinned)
    return node.protection


def _protection(node: Node, xattrs: PrivateXattrs, pinned: Pinned | None) -> bytes:
    if not isinstance(node, DirNode) and node.kind != stat.S_IFREG:
        return b""
    if node.in_upper:
        # Nobody but root may read `user.` attributes of a file that is closed to its owner. The kernel ignores that.
        with contextlib.suppress(PermissionError):
            return (pinned or node.pin()).xattr(xattrs.protattr) or b""
        return b""
    attributes = node.statx().attributes
    immutable, append = attributes & syscalls.STATX_ATTR_IMMUTABLE, attributes & syscalls.STATX_ATTR_APPEND
    return (APPEND if append else b"") + (IMMUTABLE if immutable else b"")


def refuse(node: Node, xattrs: PrivateXattrs, *, appends: bool = False) -> None:
    """Raise EPERM if a node's flags forbid a change. `appends`: the change is allowed on an append-only node."""
    found = protection(node, xattrs) if node.protection is None else node.protection
    if found and (IMMUTABLE in found or not appends):
        raise failure(errno.EPERM, node.name)


def read(node: Node, xattrs: PrivateXattrs, form: Format) -> bytes:
    """Return a node's flags. ENOTTY if it is neither a file nor a directory, or its filesystem has no flags."""
    if not isinstance(node, DirNode) and node.kind != stat.S_IFREG:
        raise failure(errno.ENOTTY, node.name)
    value = node.pin().ask(_read, form)
    return form.with_protection(value, form.protection(value) + protection(node, xattrs))


def _read(pinned: Pinned, form: Format) -> bytes:
    if isinstance(pinned.place, int):
        return ask(pinned.place, form)
    fd = pinned.open(os.O_RDONLY)
    try:
        return ask(fd, form)
    finally:
        os.close(fd)


def ask(fd: int, form: Format) -> bytes:
    """Return the flags of the real file open as `fd`. ENOTTY if its filesystem has none."""
    value = bytearray(max(form.size, 8))
    fcntl.ioctl(fd, form.get, value, True)
    return bytes(value[: form.size])


def are_same(fd: int, other: int) -> bool:
    """Whether two real files on one filesystem have the same flags, or it has none."""
    try:
        return ask(fd, PLAIN) == ask(other, PLAIN)
    except OSError as error:
        if error.errno in (errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL):
            return True
        raise


def check_permission(before: bytes, after: bytes, form: Format, owner: int, caller: Caller) -> None:
    """Raise EPERM unless the caller may make this change (fs/file_attr.c). `owner` and the caller's uid are both ids
    of the view."""
    if caller.uid == 0:
        return
    if caller.uid != owner or form.protection(before) != form.protection(after):
        raise failure(errno.EPERM)
