"""File handles, which identify a file of a filesystem for good: open_by_handle_at(2)."""

from __future__ import annotations

import ctypes
import errno
import os
import struct

from overlayfs_demo.linux.failure import failure
from overlayfs_demo.linux.libc import AT_EMPTY_PATH, check, libc

_AT_HANDLE_FID = 0x200
# MAX_HANDLE_SZ of name_to_handle_at(2), in bytes.
_MAX_HANDLE = 128


# struct file_handle: the number of opaque bytes and the handle's type, then the bytes.
_HEAD = struct.Struct("=Ii")
_FileHandle = ctypes.c_char * (_HEAD.size + _MAX_HANDLE)
libc.name_to_handle_at.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int)
libc.open_by_handle_at.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int)


def handle_of(dir_fd: int, name: bytes) -> tuple[int, bytes]:
    """Return the (type, opaque bytes) by which the filesystem identifies a file: name_to_handle_at(2).

    An empty `name` means `dir_fd` itself; a symbolic link is not followed. Raises OSError: EOPNOTSUPP if the
    filesystem has no handles. From Linux 6.5 on an overlay has handles that tell files apart, but cannot be opened.
    """
    handle = _FileHandle()
    _HEAD.pack_into(handle, 0, _MAX_HANDLE, 0)
    mount_id = ctypes.c_int()
    flags = AT_EMPTY_PATH if not name else 0
    place = (dir_fd, name, handle, ctypes.byref(mount_id))
    try:
        check(libc.name_to_handle_at(*place, flags), name)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        if libc.name_to_handle_at(*place, flags | _AT_HANDLE_FID) < 0:
            raise
    size, kind = _HEAD.unpack_from(handle)
    return kind, handle.raw[_HEAD.size : _HEAD.size + size]


def open_handle(mount_fd: int, kind: int, opaque: bytes, flags: int) -> int:
    """Open a file by its handle: open_by_handle_at(2). The caller owns the descriptor.

    Needs CAP_DAC_READ_SEARCH. Raises OSError: ESTALE if the file is gone.
    """
    if len(opaque) > _MAX_HANDLE:
        raise failure(errno.EINVAL)
    handle = _HEAD.pack(len(opaque), kind) + opaque
    return check(libc.open_by_handle_at(mount_fd, handle, flags | os.O_CLOEXEC))
