"""Copying one file's data to another, as cheaply as the filesystem allows."""

from __future__ import annotations

import errno
import os

from overlayfs_demo.linux import syscalls

# In bytes: the most to request in one copy_file_range(2), and in one read where that cannot be used.
_CHUNK = 1 << 30
_BUFFER = 1 << 20


def copy_data(source: int, target: int, size: int) -> None:
    """Copy the first `size` bytes. Share blocks where the filesystem can, and keep holes.

    `target` is open for writing and holds no data yet; it is extended if it is shorter. Raises OSError, most often
    ENOSPC.
    """
    if size == os.fstat(source).st_size and syscalls.clone_file(source, target):
        return
    offset = 0
    while offset < size:
        try:
            start = os.lseek(source, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                break
            raise
        end = min(os.lseek(source, start, os.SEEK_HOLE), size)
        while start < end:
            done = _copy_range(source, target, start, min(end - start, _CHUNK))
            if not done:
                break
            start += done
        offset = max(end, start)
    if os.fstat(target).st_size < size:
        os.ftruncate(target, size)


def _copy_range(source: int, target: int, offset: int, count: int) -> int:
    try:
        return os.copy_file_range(source, target, count, offset, offset)
    except OSError as error:
        # The files are on different filesystems, or the kernel cannot copy on this one.
        if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
    return os.pwrite(target, os.pread(source, min(count, _BUFFER), offset), offset)
