"""How does what an upper holds become the tar of a layer, and a whole view the tar of a tree?

A layer's tar is the difference of two views, without the upper and with it (OCI image-spec, layer.md): what
the upper has a say in is a member, what it hides is a whiteout, `.wh.NAME`, before the names beside it. The
views are compared and not the upper's files, because an upper has words that a tar lacks: a renamed directory
brings its lower parts along, a metacopy has its data below, a hard link may stand in the index alone.

The same upper gives the same bytes: members are in order of their names, and nothing of this host is in them.
"""

from __future__ import annotations

import io
import os
import stat
import tarfile
from dataclasses import replace
from typing import BinaryIO, cast

from overlayfs_demo.errors import ImageError
from overlayfs_demo.images.model import shown
from overlayfs_demo.images.views import find, in_upper, is_another, opened
from overlayfs_demo.overlay.engine import Overlay
from overlayfs_demo.overlay.handle import Handle
from overlayfs_demo.overlay.node import DirNode, FileNode, Node
from overlayfs_demo.overlay.stack import Stack
from overlayfs_demo.overlay.types import Attrs, Caller
from overlayfs_demo.overlay.whiteout import IMAGE_OPAQUE, IMAGE_WHITEOUT_PREFIX

_ROOT = Caller(0, 0)
_SECOND = 1_000_000_000
_TYPES = {
    stat.S_IFREG: tarfile.REGTYPE, stat.S_IFDIR: tarfile.DIRTYPE, stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE, stat.S_IFCHR: tarfile.CHRTYPE, stat.S_IFBLK: tarfile.BLKTYPE,
}


def write_layer(stack: Stack, out: BinaryIO, newest: int | None = None) -> None:
    """Write what the upper of `stack` changes on its lowers. Nothing is changed, and the upper may be in use.

    Times after `newest` (seconds since 1970, as SOURCE_DATE_EPOCH has it) are written as that. Raises OSError,
    and ImageError for a name that a layer cannot have.
    """
    lowers = replace(stack, upper=None, work=None)
    with opened(lowers) as before, opened(stack) as after:
        _Writer(after, out, newest).difference(before)


def write_tree(stack: Stack, out: BinaryIO, newest: int | None = None) -> None:
    """Write all that the view of `stack` shows, as `docker export` does; otherwise like `write_layer`."""
    with opened(stack) as view:
        _Writer(view, out, newest).everything()


class _Writer:
    """Writes one tar. Paths are bytes without a leading slash."""

    def __init__(self, view: Overlay, out: BinaryIO, newest: int | None) -> None:
        self._view = view
        self._newest = newest
        self._tar = tarfile.open(  # noqa: SIM115 - closed by `difference` and `everything`
            fileobj=out, mode="w|", format=tarfile.PAX_FORMAT, encoding="utf-8", errors="surrogateescape"
        )
        # The name under which each file of several names was written, by inode number.
        self._written: dict[int, bytes] = {}

    def difference(self, before: Overlay) -> None:
        """All that the view has more, other, or less than `before`."""
        with self._tar:
            old = before.attrs(before.root)
            self._root_unless((old.mode, old.uid, old.gid))
            self._inside(b"", before, before.root, self._view.root)

    def everything(self) -> None:
        """All that the view has."""
        with self._tar:
            self._root_unless((stat.S_IFDIR | 0o755, 0, 0))
            self._inside(b"", self._view, None, self._view.root)

    def _root_unless(self, expected: tuple[int, int, int]) -> None:
        """Write the root itself, which tars mostly lack, unless its mode and owner are so. Its time is nobody's."""
        attrs = self._view.attrs(self._view.root)
        if (attrs.mode, attrs.uid, attrs.gid) != expected:
            self._member(b"./", self._view.root, attrs)

    def _inside(self, path: bytes, before: Overlay, old: DirNode | None, new: DirNode) -> None:
        """The members of a directory; all of it is written where there is none before, or another one."""
        names = sorted(self._view.names(new).names)
        if old is not None:
            if is_another(old, new):
                self._mark(path + IMAGE_OPAQUE)
                old = None
            else:
                for name in sorted(set(before.names(old).names) - set(names)):
                    self._mark(path + IMAGE_WHITEOUT_PREFIX + name)
        for name in names:
            if name.startswith(IMAGE_WHITEOUT_PREFIX):
                raise ImageError(
                    f"'/{shown(path + name)}' cannot be in a layer, where names with '.wh.' delete others", "rename it"
                )
            node, attrs = self._view.lookup(new, name)
            found = find(before, old, name)
            if found is None or in_upper(node):
                self._member(path + name, node, attrs)
                if isinstance(node, DirNode):
                    same = found[0] if found is not None and isinstance(found[0], DirNode) else None
                    self._inside(path + name + b"/", before, same, node)

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
        if stat.S_ISSOCK(attrs.mode):
            return  # No tar has sockets; a program that wants one makes it.
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
            self._view.release(node, handle)

    def _xattrs(self, node: Node) -> dict[str, str]:
        """As libarchive, GNU tar and Go write them."""
        return {
            f"SCHILY.xattr.{name}": self._view.xattr(node, name).decode("utf-8", "surrogateescape")
            for name in sorted(self._view.xattrs(node, _ROOT))
        }


class _Data(io.RawIOBase):
    """The data of an open file, from its beginning."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        self._at = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]  # any writable buffer
        count = self._handle.read_into(memoryview(buffer), self._at)
        self._at += count
        return count
