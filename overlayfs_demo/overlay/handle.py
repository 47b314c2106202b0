"""What is an open file, and what happens to it when its file is copied up?"""

from __future__ import annotations

import os

from overlayfs_demo import syscalls
from overlayfs_demo.overlay.layer import Descriptor


class Handle:
    """An open file. Owns `fd` until `close`.

    A handle opened for reading on a lower file is turned to the upper's copy by `retarget`, so readers
    from before a copy-up see what is written after it.
    """

    __slots__ = ("_closed", "fd", "in_upper", "writable")

    def __init__(self, fd: int, *, writable: bool, in_upper: bool) -> None:
        self.fd = fd
        self.writable = writable
        self.in_upper = in_upper
        self._closed = False

    def read_into(self, buffer: memoryview, offset: int) -> int:
        """Fill `buffer` from byte `offset`; the number of bytes read, fewer only at the end of the file."""
        total = os.preadv(self.fd, [buffer], offset)
        # A network filesystem may stop early, but at a page's edge; a read that stops elsewhere met the end.
        while 0 < total < len(buffer) and not total % syscalls.page_size():
            more = os.preadv(self.fd, [buffer[total:]], offset + total)
            if not more:
                break
            total += more
        return total

    def write(self, data: bytes | memoryview, offset: int) -> int:
        """Write all of `data` at byte `offset`; raises OSError (ENOSPC, EDQUOT, EFBIG, ...).

        As write(2) does, a write that fails after some bytes reports those bytes.
        """
        total = os.pwrite(self.fd, data, offset)
        while total < len(data):
            try:
                total += os.pwrite(self.fd, data[total:], offset + total)
            except OSError:
                break
        return total

    def retarget(self, opened: Descriptor) -> None:
        """Turn to the file that `opened` is open on, atomically for readers in other threads."""
        os.dup2(opened.fd, self.fd, inheritable=False)
        self.in_upper = True

    def close(self) -> None:
        """Close the file. A second call does nothing."""
        if not self._closed:
            self._closed = True
            os.close(self.fd)
