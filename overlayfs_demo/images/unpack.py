"""Unpacking of a layer tar into a directory that the kernel's overlayfs understands.

The tar is an image layer (OCI image-spec, layer.md); the directory is a lower layer in the kernel's format (Linux
Documentation/filesystems/overlayfs.rst, "whiteouts and opaque directories"). What the layer says about the layers below
(whiteouts, opaque marks) is collected and written at the end, because it applies wherever it stands in the tar. The
metadata of directories is written after that, because making a name in a directory changes its times.

An ordinary user cannot give files to another owner, so owners are recorded instead (`overlay/override_stat.py`). Nor
can such a user make devices or set `security.` and `trusted.` attributes: these are left out, counted, and reported
(`Unpacked.left_out`). Everything else is the same as for root.
"""

from __future__ import annotations

import errno
import os
import stat
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from overlayfs_demo.errors import ImageError, printable
from overlayfs_demo.images.layer_tree import BlockedError, LayerTree, prefixes
from overlayfs_demo.images.lowers import Lowers, copy_metadata, copy_node
from overlayfs_demo.images.member_data import copy_member
from overlayfs_demo.images.member_names import MemberError, member_path
from overlayfs_demo.images.tar_metadata import Metadata
from overlayfs_demo.images.tarsplit import Recorder
from overlayfs_demo.images.tarstream import TarStream
from overlayfs_demo.overlay.whiteout import IMAGE_OPAQUE, IMAGE_WHITEOUT_PREFIX, PrivateXattrs, make_whiteout

# AUFS kept its own records under names that begin like this, and layers from its time still hold them. Only the files
# of one such directory matter, because several names of the layer may be hard links to them.
_AUFS_PRIVATE = b".wh..wh."
_AUFS_LINKS = b".wh..wh.plnk"

_WRITE_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW


@dataclass(frozen=True, slots=True)
class Unpacked:
    """What was unpacked from a layer.

    `size` is in bytes, as Docker counts them: file data and the targets of symbolic links. `left_out` says what could
    not be kept, and in how many members.
    """

    size: int
    left_out: Mapping[str, int]


def unpack_layer(
    tar: TarStream,
    label: str,
    root_fd: int,
    spare_fd: int,
    lowers: Lowers,
    marks: PrivateXattrs,
    owners: bool,
    recorder: Recorder | None = None,
) -> Unpacked:
    """Unpack one layer into the empty directory `root_fd`.

    `spare_fd` is a directory on the same filesystem for temporary work; `lowers` are the layers below, to which hard
    links, whiteouts and unlisted directories refer; `marks` are the attributes that mark opaque directories; `owners`
    says whether to keep owners (needs root); `recorder`, whose tar `tar` reads, is told where the data goes. The caller
    keeps ownership of the descriptors. Raises ImageError naming `label` and the member; the directory is then
    incomplete, and the caller must remove it.
    """
    tree = LayerTree(root_fd, spare_fd)
    try:
        work = _Unpacking(tar, label, tree, lowers, marks, owners, recorder)
        work.run()
    finally:
        tree.close()
    return Unpacked(work.size, work.left_out)


