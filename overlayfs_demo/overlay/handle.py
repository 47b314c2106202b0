"""What is an open file, and what happens to it when its file is copied up?"""

from __future__ import annotations

import errno
import os

from overlayfs_demo.linux import syscalls
from overlayfs_demo.overlay.layer import Descriptor


class Handle:
    """An open file, until `close`.

    A handle opened for reading on a lower file is turned to the upper's copy by `retarget`, so readers
    from before a copy-up see what is written after it. `append_only`: nothing before the file's end may be written,
    whatever became of O_APPEND since.
    """

    __slots__ = ("_opened", "append_only", "in_upper", "writable")

    def __init__(self, opened: Descriptor, *, writable: bool, in_upper: bool, append_only: bool = False) -> None:
        self._opened: Descriptor | None = opened
        self.writable = writable
        self.in_upper = in_upper
        self.append_only = append_only

    @property
    def opened(self) -> Descriptor:
        """The open file. Hold the result while using its `fd`: another thread may close or retarget the handle, and the
        number would then be that of another file. EBADF once it is closed."""
        opened = self._opened
        if opened is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return opened

    def read_into(self, buffer: memoryview, offset: int) -> int:
        """Fill `buffer` from byte `offset`; the number of bytes read, fewer only at the end of the file."""
        opened = self.opened
        total = os.preadv(opened.fd, [buffer], offset)
        # A network filesystem may stop early, but at a page's edge; a read that stops elsewhere met the end.
        while 0 < total < len(buffer) and not total % syscalls.page_size():
            more = os.preadv(opened.fd, [buffer[total:]], offset + total)
            if not more:
                break
            total += more
        return total

    def write(self, data: bytes | memoryview, offset: int) -> int:
        """Write all of `data` at byte `offset`; raises OSError (ENOSPC, EDQUOT, EFBIG, ...).

        As write(2) does, a write that fails after some bytes reports those bytes.
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
        """EPERM for a write at byte `offset` that inode flags forbid: ioctl_iflags(2), FS_APPEND_FL."""
        if self.append_only and offset < os.fstat(self.opened.fd).st_size:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    def retarget(self, opened: Descriptor) -> None:
        """Turn to another open file, atomically for readers in other threads."""
        self._opened = opened
        self.in_upper = True

    def close(self) -> None:
        """Let go of the file, which closes when its last user does. A second call does nothing."""
        self._opened = None
