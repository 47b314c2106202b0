"""The messages of the FUSE protocol in bytes.

This module only packs and unpacks: it does no I/O and knows no meaning. The numbers and layouts are those of
include/uapi/linux/fuse.h in Linux, protocol 7.45; versions from 7.31 (Linux 5.4) on are supported.
"""

from __future__ import annotations

import functools
import os
import struct
from enum import IntEnum
from typing import Final

from overlayfs_demo.named_tuple import NamedTuple
from overlayfs_demo.overlay.types import Attrs

MAJOR: Final = 7
MINOR: Final = 45
OLDEST_MINOR: Final = 31
ROOT_ID: Final = 1


class Opcode(IntEnum):
    """The requests (enum fuse_opcode)."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    CREATE = 35
    INTERRUPT = 36
    DESTROY = 38
    IOCTL = 39
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    SYNCFS = 50
    TMPFILE = 51
    STATX = 52
    COPY_FILE_RANGE_64 = 53


# INIT flags; those from bit 32 on are sent in flags2.
ASYNC_READ = 1 << 0
ATOMIC_O_TRUNC = 1 << 3
BIG_WRITES = 1 << 5
DONT_MASK = 1 << 6
DO_READDIRPLUS = 1 << 13
READDIRPLUS_AUTO = 1 << 14
PARALLEL_DIROPS = 1 << 18
POSIX_ACL = 1 << 20
MAX_PAGES = 1 << 22
CACHE_SYMLINKS = 1 << 23
HANDLE_KILLPRIV_V2 = 1 << 28
SETXATTR_EXT = 1 << 29
INIT_EXT = 1 << 30
PASSTHROUGH = 1 << 37
HAS_RESEND = 1 << 39

# Flags of an OPEN or OPENDIR reply.
FOPEN_DIRECT_IO = 1 << 0
FOPEN_KEEP_CACHE = 1 << 1
FOPEN_PASSTHROUGH = 1 << 7

# Flags of requests.
FATTR_MODE, FATTR_UID, FATTR_GID, FATTR_SIZE, FATTR_ATIME, FATTR_MTIME = 1, 2, 4, 8, 16, 32
FATTR_FH, FATTR_ATIME_NOW, FATTR_MTIME_NOW = 1 << 6, 1 << 7, 1 << 8
FATTR_KILL_SUIDGID = 1 << 11
OPEN_KILL_SUIDGID = 1
WRITE_KILL_SUIDGID = 1 << 2
SETXATTR_ACL_KILL_SGID = 1
FSYNC_FDATASYNC = 1

# Requests. The header: length, opcode, unique, nodeid, uid, gid, pid, extensions' length, padding.
# fuse.h declares offsets and sizes of files as uint64_t, but the kernel fills them from loff_t. They are signed
# here, so that a system call receives, and checks, the number that the caller gave.
HEADER = struct.Struct("=IIQQIIIHH")
INIT_IN = struct.Struct("=IIII")
INIT_FLAGS2_IN = struct.Struct("=16xI")
FORGET_IN = struct.Struct("=Q")
BATCH_FORGET_IN = struct.Struct("=II")
FORGET_ONE = struct.Struct("=QQ")
SETATTR_IN = struct.Struct("=I4xQqQqq8xII4xI4xII4x")
MKNOD_IN = struct.Struct("=III4x")
MKDIR_IN = struct.Struct("=II")
RENAME_IN = struct.Struct("=Q")
RENAME2_IN = struct.Struct("=QI4x")
LINK_IN = struct.Struct("=Q")
OPEN_IN = struct.Struct("=II")
CREATE_IN = struct.Struct("=IIII")
READ_IN = struct.Struct("=QqII")
WRITE_IN = struct.Struct("=QqII16x")
RELEASE_IN = struct.Struct("=QII")
FSYNC_IN = struct.Struct("=QI4x")
SETXATTR_IN = struct.Struct("=III4x")
GETXATTR_IN = struct.Struct("=I4x")
FALLOCATE_IN = struct.Struct("=QqqI4x")
# fh, flags, command, argument, the size of the data that follows, and the size of the data that is wanted back.
IOCTL_IN = struct.Struct("=QIIQII")
INTERRUPT_IN = struct.Struct("=Q")
LSEEK_IN = struct.Struct("=QqI4x")
COPY_FILE_RANGE_IN = struct.Struct("=QqQQqQQ")

# Replies. The header: length, error (negative errno or 0), unique.
REPLY = struct.Struct("=IiQ")
_INIT_OUT = struct.Struct("=IIIIHHIIHHII24x")
_ATTR = "QQQqqqIIIIIIIIII"
_ENTRY_FORMAT = "QQQQII" + _ATTR
_ENTRY = struct.Struct("=" + _ENTRY_FORMAT)
_ATTR_OUT = struct.Struct("=QII" + _ATTR)
_SX_TIME = "qI4x"
# The validity; mask, blksize, attributes; nlink, owner, mode; ino, size, blocks; times; rdev.
_STATX_OUT = struct.Struct("=QI20x" + "IIQ" + "IIIH2x" + "QQQ8x" + _SX_TIME * 4 + "II8x112x")
_STATX_BASIC_STATS, _STATX_BTIME = 0x7FF, 0x800
_OPEN_OUT = struct.Struct("=QIi")
_DIRENT_FORMAT = "QQII"
_DIRENT = struct.Struct("=" + _DIRENT_FORMAT)
_STATFS = struct.Struct("=QQQQQIIII24x")
WRITE_OUT = struct.Struct("=I4x")
XATTR_SIZE = struct.Struct("=I4x")
IOCTL_OUT = struct.Struct("=i12x")
LSEEK_OUT = struct.Struct("=q")
COPY_FILE_RANGE_OUT = struct.Struct("=Q")

# Our messages that answer no request: the reply header with unique 0 and this number as its error
# (enum fuse_notify_code).
NOTIFY_INVAL_INODE = 2
NOTIFY_INVAL_ENTRY = 3
NOTIFY_STORE = 4
NOTIFY_RESEND = 7
NOTIFY_INC_EPOCH = 8
NOTIFY_STORE_OUT = struct.Struct("=QQI4x")
_INVAL_INODE = struct.Struct("=Qqq")
_INVAL_ENTRY = struct.Struct("=QII")
_EXPIRE_ONLY = 1

ENTRY_SIZE = _ENTRY.size
_NO_ENTRY = bytes(_ENTRY.size)
_DIRENT_SIZE = _DIRENT.size
_SECOND = 1_000_000_000


def encode_device(device: int) -> int:
    """Return a device number in the 32-bit form of the kernel's `new_encode_dev`."""
    minor = os.minor(device)
    return (minor & 0xFF) | os.major(device) << 8 | (minor & ~0xFF) << 12


