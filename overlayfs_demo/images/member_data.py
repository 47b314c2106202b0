"""The data of a member of a tar, written to a file.

A sparse member (GNU tar manual, "Storing Sparse Files") is a few stretches of data and the size of the whole file.
"""

from __future__ import annotations

import os
import tarfile

from overlayfs_demo.images.member_names import MemberError
from overlayfs_demo.images.tarstream import TarStream

_LARGEST_FILE = (1 << 63) - 1  # off_t


def copy_member(tar: TarStream, info: tarfile.TarInfo, fd: int) -> None:
    """Write the data of the current member, which no one has read from yet, to the empty file `fd`; keep its holes.

    Raises MemberError, ImageError if the tar is damaged, OSError.
    """
    if info.sparse is not None:
        _copy_sparse(tar, info, fd)
    elif info.size <= tar.stored:
        tar.copy(info.size, fd)
    else:
        raise MemberError("claims to be longer than its data")


def _copy_sparse(tar: TarStream, info: tarfile.TarInfo, fd: int) -> None:
    stretches: list[tuple[int, int]] = list(info.sparse)  # type: ignore[arg-type]
    while stretches and stretches[-1] == (0, 0):
        stretches.pop()  # tarfile takes the unused places of an old GNU header for stretches.
    ends = [0, *(offset + size for offset, size in stretches)]
    # Stretches must be in order and must not overlap, as Go's archive/tar requires.
    sound = all(end <= offset and size >= 0 for end, (offset, size) in zip(ends, stretches, strict=False))
    if info.size > _LARGEST_FILE:
        raise MemberError(f"has an invalid size: {info.size}")
    if not sound or ends[-1] > info.size or sum(size for _, size in stretches) > tar.stored:
        raise MemberError("has a sparse map that does not fit its size")
    for offset, size in stretches:
        os.lseek(fd, offset, os.SEEK_SET)
        tar.copy(size, fd)
    os.ftruncate(fd, info.size)
