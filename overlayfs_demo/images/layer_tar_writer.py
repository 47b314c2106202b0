"""Writer of an upper as the tar of a layer, and of a whole view as the tar of a tree.

A layer's tar is the difference of two views, without the upper and with it (OCI image-spec, layer.md), as `changes`
finds it: what the upper holds becomes a member, and what it hides becomes a whiteout, `.wh.NAME`, before the other
names of the directory.

The same upper gives the same bytes, because members are sorted by name and hold nothing of this host.
"""

from __future__ import annotations

import io
import os
import stat
import tarfile
from typing import BinaryIO, cast

from overlayfs_demo.errors import ImageError, printable
from overlayfs_demo.images.upper_diff import Differences, compared, root_differs
from overlayfs_demo.images.view_compare import opened
from overlayfs_demo.overlay.engine import Overlay
from overlayfs_demo.overlay.handle import Handle
from overlayfs_demo.overlay.node import FileNode, Node
from overlayfs_demo.overlay.stack import Stack
from overlayfs_demo.overlay.types import Attrs, Caller
from overlayfs_demo.overlay.whiteout import IMAGE_OPAQUE, IMAGE_WHITEOUT_PREFIX

_ROOT = Caller(0, 0)
# Mode, owner, group.
_USUAL_ROOT = stat.S_IFDIR | 0o755, 0, 0
_SECOND = 1_000_000_000
_TYPES = {
    stat.S_IFREG: tarfile.REGTYPE,
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE,
    stat.S_IFCHR: tarfile.CHRTYPE,
    stat.S_IFBLK: tarfile.BLKTYPE,
}


def write_layer(stack: Stack, out: BinaryIO, newest: int | None = None) -> None:
    """Write the changes that the upper of `stack` makes to its lowers. The stack is only read; the upper may be in use.

    Times after `newest` (seconds since 1970, like SOURCE_DATE_EPOCH) are written as `newest`. Raises OSError, and
    ImageError for a name that a layer cannot have.
    """
    with compared(stack) as (before, after):
        _Writer(after, out, newest).difference(before)


def write_tree(stack: Stack, out: BinaryIO) -> None:
    """Write everything that the view of `stack` shows, as `docker export` does; otherwise like `write_layer`."""
    with opened(stack) as view:
        _Writer(view, out).everything()


class _Writer:
    """Writer of one tar. Paths are bytes without a leading slash."""

    def __init__(self, view: Overlay, out: BinaryIO, newest: int | None = None) -> None:
        self._view = view
        self._newest = newest
        self._tar = tarfile.open(  # noqa: SIM115 - closed by `difference` and `everything`
            fileobj=out, mode="w|", format=tarfile.PAX_FORMAT, encoding="utf-8", errors="surrogateescape"
        )
        # The name under which each file with several names was written, keyed by inode number.
        self._written: dict[int, bytes] = {}

    def difference(self, before: Overlay) -> None:
        """Write everything that the view adds to, changes in or removes from `before`."""
        with self._tar:
            if root_differs(before, self._view):
                self._root()
            self._inside(b"", Differences(before, before.root, self._view, self._view.root))

    def everything(self) -> None:
        """Write everything in the view."""
        with self._tar:
            attrs = self._view.attrs(self._view.root)
            # Most tars do not list the root; it then gets the metadata of `_USUAL_ROOT`.
            if (attrs.mode, attrs.uid, attrs.gid) != _USUAL_ROOT:
                self._root()
            self._inside(b"", Differences(self._view, None, self._view, self._view.root))

    def _root(self) -> None:
        self._member(b"./", self._view.root, self._view.attrs(self._view.root))

    def _inside(self, path: bytes, found: Differences) -> None:
        """Write the members of a directory, after marks for the names that it no longer has."""
        if found.opaque:
            self._mark(path + IMAGE_OPAQUE)
        for name in found.whiteouts:
            self._mark(path + IMAGE_WHITEOUT_PREFIX + name)
        for member in found.members():
            if member.name.startswith(IMAGE_WHITEOUT_PREFIX):
                raise ImageError(
                    f"'/{printable(path + member.name)}' cannot be in a layer, where names with '.wh.' mean deletions",
                    "rename it",
                )
            self._member(path + member.name, member.node, member.attrs)
            if member.below is not None:
                self._inside(path + member.name + b"/", member.below)

    def _mark(self, path: bytes) -> None:
        self._tar.addfile(self._info(path, stat.S_IFREG, 0))

    def _info(self, path: bytes, mode: int, mtime_ns: int) -> tarfile.TarInfo:
        info = tarfile.TarInfo(path.decode("utf-8", "surrogateescape"))
        info.type, info.mode = _TYPES[stat.S_IFMT(mode)], stat.S_IMODE(mode)
        info.mtime, part = divmod(mtime_ns, _SECOND)
        if self._newest is not None and info.mtime >= self._newest:
            info.mtime, part = self._newest, 0
        if part:
            whole, part = divmod(abs(mtime_ns), _SECOND)
            info.pax_headers = {"mtime": f"{'-' if mtime_ns < 0 else ''}{whole}.{part:09}"}
        return info

    def _member(self, path: bytes, node: Node, attrs: Attrs) -> None:
        info = self._info(path, attrs.mode, attrs.mtime_ns)
        info.uid, info.gid = attrs.uid, attrs.gid
        if attrs.nlink > 1 and not node.is_directory:
            first = self._written.setdefault(attrs.ino, path)
            if first != path:
                info.type, info.linkname = tarfile.LNKTYPE, first.decode("utf-8", "surrogateescape")
                self._tar.addfile(info)
                return
        info.pax_headers = {**info.pax_headers, **self._xattrs(node)}
        info.devmajor, info.devminor = os.major(attrs.rdev), os.minor(attrs.rdev)
        if info.issym():
            info.linkname = self._view.readlink(node).decode("utf-8", "surrogateescape")
        if not info.isreg():
            self._tar.addfile(info)
            return
        info.size = attrs.size
        assert isinstance(node, FileNode)
        handle = self._view.open(node, os.O_RDONLY, _ROOT)
        try:
            self._tar.addfile(info, cast(BinaryIO, io.BufferedReader(_Data(handle), 1 << 18)))
        finally:
            self._view.files.release(node, handle)

    def _xattrs(self, node: Node) -> dict[str, str]:
        """Return the extended attributes as libarchive, GNU tar and Go write them."""
        return {
            f"SCHILY.xattr.{name}": self._view.xattr(node, name).decode("utf-8", "surrogateescape")
            for name in sorted(self._view.xattrs(node, _ROOT))
        }


class _Data(io.RawIOBase):
    """The data of an open file, from its start."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        self._at = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]  # any writable buffer
        count = self._handle.read_into(memoryview(buffer), self._at)
        self._at += count
        return count