def decode_device(encoded: int) -> int:
    """Return the device number of the 32-bit form, the inverse of `encode_device`."""
    return os.makedev(encoded >> 8 & 0xFFF, (encoded & 0xFF) | (encoded >> 12 & 0xFFF00))


class Protocol(NamedTuple):
    """What both sides agree on in INIT: the minor version, the most bytes to read ahead, and the features (flags)."""

    minor: int
    readahead: int
    flags: int


def init_reply(protocol: Protocol, background: int, max_write: int) -> bytes:
    """INIT's reply. Times are exact to the nanosecond, and a message holds up to `max_write` bytes of data.

    With PASSTHROUGH, the files that are passed through to may not be on a stacked filesystem themselves.
    """
    pages = max_write // 4096
    flags = protocol.flags
    return _INIT_OUT.pack(
        MAJOR,
        protocol.minor,
        protocol.readahead,
        flags & 0xFFFFFFFF,
        background,
        background * 3 // 4,
        max_write,
        1,
        pages,
        0,
        flags >> 32,
        1 if flags & PASSTHROUGH else 0,
    )


def _fields(attrs: Attrs) -> tuple[int, ...]:
    ino, mode, nlink, uid, gid, rdev, size, blocks, blksize, atime, mtime, ctime = attrs
    asec, ansec = divmod(atime, _SECOND)
    msec, mnsec = divmod(mtime, _SECOND)
    csec, cnsec = divmod(ctime, _SECOND)
    return (
        ino,
        size,
        blocks,
        asec,
        msec,
        csec,
        ansec,
        mnsec,
        cnsec,
        mode,
        nlink,
        uid,
        gid,
        encode_device(rdev) if rdev else 0,
        blksize,
        0,
    )


class Valid:
    """The time for which the kernel may trust an answer, in seconds and nanoseconds as the protocol has it.

    `attr_seconds` and `attr_nanoseconds` apply to the attributes in the answer, and may differ from the rest.
    """

    __slots__ = ("attr_nanoseconds", "attr_seconds", "nanoseconds", "seconds")

    def __init__(self, timeout: float, attr_timeout: float | None = None) -> None:
        self.seconds, self.nanoseconds = _split(timeout)
        self.attr_seconds, self.attr_nanoseconds = _split(timeout if attr_timeout is None else attr_timeout)


def _split(timeout: float) -> tuple[int, int]:
    return int(timeout), int((timeout - int(timeout)) * _SECOND)


def notice_head(code: int, size: int) -> bytes:
    """The header of a message that answers no request; `size` bytes of body follow."""
    return REPLY.pack(REPLY.size + size, code, 0)


