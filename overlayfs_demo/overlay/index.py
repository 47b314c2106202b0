"""The index: the copies that all names of a hard-linked lower file share, and the number of those names.

This is `index=on` of the kernel's overlayfs (Linux Documentation/filesystems/overlayfs.rst, "Index", and
fs/overlayfs/copy_up.c). The copy is in `index` in the work directory, named after the lower file's
handle. Names in the upper are hard links to it; a name that only a lower has leads to it by that handle.
The copy's `overlay.nlink` stores the number of names in the view, as the difference to the copy's real
link count, which includes the name in the index.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat

from overlayfs_demo.linux import proc, syscalls, xattr
from overlayfs_demo.named_tuple import NamedTuple
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
    """The directory of the copies: on the upper's filesystem, but not part of its tree."""

    __slots__ = ("_held",)

    def __init__(self, layer: Layer, fd: int) -> None:
        super().__init__(layer, None, b"")
        self._held = Descriptor(fd)

    def open(self) -> Descriptor:
        return self._held

    def path(self) -> bytes:
        """Return a path for messages. The directory is in the work directory, not below the layer's root."""
        return b"index"


class IndexEntry(NamedTuple):
    """One copy in the index: its directory, its name there, and its status."""

    place: IndexDir
    name: bytes
    status: os.stat_result


