"""Which copy do all names of a hard-linked lower file share, and how many names are there?

The kernel's overlayfs answers with `index=on` (Linux Documentation/filesystems/overlayfs.rst, "Index", and
fs/overlayfs/copy_up.c): the one copy stands in `index` in the work directory, named after the lower file's
handle. Names in the upper are hard links to it; a name that only a lower has leads to it by that handle.
How many names the view has is kept on the copy, in `overlay.nlink`, as the difference to the copy's own
count of names, of which the index is one.
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from overlayfs_demo import syscalls
from overlayfs_demo.overlay.layer import Descriptor, Layer, LayerDir, UpperDir
from overlayfs_demo.overlay.origin import Origins
from overlayfs_demo.overlay.whiteout import PrivateXattrs
from overlayfs_demo.overlay.workdir import inherit_nothing

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NLINK = re.compile(rb"([UL])([+-]\d{1,9})\0?")


class IndexDir(UpperDir):
    """The directory of the copies: on the upper's filesystem, but no part of its tree."""

    __slots__ = ("_held",)

    def __init__(self, layer: Layer, fd: int) -> None:
        super().__init__(layer, None, b"")
        self._held = Descriptor(fd)

    def open(self) -> Descriptor:
        return self._held


class Entry(NamedTuple):
    """One copy in the index: the file's place, its name there, and its status."""

    place: IndexDir
    name: bytes
    status: os.stat_result


class Index:
    """The index of one mount. It is opened if it is there, and made when first needed."""

    __slots__ = ("_directory", "_layer", "_origins", "_path", "_read_only", "_xattrs")

    def __init__(
        self, layer: Layer, work: bytes, origins: Origins, xattrs: PrivateXattrs, read_only: bool = False
    ) -> None:
        """`layer` is the upper, `work` the path of the mount's work directory, perhaps of another mount's."""
        self._layer = layer
        self._path = os.path.join(work, b"index")
        self._origins = origins
        self._xattrs = xattrs
        self._read_only = read_only
        self._directory: IndexDir | None = None
        if os.path.isdir(self._path):
            directory = self.directory()
            if not read_only:
                self._remove_orphans(directory)

    def directory(self) -> IndexDir:
        """The index, which is made if need be."""
        if self._directory is None:
            os.makedirs(self._path, mode=0o700, exist_ok=True)
            self._directory = IndexDir(self._layer, os.open(self._path, _DIRECTORY))
            if not self._read_only:
                inherit_nothing(self._directory.open().fd)
        return self._directory

    def find(self, origin: bytes) -> Entry | None:
        """The copy of the lower file with this origin, if there is one."""
        if self._directory is None:
            return None
        name = entry_name(origin)
        status = self._directory.stat(name)
        return Entry(self._directory, name, status) if status is not None else None

    def links(self, entry: Entry, lower_links: int | None = None) -> int:
        """How many names the view has for the file; `lower_links` is the lower file's count, if it is at hand.

        Where nothing sound is noted, as many as the copy itself has beside the index (ovl_get_nlink).
        """
        path = syscalls.path_of(entry.place.open().fd, entry.name)
        match = _NLINK.fullmatch(syscalls.get_xattr(path, self._xattrs.nlink) or b"")
        if match is not None:
            relative_to = entry.status.st_nlink if match[1] == b"U" else lower_links
            if relative_to is None:
                relative_to = self._lower_links(path)
            if relative_to is not None and relative_to + int(match[2]) >= 0:
                return relative_to + int(match[2])
        return entry.status.st_nlink - 1

    def is_metacopy(self, entry: Entry) -> bool:
        """Does the copy hold metadata only?"""
        path = syscalls.path_of(entry.place.open().fd, entry.name)
        return syscalls.get_xattr(path, self._xattrs.metacopy) is not None

    def take(self, work_fd: int, temporary: bytes, origin: bytes, links: int) -> Entry:
        """Publish a finished copy, `temporary` in `work_fd`, of a lower file with so many names."""
        directory, name = self.directory(), entry_name(origin)
        path = syscalls.path_of(work_fd, temporary)
        os.setxattr(path, self._xattrs.nlink, nlink_value(links, 1), follow_symlinks=False)
        status = os.stat(temporary, dir_fd=work_fd, follow_symlinks=False)
        # Last, for nothing may fail once the copy can be found.
        syscalls.rename(work_fd, temporary, directory.open().fd, name, syscalls.RENAME_NOREPLACE)
        return Entry(directory, name, status)

    def note_links(self, place: LayerDir, name: bytes, links: int) -> None:
        """Note how many names the view has. As long as the copy itself gains or loses as many, it stays true."""
        fd = place.open().fd
        real_links = os.stat(name, dir_fd=fd, follow_symlinks=False).st_nlink
        value = nlink_value(links, real_links)
        os.setxattr(syscalls.path_of(fd, name), self._xattrs.nlink, value, follow_symlinks=False)

    def remove(self, place: LayerDir, name: bytes) -> None:
        """Remove a copy that has no name in the view any more."""
        os.unlink(name, dir_fd=place.open().fd)

    def _lower_links(self, path: bytes) -> int | None:
        origin = syscalls.get_xattr(path, self._xattrs.origin)
        status = self._origins.decode(origin) if origin else None
        return status.st_nlink if status else None

    def _remove_orphans(self, directory: IndexDir) -> None:
        """Remove the copies that have no name left: their removal was interrupted (ovl_indexdir_cleanup)."""
        for text in os.listdir(directory.open().fd):
            name = os.fsencode(text)
            status = directory.stat(name)
            if status is not None and status.st_nlink == 1 and self.links(Entry(directory, name, status)) == 0:
                os.unlink(name, dir_fd=directory.open().fd)


def entry_name(origin: bytes) -> bytes:
    """The name that a copy has in the index: its origin in hexadecimal (ovl_get_index_name)."""
    return origin.hex().encode()


def nlink_value(links: int, real_links: int) -> bytes:
    """What `overlay.nlink` says when the view has `links` names, and the copy `real_links`, the index included."""
    return b"U%+d" % (links - real_links)
