"""Notification of changes in directories: fanotify(7)."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator

from overlayfs_demo.linux.file_handle import handle_of
from overlayfs_demo.linux.libc import check, libc
from overlayfs_demo.named_tuple import NamedTuple

# fanotify(7): the events of a watched directory. The last two flags add those of its entries, and of directories.
MODIFY = 0x2
ATTRIB = 0x4
MOVED_FROM = 0x40
MOVED_TO = 0x80
CREATE = 0x100
DELETE = 0x200
Q_OVERFLOW = 0x4000
_EVENT_ON_CHILD = 0x08000000
_ONDIR = 0x40000000
NAMES = MOVED_FROM | MOVED_TO | CREATE | DELETE
_MASK = NAMES | MODIFY | ATTRIB | _EVENT_ON_CHILD | _ONDIR
_INIT = 0x1 | 0x2 | 0x400 | 0x800  # FAN_CLOEXEC, FAN_NONBLOCK, FAN_REPORT_DIR_FID, FAN_REPORT_NAME
_UNLIMITED = 0x10 | 0x20  # queue and marks; for root only
_MARK_ADD_DIRECTORY = 0x1 | 0x8
_METADATA = struct.Struct("=IBBHQii")
_INFO = struct.Struct("=BBH8sIi")
_FSID = struct.Struct("=II")
_INFO_DIRECTORY_AND_NAME = 2

libc.fanotify_mark.argtypes = (ctypes.c_int, ctypes.c_uint, ctypes.c_uint64, ctypes.c_int, ctypes.c_char_p)

# How an event identifies a directory: its filesystem's id, and the type and bytes of its handle.
Key = tuple[bytes, int, bytes]


class Event(NamedTuple):
    """One change: FAN_* bits, the process that made it, the directory, and the name in it (`.`: the directory)."""

    mask: int
    pid: int
    directory: Key
    name: bytes


def new_group() -> int:
    """Return a queue of changes in directories, for `watch` and `events`: fanotify_init(2).

    The caller owns the descriptor, which does not block. Since Linux 5.13 this needs no privilege; root's queue
    has no limit. Raises OSError.
    """
    unlimited = _UNLIMITED if os.geteuid() == 0 else 0
    try:
        return check(libc.fanotify_init(_INIT | unlimited, 0))
    except PermissionError:
        return check(libc.fanotify_init(_INIT, 0))


def watch(group: int, fd: int) -> Key:
    """Watch the directory open as `fd`, and return the key that its events will have: fanotify_mark(2).

    Raises OSError: ENOSPC if too many are watched; EOPNOTSUPP, ENODEV or EXDEV if the filesystem cannot be watched.
    """
    check(libc.fanotify_mark(group, _MARK_ADD_DIRECTORY, _MASK, fd, None))
    return key_of(fd)


def key_of(fd: int) -> Key:
    """Return the key by which an event identifies the directory open as `fd`."""
    number = os.fstatvfs(fd).f_fsid  # Two 32-bit numbers in one: statfs(2).
    return _FSID.pack(number & 0xFFFFFFFF, number >> 32), *handle_of(fd, b"")


def events(data: bytes) -> Iterator[Event]:
    """Decode the events in what read(2) of a watch group returned."""
    offset = 0
    while offset < len(data):
        size, _, _, start, mask, _, pid = _METADATA.unpack_from(data, offset)
        key, name = (b"", 0, b""), b""
        if size > start:
            kind, _, length, filesystem, handle_size, handle_kind = _INFO.unpack_from(data, offset + start)
            if kind == _INFO_DIRECTORY_AND_NAME:
                handle = offset + start + _INFO.size
                end = offset + start + length
                key = (filesystem, handle_kind, data[handle : handle + handle_size])
                name = data[handle + handle_size : end].partition(b"\0")[0]
        yield Event(mask, pid, key, name)
        offset += size