class Index:
    """The index of one mount. It is opened if it exists, and created when it is first needed."""

    __slots__ = ("_directory", "_layer", "_lower", "_origins", "_pairing", "_xattrs")

    def __init__(self, layer: Layer, pairing: Pairing, origins: Origins, read_only: bool = False) -> None:
        """Open the index if it exists. `layer` is the upper, perhaps in use by another mount; `pairing` is verified."""
        self._layer = layer
        self._pairing = pairing
        self._origins = origins
        self._xattrs = layer.xattrs
        self._directory: IndexDir | None = None
        self._lower: bytes | None = None
        if pairing.has_index():
            self._directory = directory = self._open()
            if not read_only:
                inherit_nothing(directory.open().fd)
                self._lower = pairing.lower_handle()
                pairing.remember(self._lower)
                self._remove_orphans(directory)
        elif not read_only:
            # The kernel also does this at mount. It may fail here: nothing depends on it until there is an index.
            with contextlib.suppress(OSError):
                self._lower = pairing.lower_handle()
                pairing.remember(self._lower)

    def _open(self) -> IndexDir:
        return IndexDir(self._layer, os.open(self._pairing.index_path, _DIRECTORY))

    def _make(self) -> IndexDir:
        with contextlib.suppress(FileExistsError):
            os.mkdir(self._pairing.index_path, 0o700)
        directory = self._open()
        inherit_nothing(directory.open().fd)
        # Before the first copy is put in it: the index must never hold copies without saying whose they are.
        self._pairing.remember(self._lower)
        self._directory = directory
        return directory

    def find(self, origin: bytes, kind: int) -> IndexEntry | None:
        """Return the copy of the lower file with this origin and S_IFMT kind, or None if there is none.

        EIO, as from the kernel's overlayfs, if the file with its name cannot be that copy.
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
        return IndexEntry(self._directory, name, status)

    @staticmethod
    def _noted(place: LayerDir, name: bytes, attribute: str) -> bytes | None:
        return xattr.get(proc.path_of(place.open().fd, name), attribute)

    def links(self, entry: IndexEntry, lower_names: int | None) -> Links:
        """Return the number of names of the file. `lower_names` is the lower file's present link count, if known.

        The view never has fewer names than the upper. If nothing valid is stored, the result is rather one too high
        (ovl_get_nlink).
        """
        in_upper = entry.status.st_nlink - 1
        noted = self._noted_links(entry, lower_names)
        if noted is None:
            return Links(in_upper + 1, lower_names)
        return noted._replace(view=max(noted.view, in_upper))

    def is_metacopy(self, entry: IndexEntry) -> bool:
        """Whether the copy holds metadata only. Raises OSError if that mark is broken or not followed, see `faults`."""
        value = self._noted(entry.place, entry.name, self._xattrs.metacopy)
        if value is None:
            return False
        faults.check_metacopy(value, entry.place, entry.name)
        return True

    def _noted_links(self, entry: IndexEntry, lower_names: int | None) -> Links | None:
        """Return the number of names that is stored; None if that is not valid."""
        match = _NLINK.fullmatch(self._noted(entry.place, entry.name, self._xattrs.nlink) or b"")
        if match is None:
            return None
        value = self._noted(entry.place, entry.name, self._xattrs.lower_nlink) or b""
        before, difference = int(value) if _COUNT.fullmatch(value) else None, int(match[2])
        if match[1] == b"U":
            links = Links(entry.status.st_nlink + difference, before).met(lower_names)
        else:
            # Names that the lower file got are counted by the difference, names that it lost are not subtracted.
            lower = max(before or 0, lower_names or self._lower_names(entry) or 0)
            links = Links(lower + difference if lower else -1, lower)
        return links if links.view >= 0 else None

    def take(self, work_fd: int, temporary: bytes, origin: bytes, links: Links) -> IndexEntry:
        """Publish a finished copy, `temporary` in `work_fd`, with `links` as its number of names."""
        directory, name = self._directory or self._make(), entry_name(origin)
        self._note(proc.path_of(work_fd, temporary), links, 1)
        status = os.stat(temporary, dir_fd=work_fd, follow_symlinks=False)
        # Last, because nothing may fail once the copy can be found.
        syscalls.rename(work_fd, temporary, directory.open().fd, name, syscalls.RENAME_NOREPLACE)
        return IndexEntry(directory, name, status)

    def note_links(self, place: LayerDir, name: bytes, links: Links) -> None:
        """Store the number of names before the view and the copy gain or lose one together (ovl_set_nlink_upper).

        It is relative to the copy's link count, so it is true before that change, and after it.
        """
        fd = place.open().fd
        in_index = os.stat(name, dir_fd=fd, follow_symlinks=False).st_nlink
        self._note(proc.path_of(fd, name), links, in_index)

    def note_links_to_lower(self, place: LayerDir, name: bytes, links: Links) -> None:
        """Store the number of names before a name of the view becomes one in the upper (ovl_set_nlink_lower).

        That changes the copy's link count and not the view's, so it is relative to the lower file's.
        """
        assert links.lower is not None  # The name has just led to the lower file.
        self._write(proc.path_of(place.open().fd, name), b"L%+d" % (links.view - links.lower), links)

    def _note(self, path: bytes, links: Links, real_names: int) -> None:
        self._write(path, nlink_value(links.view, real_names), links)

    def _write(self, path: bytes, value: bytes, links: Links) -> None:
        os.setxattr(path, self._xattrs.nlink, value, follow_symlinks=False)
        # If this one fails, names that the lower file got are counted again next time: too high does no harm.
        if links.lower is not None:
            os.setxattr(path, self._xattrs.lower_nlink, b"%d" % links.lower, follow_symlinks=False)

    def remove(self, place: LayerDir, name: bytes) -> int:
        """Remove a copy that seems to have no name in the view any more. Return how many names the upper still has.

        If it has some, the count was wrong and the copy stays (fs/overlayfs/util.c, ovl_cleanup_index).
        """
        fd = place.open().fd
        in_upper = os.stat(name, dir_fd=fd, follow_symlinks=False).st_nlink - 1
        if not in_upper:
            os.unlink(name, dir_fd=fd)
        return in_upper

    def _lower_names(self, entry: IndexEntry) -> int | None:
        origin = self._noted(entry.place, entry.name, self._xattrs.origin)
        status = self._origins.decode(origin) if origin else None
        return status.st_nlink if status else None

    def _remove_orphans(self, directory: IndexDir) -> None:
        """Remove the copies to which no name leads any more, because their removal was interrupted or their lower file
        is gone, and what the kernel failed to put into the index (ovl_indexdir_cleanup)."""
        for text in os.listdir(directory.open().fd):
            name = os.fsencode(text)
            status = directory.stat(name)
            if status is None or stat.S_ISDIR(status.st_mode):
                continue
            if name.startswith(b"#") or (status.st_nlink == 1 and self._is_orphan(directory, name, status)):
                os.unlink(name, dir_fd=directory.open().fd)

    def _is_orphan(self, directory: IndexDir, name: bytes, status: os.stat_result) -> bool:
        origin = self._noted(directory, name, self._xattrs.origin)
        if origin is None or entry_name(origin) != name:
            return False  # It is not a copy, so it is not ours to remove.
        if self._origins.is_lost(origin):
            return True
        links = self._noted_links(IndexEntry(directory, name, status), None)
        return links is not None and not links.view


def entry_name(origin: bytes) -> bytes:
    """Return the name of a copy in the index: its origin in hexadecimal (ovl_get_index_name)."""
    return origin.hex().encode()


def nlink_value(links: int, real_links: int) -> bytes:
    """Return the `overlay.nlink` of a copy with `links` names in the view and `real_links` hard links, the index's
    included."""
    return b"U%+d" % (links - real_links)
