"""Copying one file's data to another, as cheaply as the filesystem allows."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from overlayfs_demo.linux import syscalls

# In bytes: the most to request in one copy_file_range(2), and in one read where that cannot be used. A request is a
# step, see `copy_data`; on a slow disk it takes some hundredths of a second.
_CHUNK = 1 << 23
_BUFFER = 1 << 20
# In bytes: up to this size, reading and writing takes half as long as asking the filesystem for a better way.
_SMALL = 1 << 15


def copy_data(source: int, target: int, size: int, before_step: Callable[[], None] = lambda: None) -> None:
    """Copy the first `size` bytes. Share blocks where the filesystem can, and keep holes.

    `target` is open for writing and holds no data yet; it is extended if it is shorter. `before_step` is called before
    each short step of a long copy, and may end the copy by raising an error. Raises OSError, most often ENOSPC.
    """
    status = os.fstat(source)
    if size <= _SMALL and status.st_blocks * 512 >= status.st_size:  # Without holes.
        end = _copy_piece(_copy_by_hand, source, target, 0, size)
    elif size == status.st_size and syscalls.clone_file(source, target):
        return
    else:
        _copy_pieces(source, target, size, before_step)
        end = os.fstat(target).st_size
    if end < size:
        os.ftruncate(target, size)


def _copy_pieces(source: int, target: int, size: int, before_step: Callable[[], None]) -> None:
    """Copy what lies between the holes."""

    def copy_step(source: int, target: int, offset: int, count: int) -> int:
        before_step()
        return _copy_range(source, target, offset, count)

    offset = 0
    while offset < size:
        try:
            start = os.lseek(source, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                break
            raise
        end = min(os.lseek(source, start, os.SEEK_HOLE), size)
        offset = max(end, _copy_piece(copy_step, source, target, start, end))


def _copy_piece(copy: Callable[[int, int, int, int], int], source: int, target: int, start: int, end: int) -> int:
    """Copy the bytes from `start` to `end` by several calls of `copy`. Return where the data ended, if before."""
    while start < end:
        done = copy(source, target, start, min(end - start, _CHUNK))
        if not done:
            break
        start += done
    return start


def _copy_range(source: int, target: int, offset: int, count: int) -> int:
    try:
        return os.copy_file_range(source, target, count, offset, offset)
    except OSError as error:
        # The files are on different filesystems, or the kernel cannot copy on this one.
        if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
    return _copy_by_hand(source, target, offset, count)


def _copy_by_hand(source: int, target: int, offset: int, count: int) -> int:
    return os.pwrite(target, os.pread(source, min(count, _BUFFER), offset), offset)
