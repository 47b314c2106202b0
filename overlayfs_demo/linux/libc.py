"""The C library, and the check of what its calls return.

Each wrapper in this folder takes and returns what the `os` module would (descriptors, byte paths), raises OSError with
the errno of the call, and names its man page. Calls without a C library wrapper have unified numbers (the same on
every architecture since Linux 5.0).
"""

from __future__ import annotations

import ctypes

from overlayfs_demo.linux.failure import failure

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long

# mallopt(3)
_M_ARENA_MAX = -8

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000


def check(result: int, *names: bytes) -> int:
    """Return the result of a call, or raise OSError with errno and the first of `names` if it is negative."""
    if result < 0:
        code = ctypes.get_errno()
        raise failure(code, *names[:1])
    return result


def has_library(name: str) -> bool:
    """Return whether the dynamic linker can load `libNAME.so`, in any installed version: ldconfig(8)."""
    import ctypes.util  # It costs more than the rest of this module, and few commands need it.

    return ctypes.util.find_library(name) is not None


def share_one_heap() -> None:
    """Let all threads allocate from one heap: mallopt(3), M_ARENA_MAX. Call it before there are other threads.

    Otherwise each new thread reserves 64 MiB of address space for its own, which a limit (RLIMIT_AS) may not allow.
    """
    libc.mallopt(_M_ARENA_MAX, 1)
