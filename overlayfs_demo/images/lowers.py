"""The merged view of the layers below a layer that is being unpacked.

A layer refers to what is below it: by a whiteout, by a hard link to a file that it does not hold, by a path whose
directories it does not list. The layers below are directories in the kernel's format, built by `unpack`, and are merged
by the kernel's rules (Linux Documentation/filesystems/overlayfs.rst).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

from overlayfs_demo.images.layer_tree import prefixes
from overlayfs_demo.linux import attributes, proc, syscalls, xattr
from overlayfs_demo.linux.attributes import Attributes
from overlayfs_demo.overlay.copy_data import copy_data
from overlayfs_demo.overlay.whiteout import PrivateXattrs, is_whiteout

# The private records of one machine's overlay. Such an attribute is never part of an image, whether it comes in a
# layer's tar or from a layer below: with it a layer could forge whiteouts, redirects and opaque directories. It is
# dropped, not escaped, because an escape helps in one namespace only, and a layer directory may be mounted with
# either. (Other programs than fuse-overlayfs also read its marks.)
PRIVATE_XATTRS = (b"trusted.overlay.", b"user.overlay.", b"user.fuseoverlayfs.")


class Lowers:
    """The merged view of layer directories, given from the bottom up. A context manager.

    Paths are relative, normalised bytes; b"" is the root. Methods raise OSError if a layer cannot be read.
    """

    def __init__(self, directories: Sequence[Path], marks: PrivateXattrs) -> None:
        self._opaque = marks.opaque
        self._roots: list[int] = []
        # By directory path, the layers whose directory is part of the merged one, topmost first.
        self._showing: dict[bytes, tuple[int, ...]] = {}
        try:
            for directory in reversed(directories):
                self._roots.append(os.open(directory, os.O_RDONLY | os.O_DIRECTORY))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Lowers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the layers."""
        while self._roots:
            os.close(self._roots.pop())

    def open(self, path: bytes) -> int | None:
        """Return an O_PATH descriptor of what is visible at `path`, which the caller must close; None if nothing is."""
        if not path:
            return os.dup(self._roots[0]) if self._roots else None
        for root in self._merged(path.rpartition(b"/")[0]):
            fd = _open(root, path)
            if fd is None:
                continue
            if not is_whiteout(os.fstat(fd)):
                return fd
            os.close(fd)
            return None
        return None

    def shows(self, path: bytes) -> bool:
        """Return True if anything is visible at `path`."""
        fd = self.open(path)
        if fd is not None:
            os.close(fd)
        return fd is not None

    def top_names(self) -> set[bytes]:
        """Return every name in the roots of the layers, whited out or not."""
        return {os.fsencode(name) for root in self._roots for name in os.listdir(root)}

    def _merged(self, path: bytes) -> tuple[int, ...]:
        layers = tuple(self._roots)
        for prefix in prefixes(path):
            found = self._showing.get(prefix)
            if found is None:
                found = self._showing[prefix] = self._merge(layers, prefix)
            layers = found
        return layers

    def _merge(self, parents: tuple[int, ...], path: bytes) -> tuple[int, ...]:
        """Return those of the parent's layers that make up the directory `path`."""
        found = []
        for root in parents:
            fd = _open(root, path)
            if fd is None:
                continue
            try:
                if not stat.S_ISDIR(os.fstat(fd).st_mode):
                    break  # a whiteout or a file: both hide what is below
                found.append(root)
                if xattr.get(proc.fd_path(fd), self._opaque, follow=True) == b"y":
                    break
            finally:
                os.close(fd)
        return tuple(found)


def _open(root: int, path: bytes) -> int | None:
    try:
        return syscalls.open_beneath(root, path, os.O_PATH | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None


# --- copying one file up ---------------------------------------------------------------------------


def copy_node(source: int, dir_fd: int, name: bytes, owners: bool) -> None:
    """Copy the file of the O_PATH descriptor `source`, which must not be a directory, to a new name.

    Copies the data (holes stay holes), the owner if `owners`, extended attributes, mode and times. Raises OSError.
    """
    status = os.fstat(source)
    if stat.S_ISREG(status.st_mode):
        reading = os.open(proc.fd_path(source), os.O_RDONLY)
        try:
            writing = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=dir_fd)
            try:
                copy_data(reading, writing, status.st_size)
            finally:
                os.close(writing)
        finally:
            os.close(reading)
    elif stat.S_ISLNK(status.st_mode):
        os.symlink(os.readlink(b"", dir_fd=source), name, dir_fd=dir_fd)
    else:
        os.mknod(name, 0o600 | stat.S_IFMT(status.st_mode), status.st_rdev, dir_fd=dir_fd)
    copy_metadata(source, dir_fd, name, owners)


def copy_metadata(source: int, dir_fd: int, name: bytes, owners: bool) -> None:
    """Give `name` the owner (if `owners`), extended attributes, mode and mtime of `source`. Raises OSError.

    A symbolic link has no attributes that belong to an image.
    """
    status = os.fstat(source)
    given = Attributes.of(status, () if stat.S_ISLNK(status.st_mode) else _xattrs(proc.fd_path(source)))
    attributes.apply(given if owners else given._replace(owner=None), proc.path_of(dir_fd, name))


def _xattrs(path: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield the extended attributes that belong to an image."""
    for name in xattr.names(path, follow=True):
        if not os.fsencode(name).startswith(PRIVATE_XATTRS):
            yield name, os.getxattr(path, name)
