"""Mounts and namespaces: mount(2), umount2(2), open_tree(2), mount_setattr(2), unshare(2), setns(2)."""

from __future__ import annotations

import ctypes
import os
import struct

from overlayfs_demo.linux.libc import AT_EMPTY_PATH, AT_FDCWD, check, libc

_SYS_OPEN_TREE = 428
_SYS_MOUNT_SETATTR = 442

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_SYNCHRONOUS = 16
MS_REMOUNT = 32
MS_DIRSYNC = 128
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
MS_NOATIME = 1024
MS_NODIRATIME = 2048
MS_RELATIME = 1 << 21
MS_STRICTATIME = 1 << 24
MS_LAZYTIME = 1 << 25
MNT_FORCE = 1
MNT_DETACH = 2

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MOUNT_ATTR_RDONLY = 1
MOUNT_ATTR_RELATIME = 0
MOUNT_ATTR_NODEV = 4
MOUNT_ATTR_NOATIME = 0x10
MOUNT_ATTR_STRICTATIME = 0x20
MOUNT_ATTR_NODIRATIME = 0x80
_MOUNT_ATTR_ATIME = 0x70
_OPEN_TREE_CLONE = 1

libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)


def mount(source: bytes, target: bytes, kind: bytes, flags: int, data: bytes) -> None:
    """Mount a filesystem, or change a mount: mount(2)."""
    check(libc.mount(source, target, kind, flags, data), target)


def unmount(target: bytes, flags: int = 0) -> None:
    """Unmount a mount point: umount2(2).

    With MNT_DETACH the name disappears now, and the mount when its last user is gone. With MNT_FORCE requests that
    are waiting for the filesystem's server fail first.
    """
    check(libc.umount2(target, flags), target)


def make_mount_read_only(path: bytes) -> None:
    """Make the mount at `path` read-only, but not those below it: mount_setattr(2), Linux 5.12."""
    _set_mount_attributes(AT_FDCWD, path, MOUNT_ATTR_RDONLY, 0, 0)


def make_mount_without_devices(path: bytes) -> None:
    """Let no device of the mount at `path` be opened: mount_setattr(2), Linux 5.12."""
    _set_mount_attributes(AT_FDCWD, path, MOUNT_ATTR_NODEV, 0, 0)


def clone_mount_read_only(path: bytes) -> int:
    """Return another mount of a file or directory, read-only and attached nowhere: open_tree(2), Linux 5.12.

    The caller owns the descriptor (O_PATH). Raises OSError.
    """
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC
    fd = check(libc.syscall(_SYS_OPEN_TREE, AT_FDCWD, ctypes.c_char_p(path), ctypes.c_uint(flags)), path)
    try:
        _set_mount_attributes(fd, b"", MOUNT_ATTR_RDONLY, 0, AT_EMPTY_PATH)
    except OSError:
        os.close(fd)
        raise
    return fd


def clone_mount(path: bytes, attributes: int) -> int:
    """Return another mount of the directory `path`, without the mounts below it and attached nowhere: open_tree(2).

    `attributes` are MOUNT_ATTR_*. Those about access times replace the mount's own, and the others are added to them.
    The caller owns the descriptor (O_PATH). The mount ends with the last descriptor that was opened in it.
    Needs CAP_SYS_ADMIN. Raises OSError: EPERM, EINVAL if the mount may not be copied, ENOSYS before Linux 5.12.
    """
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC
    fd = check(libc.syscall(_SYS_OPEN_TREE, AT_FDCWD, ctypes.c_char_p(path), ctypes.c_uint(flags)), path)
    try:
        _set_mount_attributes(fd, b"", attributes, _MOUNT_ATTR_ATIME | MOUNT_ATTR_NODIRATIME, AT_EMPTY_PATH)
    except OSError:
        os.close(fd)
        raise
    return fd


def _set_mount_attributes(dir_fd: int, path: bytes, on: int, off: int, flags: int) -> None:
    attributes = ctypes.create_string_buffer(struct.pack("=4Q", on, off, 0, 0), 32)
    check(libc.syscall(_SYS_MOUNT_SETATTR, dir_fd, ctypes.c_char_p(path), flags, attributes, 32), path)


def unshare(namespaces: int) -> None:
    """Move this process into new namespaces, CLONE_NEW*: unshare(2)."""
    check(libc.unshare(namespaces))


def enter_mount_namespace(path: str) -> None:
    """Enter the mount namespace of a path like /proc/PID/ns/mnt: setns(2). The process must have only one thread."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        check(libc.setns(fd, CLONE_NEWNS))
    finally:
        os.close(fd)
