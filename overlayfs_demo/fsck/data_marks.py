"""Metacopies: files of the upper whose data is in a lower layer (overlayfs.rst, "Metadata only copy up")."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from functools import partial

from overlayfs_demo.fsck.finding import Finding
from overlayfs_demo.fsck.lower_view import LowerView
from overlayfs_demo.fsck.marked import Marked
from overlayfs_demo.fsck.marks import redirected
from overlayfs_demo.linux import syscalls
from overlayfs_demo.overlay.node import DirNode, FileNode

# The shortest value of the mark that is not empty: fs/overlayfs/overlayfs.h, OVL_METACOPY_MIN_SIZE, in bytes.
_HEAD = 4
_PUNCH_HOLE = 2  # FALLOC_FL_PUNCH_HOLE, fallocate(2)


def metacopies(found: Marked, names: frozenset[str], below: DirNode | None, lowers: LowerView) -> Iterator[Finding]:
    """Find a metacopy without data below it, with data of its own, or with an invalid mark."""
    attribute = found.xattrs.metacopy
    if attribute not in names or not stat.S_ISREG(found.status.st_mode):
        return
    has_own = _has_data(found)
    if not _has_lower_data(found, below, lowers):
        own = "its own data is whole or half" if has_own else "it has none of its own"
        then = "its own data is then shown" if has_own else "the file then reads as zeros, and must be restored"
        yield Finding(
            "metacopy-without-data",
            found.shown,
            f"its mark {attribute} says that its data is in a layer below, where it is not, and {own}, so that it "
            f"cannot be opened; the repair removes the mark: {then}",
            partial(found.remove, attribute),
        )
        return
    if 0 < len(found.get(attribute) or b"") < _HEAD:
        yield Finding(
            "invalid-metacopy",
            found.shown,
            f"the value of its mark {attribute} is too short, so that it cannot be opened; the repair makes it empty, "
            "which means the data below",
            partial(found.set, attribute, b""),
        )
    if has_own:
        yield Finding(
            "half-copied-data",
            found.shown,
            "it holds data that an interrupted copy left, although its mark says that the data below counts, so that "
            "it takes space which nothing shows; the repair releases it",
            partial(_release, found),
        )


def _has_lower_data(found: Marked, below: DirNode | None, lowers: LowerView) -> bool:
    value = found.get(found.xattrs.redirect)
    target = found.name if value is None else value.partition(b"\0")[0]
    node = redirected(target, below, lowers)
    if isinstance(node, FileNode) and node.kind == stat.S_IFREG:
        return not node.metacopy or node.data is not None
    return target.startswith(b"/") and lowers.has_data(target)


def _has_data(found: Marked) -> bool:
    fd = found.open(os.O_RDONLY)
    try:
        os.lseek(fd, 0, os.SEEK_DATA)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return False
    finally:
        os.close(fd)
    return True


def _release(found: Marked) -> None:
    """Make the whole file a hole. Its size and its time of modification stay."""
    fd = found.open(os.O_RDWR)
    try:
        status = os.fstat(fd)
        syscalls.allocate(fd, _PUNCH_HOLE | syscalls.FALLOC_FL_KEEP_SIZE, 0, status.st_size)
        os.utime(fd, ns=(status.st_atime_ns, status.st_mtime_ns))
    finally:
        os.close(fd)
