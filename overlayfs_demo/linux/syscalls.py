"""System calls on files and filesystems that Python does not offer."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import functools
import os
import resource
import struct
import sys

from overlayfs_demo.linux.libc import AT_EMPTY_PATH, AT_FDCWD, check, libc
from overlayfs_demo.named_tuple import NamedTuple

_SYS_OPENAT2 = 437
# How often to look a path up again; each time only another rename or mount in that very moment can spoil it.
_MOST_RETRIES = 1000
_AT_SYMLINK_NOFOLLOW = 0x100
AT_SYMLINK_FOLLOW = 0x400

RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
RENAME_WHITEOUT = 4

FALLOC_FL_KEEP_SIZE = 1

# How many symbolic links the kernel follows in one path: path_resolution(7), "Length limit".
MOST_LINKS = 40

FICLONE = 0x40049409
FS_IOC_GETFLAGS = 0x80006601 | struct.calcsize("l") << 16
FS_IOC_SETFLAGS = 0x40006602 | struct.calcsize("l") << 16
_FS_CASEFOLD_FL = 0x40000000
FS_IOC_FSGETXATTR = 0x801C581F
FS_IOC_FSSETXATTR = 0x401C5820

STATX_ATTR_IMMUTABLE = 0x10
STATX_ATTR_APPEND = 0x20
# STATX_TYPE | STATX_INO
_STATX_BASIC = 0x101
_STATX_BTIME = 0x800
# From linux/stat.h: mask, attributes, mode, inode number, time of birth, major and minor number of the device.
_STATX = struct.Struct("=I4xQ12xH2xQ40xqI44xII112x")
_StatxBuffer = ctypes.c_char * _STATX.size


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


libc.renameat2.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
libc.linkat.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_int)
libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
libc.statx.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_char_p)
libc.syncfs.argtypes = (ctypes.c_int,)
libc.fstatfs.argtypes = (ctypes.c_int, ctypes.c_char_p)

# The magic numbers of filesystems for which another program or machine answers, from <linux/magic.h> and statfs(2).
_ANSWERED_ELSEWHERE = {
    0x65735546,  # FUSE, virtiofs
    0x6969,  # NFS
    0xFF534D42,  # CIFS
    0xFE534D42,  # SMB
    0x01021997,  # 9P
    0x00C36400,  # Ceph
    0x5346414F,  # AFS of OpenAFS
    0x6B414653,  # AFS of the kernel
    0x73757245,  # Coda
    0x786F4256,  # VirtualBox
    0x0187,  # autofs
    0x01161970,  # GFS2
    0x7461636F,  # OCFS2
}


def open_beneath(dir_fd: int, path: bytes, flags: int) -> int:
    """Open what is at `path` below `dir_fd`, without following symbolic links or leaving that directory: openat2(2).

    The caller owns the descriptor. Raises OSError: ELOOP for a symbolic link on the way, EXDEV for a
    path that leads out of the directory.
    """
    how = _OpenHow(flags | os.O_CLOEXEC, 0, RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS)
    return check(libc.syscall(_SYS_OPENAT2, dir_fd, ctypes.c_char_p(path), ctypes.byref(how), ctypes.sizeof(how)), path)


def open_in_root(root: int, path: bytes, flags: int) -> int:
    """Open what a process whose root is the directory `root` would find at `path`: openat2(2).

    Neither `..` nor a symbolic link leads out of it, and the links of /proc are refused (ELOOP). The caller owns the
    descriptor. Raises OSError.
    """
    how = _OpenHow(flags | os.O_CLOEXEC, 0, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
    place = (root, ctypes.c_char_p(path), ctypes.byref(how), ctypes.sizeof(how))
    for _ in range(_MOST_RETRIES):
        try:
            return check(libc.syscall(_SYS_OPENAT2, *place), path)
        except BlockingIOError:  # EAGAIN: at a `..`, the kernel saw a rename or mount somewhere on this machine.
            continue
    return check(libc.syscall(_SYS_OPENAT2, *place), path)


def rename(old_dir: int, old: bytes, new_dir: int, new: bytes, flags: int = 0) -> None:
    """Rename a file: renameat2(2). `flags` are RENAME_NOREPLACE, RENAME_EXCHANGE and RENAME_WHITEOUT."""
    if flags:
        check(libc.renameat2(old_dir, old, new_dir, new, flags), old)
    else:
        os.rename(old, new, src_dir_fd=old_dir, dst_dir_fd=new_dir)


def link_path(path: bytes, new_dir: int, new: bytes) -> None:
    """Give a file another name: linkat(2). `path` is absolute, and symbolic links in it are followed."""
    check(libc.linkat(AT_FDCWD, path, new_dir, new, AT_SYMLINK_FOLLOW), new)


def allocate(fd: int, mode: int, offset: int, length: int) -> None:
    """Allocate or release space of a file: fallocate(2). `mode` has its flags; offset and length are in bytes."""
    check(libc.fallocate(fd, mode, offset, length))


class Statx(NamedTuple):
    """What statx(2) tells more than stat(2), and which object it tells it of.

    `attributes` are STATX_ATTR_* bits, `birth_ns` is the time of birth in nanoseconds since the epoch, if known. `mode`
    holds the S_IFMT bits, `key` is the (device, inode).
    """

    attributes: int
    birth_ns: int | None
    mode: int
    key: tuple[int, int]


def statx(dir_fd: int, name: bytes = b"") -> Statx:
    """statx(2) of `name` in a directory, which is not followed, or of the open file `dir_fd` if it is empty."""
    buffer = _StatxBuffer()
    check(libc.statx(dir_fd, name, AT_EMPTY_PATH | _AT_SYMLINK_NOFOLLOW, _STATX_BASIC | _STATX_BTIME, buffer), name)
    mask, attributes, mode, ino, seconds, nanoseconds, major, minor = _STATX.unpack_from(buffer)
    birth_ns = seconds * 1_000_000_000 + nanoseconds if mask & _STATX_BTIME else None
    return Statx(attributes, birth_ns, mode, (os.makedev(major, minor), ino))


def filesystem_magic(fd: int) -> int:
    """Return the magic number of the type of filesystem that an open file is on: `f_type` of statfs(2)."""
    buffer = ctypes.create_string_buffer(256)
    check(libc.fstatfs(fd, buffer))
    return ctypes.c_ulong.from_buffer(buffer).value & 0xFFFFFFFF


def is_answered_elsewhere(fd: int) -> bool:
    """Return whether another program or machine answers for the file's filesystem, so that it may keep us waiting."""
    return filesystem_magic(fd) in _ANSWERED_ELSEWHERE


