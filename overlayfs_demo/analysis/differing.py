"""The difference between two layers at one path, and the data blocks of a file."""

from __future__ import annotations

import enum
import errno
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import zip_longest

from overlayfs_demo.analysis.inventory import unreadable
from overlayfs_demo.analysis.layer_walk import Place
from overlayfs_demo.images.lowers import PRIVATE_XATTRS
from overlayfs_demo.linux import proc, xattr

_BLOCK = 1 << 18  # bytes
_ZEROS = bytes(_BLOCK)


class Difference(enum.Enum):
    """How two objects at one path differ."""

    NONE = "the same"
    METADATA = "same data, different metadata"
    CONTENT = "different data or file type"


def difference(place: Place, old: int, new: int) -> Difference:
    """Return how the objects that two layers, given by number, have at a path differ. Raises ImageError.

    Metadata is the owner, the mode, the extended attributes that are not the overlay's own, and the modification
    time, except for directories: a directory's time changes with every name that is added or removed in it.
    """
    if old == new:
        return Difference.NONE
    was, now = place.things[old], place.things[new]
    if stat.S_IFMT(was.mode) != stat.S_IFMT(now.mode) or (was.size, was.device) != (now.size, now.device):
        return Difference.CONTENT
    try:
        if was.regular and was.size and not _same_data(place, old, new):
            return Difference.CONTENT
        if stat.S_ISLNK(was.mode) and _link(place, old) != _link(place, new):
            return Difference.CONTENT
        if (was.mode, was.uid, was.gid) != (now.mode, now.uid, now.gid):
            return Difference.METADATA
        if was.mtime_ns != now.mtime_ns and not was.directory:
            return Difference.METADATA
        return Difference.NONE if _attributes(place, old) == _attributes(place, new) else Difference.METADATA
    except OSError as error:
        raise unreadable(place.label(new), place.path, error) from None


def blocks(fd: int) -> Iterator[tuple[int, bytes]]:
    """Yield the blocks of an open file that are not all zeros, each with its offset. Raises OSError.

    Two files of the same size have the same data if and only if these blocks are the same, wherever their holes are.
    Holes are skipped and not read: lseek(2), SEEK_DATA.
    """
    offset = 0
    while True:
        try:
            offset = max(offset, os.lseek(fd, offset, os.SEEK_DATA) // _BLOCK * _BLOCK)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return
        data = os.pread(fd, _BLOCK, offset)
        if data != _ZEROS[: len(data)]:
            yield offset, data
        if len(data) < _BLOCK:
            return
        offset += _BLOCK


def _same_data(place: Place, old: int, new: int) -> bool:
    with ExitStack() as stack:
        opened = []
        for number in (old, new):
            opened.append(place.open(number, os.O_RDONLY))
            stack.callback(os.close, opened[-1])
        return all(old_block == new_block for old_block, new_block in zip_longest(*map(blocks, opened)))


def _link(place: Place, number: int) -> bytes:
    fd = place.open(number, os.O_PATH)
    try:
        return os.readlink(b"", dir_fd=fd)
    finally:
        os.close(fd)


def _attributes(place: Place, number: int) -> dict[str, bytes]:
    """Return the extended attributes that belong to the image; symbolic links have none (see `copy_metadata`)."""
    if stat.S_ISLNK(place.things[number].mode):
        return {}
    fd = place.open(number, os.O_PATH)
    try:
        real = proc.fd_path(fd)
        names = xattr.names(real, follow=True)
        return {name: os.getxattr(real, name) for name in names if not os.fsencode(name).startswith(PRIVATE_XATTRS)}
    finally:
        os.close(fd)