def inval_inode(nodeid: int, *, data: bool = True) -> bytes:
    """The body of a NOTIFY_INVAL_INODE for a node's attributes and, with `data`, all its data or names."""
    return _INVAL_INODE.pack(nodeid, 0 if data else -1, 0)


def inval_entry(parent: int, name: bytes, *, expire: bool = False) -> bytes:
    """The body of a NOTIFY_INVAL_ENTRY for a name. With `expire` the kernel asks again, and forgets it only then.

    Otherwise it forgets it now, and with it all that is mounted below: d_invalidate in fs/dcache.c.
    """
    return _INVAL_ENTRY.pack(parent, len(name), _EXPIRE_ONLY if expire else 0) + name + b"\0"


def entry_reply(nodeid: int, attrs: Attrs, valid: Valid) -> bytes:
    """A node's id and attributes. An id is never used again, so every generation is 0."""
    return _ENTRY.pack(
        nodeid, 0, valid.seconds, valid.attr_seconds, valid.nanoseconds, valid.attr_nanoseconds, *_fields(attrs)
    )


def negative_entry(valid: Valid) -> bytes:
    """LOOKUP's "there is no such name", which the kernel may remember."""
    return _ENTRY.pack(0, 0, valid.seconds, 0, valid.nanoseconds, 0, *(0,) * 16)


def attr_reply(attrs: Attrs, valid: Valid) -> bytes:
    """GETATTR's and SETATTR's reply."""
    return _ATTR_OUT.pack(valid.attr_seconds, valid.attr_nanoseconds, 0, *_fields(attrs))


def statx_reply(attrs: Attrs, birth_ns: int | None, valid: Valid) -> bytes:
    """STATX's reply: the attributes and, if it is known, the time of birth."""
    mask = _STATX_BASIC_STATS | (0 if birth_ns is None else _STATX_BTIME)
    times = (attrs.atime_ns, birth_ns or 0, attrs.ctime_ns, attrs.mtime_ns)
    return _STATX_OUT.pack(
        valid.attr_seconds,
        valid.attr_nanoseconds,
        mask,
        attrs.blksize,
        0,
        attrs.nlink,
        attrs.uid,
        attrs.gid,
        attrs.mode,
        attrs.ino,
        attrs.size,
        attrs.blocks,
        *(part for time in times for part in divmod(time, _SECOND)),
        os.major(attrs.rdev),
        os.minor(attrs.rdev),
    )


def open_reply(handle: int, flags: int, backing: int = 0) -> bytes:
    """OPEN's and OPENDIR's reply. `backing` is the id of the real file, with FOPEN_PASSTHROUGH."""
    return _OPEN_OUT.pack(handle, flags, backing)


def dirent(ino: int, offset: int, name: bytes, kind: int) -> bytes:
    """One entry of a READDIR reply; the next one follows at `offset`, and `kind` is an S_IFMT value."""
    size = len(name)
    return _DIRENT.pack(ino, offset, size, kind >> 12) + name + bytes(-size & 7)


def direntplus(nodeid: int, attrs: Attrs, valid: Valid, offset: int, name: bytes) -> bytes:
    """One entry of a READDIRPLUS reply: `entry_reply` and `dirent` in one."""
    size = len(name)
    return _direntplus_struct(size + 7 & ~7).pack(
        nodeid,
        0,
        valid.seconds,
        valid.attr_seconds,
        valid.nanoseconds,
        valid.attr_nanoseconds,
        *_fields(attrs),
        attrs.ino,
        offset,
        size,
        attrs.mode >> 12,
        name,
    )


@functools.cache
def _direntplus_struct(padded: int) -> struct.Struct:
    return struct.Struct(f"={_ENTRY_FORMAT}{_DIRENT_FORMAT}{padded}s")


def bare_direntplus(ino: int, offset: int, name: bytes, kind: int) -> bytes:
    """An entry of a READDIRPLUS reply that the kernel will look up itself, if it needs to."""
    return _NO_ENTRY + dirent(ino, offset, name, kind)


def dirent_size(name: bytes) -> int:
    """The number of bytes of `dirent` for this name."""
    return _DIRENT_SIZE + (len(name) + 7 & ~7)


def direntplus_size(name: bytes) -> int:
    """The number of bytes of `direntplus` for this name."""
    return ENTRY_SIZE + dirent_size(name)


def statfs_reply(status: os.statvfs_result) -> bytes:
    """STATFS's reply."""
    return _STATFS.pack(
        status.f_blocks,
        status.f_bfree,
        status.f_bavail,
        status.f_files,
        status.f_ffree,
        status.f_bsize,
        status.f_namemax,
        status.f_frsize,
        0,
    )
