"""Which copy do all names of a hard-linked lower file share, and how many names are there?

The kernel's overlayfs answers with `index=on` (Linux Documentation/filesystems/overlayfs.rst, "Index", and
fs/overlayfs/copy_up.c): the one copy stands in `index` in the work directory, named after the lower file's
handle. Names in the upper are hard links to it; a name that only a lower has leads to it by that handle.
How many names the view has is kept on the copy, in `overlay.nlink`, as the difference to the copy's own
count of names, of which the index is one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from typing import NamedTuple

from overlayfs_demo.linux import syscalls
from overlayfs_demo.overlay import faults
from overlayfs_demo.overlay.layer import Descriptor, Layer, LayerDir, UpperDir
from overlayfs_demo.overlay.origin import Origins
from overlayfs_demo.overlay.pairing import Pairing
from overlayfs_demo.overlay.types import Links
from overlayfs_demo.overlay.workdir import inherit_nothing

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_COUNT = re.compile(rb"[1-9]\d{0,8}")
_NLINK = re.compile(rb"([UL])([+-]\d{1,9})\0?")


class IndexDir(UpperDir):
    """The directory of the copies: on the upper's filesystem, but no part of its tree."""

    __slots__ = ("_held",)

    def __init__(self, layer: Layer, fd: int) -> None:
        super().__init__(layer, None, b"")
        self._held = Descriptor(fd)

    def open(self) -> Descriptor:
        return self._held

    def path(self) -> bytes:
        """For messages: it lies in the work directory, and not below the layer's root."""
        return b"index"


class Entry(NamedTuple):
    """One copy in the index: the file's place, its name there, and its status."""

    place: IndexDir
    name: bytes
    status: os.stat_result


