"""How is the data of one file copied to another, as cheaply as the filesystem allows?"""

from __future__ import annotations

import errno
import os

from overlayfs_demo.linux import syscalls

# Bytes: the most that is asked of one copy_file_range(2), and of one read where that cannot be used.
_CHUNK = 1 << 30
_BUFFER = 1 << 20


def copy_data(source: int, target: int, size: int) -> None:
    """Copy the first `size` bytes, sharing blocks where the filesystem can and keeping holes.

    `target` is open for writing and holds no data yet; it is extended if it is shorter. Raises OSError, above all
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
        # Two filesystems, or one that offers no copying in the kernel.
        if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
    return os.pwrite(target, os.pread(source, min(count, _BUFFER), offset), offset)
