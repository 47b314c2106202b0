"""How do two layers differ at one path, and what data does a file hold?"""

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
from overlayfs_demo.linux import syscalls

_BLOCK = 1 << 18  # bytes
_ZEROS = bytes(_BLOCK)


class Difference(enum.Enum):
    """How two objects of one path differ."""

    NONE = "the same"
    METADATA = "the same data, other metadata"
    CONTENT = "other data, or another kind of file"


def difference(place: Place, old: int, new: int) -> Difference:
    """How the objects of two layers, given by their numbers, differ at a path. Raises ImageError.

    Metadata is the owner, the mode, the extended attributes that are not the overlay's own, and, but for
    directories, the time of the last change: a directory's is another as soon as a name in it is.
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
    """The data of an open file in blocks, each with its offset, all but those of zeros. Raises OSError.

    Files of one size have the same data exactly if these are the same, wherever their holes are. Holes are skipped,
    not read: lseek(2), SEEK_DATA.
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
        offset += _BLOCK


def _same_data(place: Place, old: int, new: int) -> bool:
    with ExitStack() as stack:
        opened = []
        for number in (old, new):
            opened.append(place.open(number, os.O_RDONLY))
            stack.callback(os.close, opened[-1])
        return all(one == other for one, other in zip_longest(*map(blocks, opened)))


def _link(place: Place, number: int) -> bytes:
    fd = place.open(number, os.O_PATH)
    try:
        return os.readlink(b"", dir_fd=fd)
    finally:
        os.close(fd)


def _attributes(place: Place, number: int) -> dict[str, bytes]:
    """The extended attributes that are a part of the image; of symbolic links, none is (see `copy_metadata`)."""
    if stat.S_ISLNK(place.things[number].mode):
        return {}
    fd = place.open(number, os.O_PATH)
    try:
        real = syscalls.fd_path(fd)
        names = syscalls.list_xattrs(real, follow=True)
        return {name: os.getxattr(real, name) for name in names if not os.fsencode(name).startswith(PRIVATE_XATTRS)}
    finally:
        os.close(fd)
