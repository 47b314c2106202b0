"""Writer that leaves blocks of zeros out of a file, so that they take no room on the disk.

An archive of a few megabytes may unpack to gigabytes of zeros. Their blocks become holes in the file: lseek(2),
"Seeking file data and holes".
"""

from __future__ import annotations

import os

from overlayfs_demo.linux import syscalls

_BLOCK = 4096  # bytes: the smallest hole that common filesystems can keep
_ZEROS = bytes(_BLOCK)


def write_sparse(fd: int, data: bytes) -> None:
    """Append `data` to the file `fd`, whose offset is at its end or beyond; whole blocks of zeros become a hole.

    Blocks are counted from the start of `data`. Pieces may have any size, but a multiple of 4096 bytes gives the most
    holes. Raises OSError.
    """
    start = position = 0
    last = len(data) - _BLOCK
    while position <= last:
        if data[position] or data[position : position + _BLOCK] != _ZEROS:
            position += _BLOCK
            continue
        syscalls.write_all(fd, memoryview(data)[start:position])
        start = position
        while position <= last and data[position : position + _BLOCK] == _ZEROS:
            position += _BLOCK
        end = os.lseek(fd, position - start, os.SEEK_CUR)
        start = position
        # A hole at the end of a file exists only if the size covers it.
        if start == len(data):
            os.ftruncate(fd, end)
    syscalls.write_all(fd, memoryview(data)[start:])
