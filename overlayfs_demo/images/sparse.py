"""How is data written so that its zeros take no room on the disk?

An archive of a few megabytes may unpack to gigabytes of zeros. Their blocks are left out of the file, as holes:
lseek(2), "Seeking file data and holes".
"""

from __future__ import annotations

import os

_BLOCK = 4096  # bytes: the smallest hole that common filesystems can keep
_ZEROS = bytes(_BLOCK)


def write_sparse(fd: int, data: bytes) -> None:
    """Append `data` to the file `fd`, whose offset is at its end or beyond; whole blocks of zeros become a hole.

    Blocks are counted from the start of `data`. Pieces may have any size, but holes are best in those of a multiple
    of 4096 bytes. Raises OSError.
    """
    start = position = 0
    last = len(data) - _BLOCK
    while position <= last:
        if data[position] or data[position : position + _BLOCK] != _ZEROS:
            position += _BLOCK
            continue
        _write(fd, memoryview(data)[start:position])
        start = position
        while position <= last and data[position : position + _BLOCK] == _ZEROS:
            position += _BLOCK
        end = os.lseek(fd, position - start, os.SEEK_CUR)
        start = position
        if start == len(data):
            os.ftruncate(fd, end)
    _write(fd, memoryview(data)[start:])


def _write(fd: int, data: memoryview) -> None:
    while data:
        data = data[os.write(fd, data) :]