class Index:
    """The index of one mount. It is opened if it is there, and made when first needed."""

    __slots__ = ("_directory", "_layer", "_origins", "_pairing", "_xattrs")

    def __init__(self, layer: Layer, pairing: Pairing, origins: Origins, read_only: bool = False) -> None:
        """`layer` is the upper, perhaps of another mount, and the `pairing`, which was verified, what belongs to it."""
        self._layer = layer
        self._pairing = pairing
        self._origins = origins
        self._xattrs = layer.xattrs
        self._directory: IndexDir | None = None
        if os.path.isdir(pairing.index):
            self._directory = directory = self._open()
            if not read_only:
                inherit_nothing(directory.open().fd)
                pairing.remember()
                self._remove_orphans(directory)
        elif not read_only:
            # As the kernel does when it mounts. Nothing depends on it before there is an index.
            with contextlib.suppress(OSError):
                pairing.remember()

    def _open(self) -> IndexDir:
        return IndexDir(self._layer, os.open(self._pairing.index, _DIRECTORY))

    def _make(self) -> IndexDir:
        os.makedirs(self._pairing.index, mode=0o700, exist_ok=True)
        directory = self._open()
        inherit_nothing(directory.open().fd)
        # Nothing may stand in it before it is known whose it is.
        self._pairing.remember()
        self._directory = directory
        return directory

    def find(self, origin: bytes, kind: int) -> Entry | None:
        """The copy of the lower file of this origin and S_IFMT kind, if there is one.

        EIO, as from the kernel's overlayfs, if what stands there cannot be that copy.
        """
        if self._directory is None:
            return None
        name = entry_name(origin)
        status = self._directory.stat(name)
        if status is None:
            return None
        noted = self._noted(self._directory, name, self._xattrs.origin)
        if noted != origin or stat.S_IFMT(status.st_mode) != kind:
            raise faults.broken(errno.EIO, self._directory, name, "origin", noted, "remove that file from the index")
        return Entry(self._directory, name, status)

    @staticmethod
    def _noted(place: LayerDir, name: bytes, xattr: str) -> bytes | None:
        return syscalls.get_xattr(syscalls.path_of(place.open().fd, name), xattr)

    def links(self, entry: Entry, lower_names: int | None) -> Links:
        """How many names there are of the file; `lower_names` is the lower's count now, if it is at hand.

        The view never has fewer than the upper. Where nothing sound is noted, rather one too many (ovl_get_nlink).
        """
        in_upper = entry.status.st_nlink - 1
        noted = self._noted_links(entry, lower_names)
        if noted is None:
            return Links(in_upper + 1, lower_names)
        before = self._noted(entry.place, entry.name, self._xattrs.lower_nlink) or b""
        links = Links(noted, int(before) if _COUNT.fullmatch(before) else None).met(lower_names)
        return links._replace(view=max(links.view, in_upper))

    def is_metacopy(self, entry: Entry) -> bool:
        """Does the copy hold metadata only? Raises OSError if that mark is broken or not followed, see `faults`."""
        value = self._noted(entry.place, entry.name, self._xattrs.metacopy)
        if value is None:
            return False
        faults.check_metacopy(value, entry.place, entry.name)
        return True

    def _noted_links(self, entry: Entry, lower_names: int | None) -> int | None:
        match = _NLINK.fullmatch(self._noted(entry.place, entry.name, self._xattrs.nlink) or b"")
        if match is None:
            return None
        relative_to = entry.status.st_nlink if match[1] == b"U" else lower_names
        if relative_to is None:
            relative_to = self._lower_names(entry)
        if relative_to is None or relative_to + int(match[2]) < 0:
            return None
        return relative_to + int(match[2])

    def take(self, work_fd: int, temporary: bytes, origin: bytes, links: Links) -> Entry:
        """Publish a finished copy, `temporary` in `work_fd`, of a lower file with so many names."""
        directory, name = self._directory or self._make(), entry_name(origin)
        self._note(syscalls.path_of(work_fd, temporary), links, 1)
        status = os.stat(temporary, dir_fd=work_fd, follow_symlinks=False)
        # Last, for nothing may fail once the copy can be found.
        syscalls.rename(work_fd, temporary, directory.open().fd, name, syscalls.RENAME_NOREPLACE)
        return Entry(directory, name, status)

    def note_links(self, place: LayerDir, name: bytes, links: Links) -> None:
        """Note how many names there are. As long as the copy itself gains or loses as many, it stays true."""
        fd = place.open().fd
        in_index = os.stat(name, dir_fd=fd, follow_symlinks=False).st_nlink
        self._note(syscalls.path_of(fd, name), links, in_index)

    def _note(self, path: bytes, links: Links, real_names: int) -> None:
        os.setxattr(path, self._xattrs.nlink, nlink_value(links.view, real_names), follow_symlinks=False)
        if links.lower is not None:
            os.setxattr(path, self._xattrs.lower_nlink, b"%d" % links.lower, follow_symlinks=False)

    def remove(self, place: LayerDir, name: bytes) -> int:
        """Remove a copy that has no name in the view any more, as it seems; how many it has all the same.

        If the upper has some, the count was wrong, and the copy stays (fs/overlayfs/util.c, ovl_cleanup_index).
        """
        fd = place.open().fd
        in_upper = os.stat(name, dir_fd=fd, follow_symlinks=False).st_nlink - 1
        if not in_upper:
            os.unlink(name, dir_fd=fd)
        return in_upper

    def _lower_names(self, entry: Entry) -> int | None:
        origin = self._noted(entry.place, entry.name, self._xattrs.origin)
        status = self._origins.decode(origin) if origin else None
        return status.st_nlink if status else None

    def _remove_orphans(self, directory: IndexDir) -> None:
        """Remove the copies that have no name left: their removal was interrupted (ovl_indexdir_cleanup)."""
        for text in os.listdir(directory.open().fd):
            name = os.fsencode(text)
            status = directory.stat(name)
            if status is None or status.st_nlink > 1:
                continue
            if self._noted_links(Entry(directory, name, status), None) == 0:
                os.unlink(name, dir_fd=directory.open().fd)


def entry_name(origin: bytes) -> bytes:
    """The name that a copy has in the index: its origin in hexadecimal (ovl_get_index_name)."""
    return origin.hex().encode()


def nlink_value(links: int, real_links: int) -> bytes:
    """What `overlay.nlink` says when the view has `links` names, and the copy `real_links`, the index included."""
    return b"U%+d" % (links - real_links)