def folds_case(fd: int) -> bool:
    """Return whether names in the open directory differ only if they differ in more than case: FS_CASEFOLD_FL."""
    flags = bytearray(struct.calcsize("l"))
    try:
        fcntl.ioctl(fd, FS_IOC_GETFLAGS, flags, True)
    except OSError as error:
        if error.errno not in (errno.ENOTTY, errno.EINVAL, errno.EOPNOTSUPP):
            raise
        return False
    return bool(int.from_bytes(flags[:4], sys.byteorder) & _FS_CASEFOLD_FL)


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write all of `data` to a descriptor that blocks, although one write(2) may take less. Raises OSError."""
    while data:
        data = data[os.write(fd, data) :]


def sync_filesystem(fd: int) -> None:
    """Write all changes of the filesystem that `fd` is on to the disk: syncfs(2)."""
    check(libc.syncfs(fd))


def clone_file(source: int, target: int) -> bool:
    """Share all of `source`'s blocks with `target`: ioctl_ficlone(2).

    Returns False if that is impossible (two filesystems, no reflinks). Raises OSError for any other failure.
    """
    try:
        fcntl.ioctl(target, FICLONE, source)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS):
            return False
        raise
    return True


# How fanotify(7) identifies a directory: its filesystem's id, and the type and bytes of its handle.


_FS_IOC_GETFSUUID = 0x80111500


def filesystem_uuid(fd: int) -> bytes | None:
    """Return the 16 bytes that identify the filesystem `fd` is on, or None if they cannot be found.

    They come from the ioctl FS_IOC_GETFSUUID (Linux 6.9), or else from udev's links to block devices.
    """
    answer = bytearray(17)
    try:
        fcntl.ioctl(fd, _FS_IOC_GETFSUUID, answer, True)
        return bytes(answer[1:]) if answer[0] == 16 else None
    except OSError as error:
        if error.errno not in (errno.ENOTTY, errno.EINVAL, errno.EOPNOTSUPP):
            raise
    return _uuid_by_device(os.fstat(fd).st_dev)


def _uuid_by_device(device: int) -> bytes | None:
    try:
        entries = list(os.scandir("/dev/disk/by-uuid"))
    except FileNotFoundError:
        return None
    for entry in entries:
        if entry.stat().st_rdev == device:
            digits = entry.name.replace("-", "")
            return bytes.fromhex(digits) if len(digits) == 32 else None
    return None


def reserve_descriptors(count: int) -> None:
    """Make room for `count` descriptors at once, or for fewer if the limit is lower.

    A process with several threads waits milliseconds for every later doubling of the table (fs/file.c,
    expand_fdtable: an RCU grace period), so a daemon does this before it starts its threads.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = min(count, soft) - 1
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    os.close(fcntl.fcntl(null, fcntl.F_DUPFD_CLOEXEC, highest))
    os.close(null)


@functools.cache
def page_size() -> int:
    """Return the number of bytes in a memory page."""
    return os.sysconf("SC_PAGE_SIZE")
