"""How does a test read what a front replied?

The layouts of include/uapi/linux/fuse.h are written down here once more, so that `wire` is not its own judge.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator
from typing import NamedTuple

from overlayfs_demo.overlay.types import Attrs

# struct fuse_attr: ino, size, blocks, three times; their nanoseconds; mode, nlink, uid, gid, rdev, blksize, flags.
ATTR = struct.Struct("=6Q3I7I")
# struct fuse_entry_out before its attr: nodeid, generation, entry_valid, attr_valid and their nanoseconds.
ENTRY_START = struct.Struct("=4Q2I")
# struct fuse_dirent before its name: ino, off, namelen, type.
DIRENT_START = struct.Struct("=2Q2I")
ENTRY = ENTRY_START.size + ATTR.size

_SECOND = 1_000_000_000


class Entry(NamedTuple):
    """One entry of a READDIR or READDIRPLUS reply. `nodeid` is 0, and `attrs` None, where it tells none."""

    name: bytes
    kind: int
    ino: int
    offset: int
    nodeid: int
    attrs: Attrs | None


def attrs_at(data: bytes, offset: int) -> Attrs:
    """The attributes packed at an offset; the device number is left as it is encoded."""
    ino, size, blocks, atime, mtime, ctime, *rest = ATTR.unpack_from(data, offset)
    ansec, mnsec, cnsec, mode, nlink, uid, gid, rdev, blksize, flags = rest
    assert flags == 0
    times = (atime * _SECOND + ansec, mtime * _SECOND + mnsec, ctime * _SECOND + cnsec)
    return Attrs(ino, mode, nlink, uid, gid, rdev, size, blocks, blksize, *times)


def plain(data: bytes) -> list[Entry]:
    """The entries of a READDIR reply."""
    return list(_entries(data, 0))


def plus(data: bytes) -> list[Entry]:
    """The entries of a READDIRPLUS reply."""
    return list(_entries(data, ENTRY))


def _entries(data: bytes, before: int) -> Iterator[Entry]:
    while data:
        ino, offset, length, kind = DIRENT_START.unpack_from(data, before)
        start = before + DIRENT_START.size
        end = start + (length + 7) // 8 * 8
        assert end <= len(data)
        assert not any(data[start + length : end])
        nodeid = ENTRY_START.unpack_from(data)[0] if before else 0
        attrs = attrs_at(data, ENTRY_START.size) if nodeid else None
        yield Entry(data[start : start + length], kind << 12, ino, offset, nodeid, attrs)
        data = data[end:]


def encoded(attrs: Attrs) -> Attrs:
    """Attributes with the device number as the kernel's new_encode_dev has it (include/linux/kdev_t.h)."""
    major, minor = os.major(attrs.rdev), os.minor(attrs.rdev)
    is_device = stat.S_ISCHR(attrs.mode) or stat.S_ISBLK(attrs.mode)
    return attrs._replace(rdev=minor % 256 + major * 256 + minor // 256 * 256 * 4096 if is_device else 0)
