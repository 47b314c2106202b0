"""File handles, which identify a file of a filesystem for good: open_by_handle_at(2)."""

from __future__ import annotations

import ctypes
import errno
import os

from overlayfs_demo.linux.failure import failure
from overlayfs_demo.linux.libc import AT_EMPTY_PATH, check, libc

_AT_HANDLE_FID = 0x200
# MAX_HANDLE_SZ of name_to_handle_at(2), in bytes.
_MAX_HANDLE = 128


class _FileHandle(ctypes.Structure):
    _fields_ = (
        ("handle_bytes", ctypes.c_uint),
        ("handle_type", ctypes.c_int),
        ("f_handle", ctypes.c_ubyte * _MAX_HANDLE),
    )


def handle_of(dir_fd: int, name: bytes) -> tuple[int, bytes]:
    """Return the (type, opaque bytes) by which the filesystem identifies a file: name_to_handle_at(2).

    An empty `name` means `dir_fd` itself; a symbolic link is not followed. Raises OSError: EOPNOTSUPP if the
    filesystem has no handles. From Linux 6.5 on an overlay has handles that tell files apart, but cannot be opened.
    """
    handle = _FileHandle(handle_bytes=_MAX_HANDLE)
    mount_id = ctypes.c_int()
    flags = AT_EMPTY_PATH if not name else 0
    place = (dir_fd, ctypes.c_char_p(name), ctypes.byref(handle), ctypes.byref(mount_id))
    try:
        check(libc.name_to_handle_at(*place, flags), name)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        if libc.name_to_handle_at(*place, flags | _AT_HANDLE_FID) < 0:
            raise
    return handle.handle_type, bytes(handle.f_handle[: handle.handle_bytes])


def open_handle(mount_fd: int, kind: int, opaque: bytes, flags: int) -> int:
    """Open a file by its handle: open_by_handle_at(2). The caller owns the descriptor.

    Needs CAP_DAC_READ_SEARCH. Raises OSError: ESTALE if the file is gone.
    """
    if len(opaque) > _MAX_HANDLE:
        raise failure(errno.EINVAL)
    handle = _FileHandle(handle_bytes=len(opaque), handle_type=kind)
    ctypes.memmove(handle.f_handle, opaque, len(opaque))
    return check(libc.open_by_handle_at(mount_fd, ctypes.byref(handle), flags | os.O_CLOEXEC))
