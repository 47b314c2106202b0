"""Handles: open files of the view, which stay valid when their file is copied up."""

from __future__ import annotations

import errno
import os

from overlayfs_demo.linux import syscalls
from overlayfs_demo.linux.failure import failure
from overlayfs_demo.named_tuple import NamedTuple
from overlayfs_demo.overlay.layer import Descriptor
from overlayfs_demo.overlay.types import Caller


class Passed(NamedTuple):
    """A caller who writes past the engine, and the file's state before."""

    caller: Caller
    before: tuple[int, ...]


class Handle:
    """An open file, until `close`.

    After a copy-up, `retarget` switches a handle that reads the lower file to the upper's copy, so that it sees
    what is written later. `append_only`: no byte before the file's end may be written, even if O_APPEND was
    removed since. `passed`: the caller writes past the engine, see `passed_writes`. `front_number` is for the front
    that has given the handle out: its number there (0: none).
    """

    __slots__ = ("_opened", "append_only", "front_number", "in_upper", "passed", "writable")

    def __init__(self, opened: Descriptor, *, writable: bool, in_upper: bool, append_only: bool = False) -> None:
        self._opened: Descriptor | None = opened
        self.writable = writable
        self.in_upper = in_upper
        self.append_only = append_only
        self.passed: Passed | None = None
        self.front_number = 0

    @property
    def opened(self) -> Descriptor:
        """The open file. EBADF after `close`.

        Hold the result while using its `fd`: another thread may close or retarget the handle, and the number could
        then belong to another file.
        """
        opened = self._opened
        if opened is None:
            raise failure(errno.EBADF)
        return opened

    def read_into(self, buffer: memoryview, offset: int) -> int:
        """Fill `buffer` from byte `offset`. Return the number of bytes read, which is smaller only at the end of the
        file."""
        opened = self.opened
        total = os.preadv(opened.fd, [buffer], offset)
        # A network filesystem may return less, but only at a page boundary; any other short read has met the end.
        while 0 < total < len(buffer) and not total % syscalls.page_size():
            more = os.preadv(opened.fd, [buffer[total:]], offset + total)
            if not more:
                break
            total += more
        return total

    def write(self, data: bytes | memoryview, offset: int) -> int:
        """Write all of `data` at byte `offset`. Raises OSError (ENOSPC, EDQUOT, EFBIG, ...).

        Like write(2), a write that fails after some bytes returns the number of those bytes.
        """
        opened = self.opened
        total = os.pwrite(opened.fd, data, offset)
        while total < len(data):
            try:
                total += os.pwrite(opened.fd, data[total:], offset + total)
            except OSError:
                break
        return total

    def check_write(self, offset: int) -> None:
        """Raise EPERM if inode flags forbid a write at byte `offset`: ioctl_iflags(2), FS_APPEND_FL."""
        if self.append_only and offset < os.fstat(self.opened.fd).st_size:
            raise failure(errno.EPERM)

    def retarget(self, opened: Descriptor) -> None:
        """Switch to another open file, atomically for readers in other threads."""
        self._opened = opened
        self.in_upper = True

    def close(self) -> None:
        """Release the file, which is closed when its last user releases it. A second call does nothing."""
        self._opened = None