class _Unpacking:
    """One run of `unpack_layer`: a method for each kind of member, and what these methods collect for the end."""

    def __init__(
        self,
        tar: TarStream,
        label: str,
        tree: LayerTree,
        lowers: Lowers,
        marks: PrivateXattrs,
        owners: bool,
        recorder: Recorder | None,
    ) -> None:
        self._tar = tar
        self._label = label
        self._tree = tree
        self._lowers = lowers
        self._marks = marks
        self._owners = owners
        self._recorder = recorder
        self._metadata = Metadata(owners)
        self.left_out = self._metadata.left_out
        self.size = 0
        self._whiteouts: set[bytes] = set()
        self._opaque: set[bytes] = set()
        # Files copied from below because a hard link names them; they stay only if this layer does not delete them.
        self._borrowed: set[bytes] = set()
        self._kinds: dict[bytes, Callable[[tarfile.TarInfo, bytes], None]] = {
            tarfile.REGTYPE: self._file,
            tarfile.AREGTYPE: self._file,
            tarfile.CONTTYPE: self._file,
            tarfile.GNUTYPE_SPARSE: self._file,
            tarfile.DIRTYPE: self._directory,
            tarfile.SYMTYPE: self._symlink,
            tarfile.LNKTYPE: self._hard_link,
            tarfile.FIFOTYPE: self._node,
            tarfile.CHRTYPE: self._node,
            tarfile.BLKTYPE: self._node,
        }

    def run(self) -> None:
        for info in self._tar:
            try:
                self._member(info)
            except MemberError as error:
                raise self._bad(info, error) from None
            except BlockedError as error:
                raise self._bad(info, MemberError(f"leads through '{printable(error.part)}', {error.why}")) from None
            except OSError as error:
                raise self._bad(info, MemberError(f"cannot be unpacked: {_words(error)}", "")) from None
        # The order matters: whiteouts and borrowed files depend on the opaque marks, and every name must be in place
        # before `_settle_directories` sets the times and modes of directories.
        try:
            if _AUFS_LINKS in self._tree.made:
                self._remove(_AUFS_LINKS)
            self._mark_opaque()
            self._write_whiteouts()
            self._return_borrowed()
            self._settle_directories()
        except OSError as error:
            raise ImageError(f"{self._label}: cannot be unpacked: {_words(error)}") from None

    def _bad(self, info: tarfile.TarInfo, error: MemberError) -> ImageError:
        return ImageError(f"{self._label}: layer member '{printable(info.name)}' {error.rule}", error.remedy)

    # --- members -----------------------------------------------------------------------------------

    def _member(self, info: tarfile.TarInfo) -> None:
        path = self._located(member_path(info.name))
        if IMAGE_WHITEOUT_PREFIX in path and self._is_mark(info, path):
            return
        kind = self._kinds.get(info.type)
        if kind is None:
            raise MemberError(f"has the unknown type '{printable(info.type)}'", "build the image with another tool")
        if not path and kind != self._directory:
            raise MemberError("is the layer's root, which must be a directory")
        kind(info, path)

    def _located(self, path: bytes) -> bytes:
        """Return the path that a name means, see `LayerTree.locate`; from here on no links are on the way to a name.

        A mark is about the layers below, and may stand where this layer has no directory (yet), so it keeps its name.
        """
        try:
            return self._tree.locate(path)
        except BlockedError:
            if path.rpartition(b"/")[2].startswith(IMAGE_WHITEOUT_PREFIX):
                return path
            raise

    def _is_mark(self, info: tarfile.TarInfo, path: bytes) -> bool:
        """Record a whiteout or an opaque mark (layer.md, "Whiteouts"); return False for an ordinary name."""
        parent, _, name = path.rpartition(b"/")
        parents = parent.split(b"/")
        if any(part.startswith(_AUFS_PRIVATE) for part in parents):
            return parents[0] != _AUFS_LINKS or not (info.isreg() or info.islnk())
        if any(part.startswith(IMAGE_WHITEOUT_PREFIX) for part in parents):
            raise MemberError("leads through a whiteout, which is not a directory", "build the image with another tool")
        if name == IMAGE_OPAQUE:
            self._opaque.add(parent)
            return True
        if name.startswith(_AUFS_PRIVATE):
            return True
        if not name.startswith(IMAGE_WHITEOUT_PREFIX):
            return False
        hidden = name.removeprefix(IMAGE_WHITEOUT_PREFIX)
        if hidden in (b"", b".", b".."):
            raise MemberError("is a whiteout without a name", "build the image with another tool")
        self._whiteouts.add(parent + b"/" + hidden if parent else hidden)
        return True

    def _directory(self, info: tarfile.TarInfo, path: bytes) -> None:
        if path not in self._tree.made:
            parent, _, name = path.rpartition(b"/")
            # Make its parents first, so that only a file at `path` itself can be in the way.
            self._tree.directory(parent)
            self._place(path, lambda dir_fd: os.mkdir(name, 0o700, dir_fd=dir_fd))
        self._tree.made[path] = info

    def _place(self, path: bytes, make: Callable[[int], None]) -> None:
        """Make a name; it replaces whatever an earlier member put there."""
        parent = path.rpartition(b"/")[0]
        try:
            make(self._tree.directory(parent))
        except FileExistsError:
            self._remove(path)
            make(self._tree.directory(parent))

    def _remove(self, path: bytes) -> None:
        """Remove what is at `path`; the recorder keeps the data that this tar has put there."""
        gone = self._tree.inside(path)
        if self._recorder is not None:
            self._recorder.keep(gone)
        self._tree.remove(path, gone)
        # What comes there next is this layer's own.
        self._borrowed.difference_update(gone)

    def _file(self, info: tarfile.TarInfo, path: bytes) -> None:
        parent, _, name = path.rpartition(b"/")
        try:
            fd = os.open(name, _WRITE_NEW, 0o600, dir_fd=self._tree.directory(parent))
        except FileExistsError:
            self._remove(path)
            fd = os.open(name, _WRITE_NEW, 0o600, dir_fd=self._tree.directory(parent))
        try:
            is_plain = info.sparse is None and info.size <= self._tar.stored
            if is_plain and self._recorder is not None and info.mode & stat.S_IRUSR:
                self._recorder.refer(path, info.size)
            copy_member(self._tar, info, fd)
            self._metadata.give(info, fd)
        finally:
            os.close(fd)
        self.size += info.size

    def _symlink(self, info: tarfile.TarInfo, path: bytes) -> None:
        name = path.rpartition(b"/")[2]
        target = info.linkname.encode("utf-8", "surrogateescape")
        if b"\0" in target:
            raise MemberError("links to an invalid name")
        self._place(path, lambda dir_fd: os.symlink(target, name, dir_fd=dir_fd))
        self.size += len(target)
        self._metadata.give_name(info, self._tree.directory(path.rpartition(b"/")[0]), name)

    def _node(self, info: tarfile.TarInfo, path: bytes) -> None:
        """Make a fifo or a device. A character device 0:0 is a whiteout: layers made from an upper hold them."""
        name = path.rpartition(b"/")[2]
        device = 0
        if not info.isfifo():
            if not (0 <= info.devmajor < 1 << 12 and 0 <= info.devminor < 1 << 20):
                raise MemberError(f"has an invalid device number: {info.devmajor}:{info.devminor}")
            device = os.makedev(info.devmajor, info.devminor)
            if info.ischr() and device == 0:
                self._whiteouts.add(path)
                return
        kind = stat.S_IFIFO if info.isfifo() else stat.S_IFCHR if info.ischr() else stat.S_IFBLK
        try:
            self._place(path, lambda dir_fd: os.mknod(name, kind | 0o600, device, dir_fd=dir_fd))
        except PermissionError:
            if self._owners:
                raise
            self.left_out["devices, which only root may create"] += 1
            return
        self._metadata.give_name(info, self._tree.directory(path.rpartition(b"/")[0]), name)

    def _hard_link(self, info: tarfile.TarInfo, path: bytes) -> None:
        target = self._tree.locate(member_path(info.linkname, f"links to '{printable(info.linkname)}', which "))
        if not target:
            raise MemberError("is a hard link to the layer's root, which is a directory")
        source_parent, _, source = target.rpartition(b"/")
        name = path.rpartition(b"/")[2]
        if self._tree.status(target) is None:
            self._borrow(target)
        if path == target:
            return

        def link(dir_fd: int) -> None:
            # Opened only now, because the new name may replace the very directory that holds the target.
            source_fd = self._tree.directory(source_parent, create=False)
            os.link(source, name, src_dir_fd=source_fd, dst_dir_fd=dir_fd, follow_symlinks=False)

        self._place(path, link)

    def _borrow(self, target: bytes) -> None:
        """Copy the target of a hard link up from the layers below to its own name, so that both names are one file."""
        found = self._lowers.open(target)
        if found is None:
            raise MemberError(f"is a hard link to '{printable(target)}', which neither this layer nor one below has")
        try:
            if stat.S_ISDIR(os.fstat(found).st_mode):
                raise MemberError(f"is a hard link to the directory '{printable(target)}'")
            parent, _, name = target.rpartition(b"/")
            copy_node(found, self._tree.directory(parent), name, self._owners)
        finally:
            os.close(found)
        self._borrowed.add(target)

    # --- marks, and metadata of directories --------------------------------------------------------

    def _mark_opaque(self) -> None:
        """Set the opaque attribute on directories with an opaque mark, or with a whiteout of the same name."""
        if b"" in self._opaque:
            # The kernel merges the roots of all layers, whatever their attributes say.
            self._opaque.remove(b"")
            self._whiteouts |= self._lowers.top_names()
        for path in self._opaque:
            self._enter(path)
        self._opaque |= self._whiteouts & self._tree.made.keys()
        for path in self._opaque & self._tree.made.keys():
            try:
                os.setxattr(self._tree.directory(path), self._marks.opaque, b"y")
            except OSError as error:
                raise ImageError(
                    f"{self._label}: '{printable(path)}' cannot be marked opaque "
                    f"({self._marks.opaque}: {error.strerror})",
                    "unpack on a filesystem with extended attributes, or with --userxattr if you are not root",
                ) from None

    def _write_whiteouts(self) -> None:
        """Write the whiteouts that hide something, parents first, because a hidden parent hides everything in it.

        Any other whiteout would do harm: if no layer below has the directory, the kernel does not merge it, and lists a
        name that cannot be looked up.
        """
        for path in sorted(self._whiteouts - self._tree.made.keys()):
            parent, _, name = path.rpartition(b"/")
            if not self._enter(parent, create=False) or not self._lowers.shows(path):
                continue
            if any(prefix in self._opaque for prefix in prefixes(parent)):
                continue
            self._enter(parent)
            if path in self._borrowed:
                self._remove(path)
            if self._tree.status(path) is None:
                make_whiteout(self._tree.directory(parent), name)

    def _return_borrowed(self) -> None:
        """Remove what only a hard link needed: files of a directory whose contents this layer deletes."""
        for path in sorted(self._borrowed):
            if any(prefix in self._opaque for prefix in prefixes(path.rpartition(b"/")[0])):
                self._remove(path)

    def _enter(self, directory: bytes, create: bool = True) -> bool:
        """Make sure that a mark's directory exists; return False if this layer has something else in its place."""
        try:
            self._tree.directory(directory, create)
        except FileNotFoundError:
            return True
        except OSError as error:
            if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                raise
            return False
        return True

    def _settle_directories(self) -> None:
        """Give every directory its metadata, the deepest first, because a mode may forbid entering.

        A directory that no member describes gets the metadata that it has in the layers below, or root's and mode 0755.
        """
        for path in sorted(self._tree.made, reverse=True):
            info = self._tree.made[path]
            fd = self._tree.directory(path)
            if info is not None:
                self._before_mode(path, info.mode)
                try:
                    self._metadata.give(info, fd)
                except MemberError as error:
                    raise self._bad(info, error) from None
                continue
            below = self._lowers.open(path)
            if below is None:
                self._metadata.give_default(fd)
                continue
            try:
                mode = os.fstat(below).st_mode
                if stat.S_ISDIR(mode):
                    self._before_mode(path, mode)
                    parent, _, name = path.rpartition(b"/")
                    copy_metadata(below, self._tree.directory(parent) if path else fd, name or b".", self._owners)
                else:
                    self._metadata.give_default(fd)
            finally:
                os.close(below)

    def _before_mode(self, path: bytes, mode: int) -> None:
        """Let the recorder keep the contents of a directory whose mode will not let its owner enter."""
        if self._recorder is not None and not mode & stat.S_IXUSR:
            self._recorder.keep(self._tree.inside(path))


def _words(error: OSError) -> str:
    return error.strerror or str(error)
