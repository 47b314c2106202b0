"""The capabilities of this thread: capget(2), capset(2)."""

from __future__ import annotations

import ctypes
import struct

from overlayfs_demo.linux.libc import check, libc

_HEADER = struct.pack("=Ii", 0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this thread
# The effective, permitted and inheritable set, for the lower and then the upper 32 capabilities.
_SETS = struct.Struct("=6I")


def present() -> tuple[int, ...]:
    """Return this thread's sets: effective, permitted and inheritable, of the lower 32 capabilities, then the upper."""
    sets = ctypes.create_string_buffer(_SETS.size)
    check(libc.capget(_HEADER, sets))
    return _SETS.unpack(sets.raw)


def apply(sets: bytes) -> None:
    """Give this thread the sets that `packed` made. Raises OSError."""
    check(libc.capset(_HEADER, sets))


def packed(sets: tuple[int, ...]) -> bytes:
    """Return sets, in the order of `present`, in the form of `apply`."""
    return _SETS.pack(*sets)
