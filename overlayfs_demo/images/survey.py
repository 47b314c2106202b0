"""What does a layer directory say, path by path, and do two layers say the same about one?

Each layer is walked once, and what is kept is a few numbers a path, never data. A layer is in the kernel's
format, as `unpack` makes it (Linux Documentation/filesystems/overlayfs.rst, "whiteouts and opaque
directories"), with either namespace of attributes; metacopies and redirects are of no image, and not read.
"""

from __future__ import annotations

import enum
import errno
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

from overlayfs_demo import syscalls
from overlayfs_demo.errors import ImageError
from overlayfs_demo.images.lowers import PRIVATE_XATTRS
from overlayfs_demo.images.model import shown
from overlayfs_demo.overlay.merge import Says
from overlayfs_demo.overlay.whiteout import TRUSTED, USER, is_whiteout

# No O_NOFOLLOW: see `tree`.
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
_CHUNK = 1 << 18  # bytes


class Thing(NamedTuple):
    """What one layer has at one path: its word in the merge, and its inode's numbers.

    `size` is in bytes, and 0 for anything but a regular file: only those have data that an image ships.
    """

    says: Says
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    device: int
    inode: int

    @property
    def regular(self) -> bool:
        """True for a regular file."""
        return stat.S_ISREG(self.mode)

    @property
    def directory(self) -> bool:
        """True for a directory, opaque or not."""
        return stat.S_ISDIR(self.mode)


class Difference(enum.Enum):
    """How two objects of one path differ."""

    NONE = "the same"
    METADATA = "the same data, other metadata"
    CONTENT = "other data, or another kind of file"


@dataclass(frozen=True, slots=True)
class SurveyedLayer:
    """A layer directory and everything in it by its path; a directory comes before what is in it.

    Paths are relative, clean and bytes; the root itself is not among them. `label` names the layer in messages.
    """

    label: str
    root_fd: int
    things: Mapping[bytes, Thing]

    def open(self, path: bytes, flags: int) -> int:
        """Open a path of this layer, following no link; the caller owns the descriptor. Raises ImageError."""
        try:
            return syscalls.open_beneath(self.root_fd, path, flags | os.O_NOFOLLOW)
        except OSError as error:
            raise unreadable(self.label, path, error) from None


def unreadable(label: str, path: bytes, error: OSError) -> ImageError:
    """What to tell of a layer that cannot be read."""
    return ImageError(
        f"{label}: '/{shown(path)}' cannot be read: {error.strerror}",
        "read the layers as root, or as the user who built them",
    )


@contextmanager
def opened(directories: Sequence[Path]) -> Iterator[list[tuple[str, int]]]:
    """Each layer's label and its root's descriptor, which is closed in the end. Raises ImageError."""
    with ExitStack() as stack:
        found = []
        for directory in directories:
            label = f"layer {shown(str(directory))}"
            try:
                fd = os.open(directory, _DIRECTORY)
            except OSError as error:
                raise ImageError(f"{label}: {error.strerror}", "give the directories that were built") from None
            stack.callback(os.close, fd)
            found.append((label, fd))
        yield found


@contextmanager
def surveyed(directories: Sequence[Path]) -> Iterator[list[SurveyedLayer]]:
    """Walk layers, in the order given; they stay open until the end. Raises ImageError.

    A directory that is given twice is walked once, and is one object at both places.
    """
    with opened(directories) as roots:
        walked: dict[tuple[int, int], SurveyedLayer] = {}
        layers = []
        for label, fd in roots:
            status = os.fstat(fd)
            key = (status.st_dev, status.st_ino)
            if key not in walked:
                walked[key] = SurveyedLayer(label, fd, _walk(label, fd))
            layers.append(walked[key])
        yield layers


def _walk(label: str, root_fd: int) -> dict[bytes, Thing]:
    things: dict[bytes, Thing] = {}
    pending = [b""]
    while pending:
        path = pending.pop()
        try:
            fd = syscalls.open_beneath(root_fd, path or b".", _DIRECTORY)
            try:
                # The kernel merges the roots of all layers, whatever their attributes say.
                if path and is_opaque(fd):
                    things[path] = things[path]._replace(says=Says.OPAQUE_DIRECTORY)
                found = _listed(fd, path)
            finally:
                os.close(fd)
        except OSError as error:
            raise unreadable(label, path, error) from None
        things.update(found)
        pending.extend(child for child, thing in found if thing.directory)
    return things


def _listed(fd: int, path: bytes) -> list[tuple[bytes, Thing]]:
    """What is in one directory, by name: readdir(3)'s order is another on every machine."""
    prefix = path + b"/" if path else b""
    with os.scandir(fd) as entries:
        return sorted(
            (prefix + os.fsencode(entry.name), as_thing(entry.stat(follow_symlinks=False))) for entry in entries
        )


def as_thing(status: os.stat_result) -> Thing:
    """What a status says; whether a directory is opaque it does not say."""
    mode = status.st_mode
    says = Says.DIRECTORY if stat.S_ISDIR(mode) else Says.WHITEOUT if is_whiteout(status) else Says.FILE
    size = status.st_size if stat.S_ISREG(mode) else 0
    return Thing(
        says, mode, status.st_uid, status.st_gid, size, status.st_mtime_ns, status.st_rdev, status.st_ino
    )


def is_opaque(directory: int | bytes) -> bool:
    """True if a directory (a descriptor, or a path to follow) is marked opaque. Raises OSError."""
    return any(syscalls.get_xattr(directory, marks.opaque, follow=True) == b"y" for marks in (TRUSTED, USER))


# --- comparing -------------------------------------------------------------------------------------


def difference(path: bytes, old: SurveyedLayer, new: SurveyedLayer) -> Difference:
    """How the objects at `path` in two layers differ. Raises ImageError, or OSError when data cannot be read.

    Metadata is the owner, the mode, the extended attributes that are not the overlay's own, and, but for
    directories, the time of the last change: a directory's is another as soon as a name in it is.
    """
    if old is new:
        return Difference.NONE
    was, now = old.things[path], new.things[path]
    if stat.S_IFMT(was.mode) != stat.S_IFMT(now.mode) or (was.size, was.device) != (now.size, now.device):
        return Difference.CONTENT
    if was.regular and was.size and not _same_data(path, old, new):
        return Difference.CONTENT
    if stat.S_ISLNK(was.mode) and _link(path, old) != _link(path, new):
        return Difference.CONTENT
    if (was.mode, was.uid, was.gid) != (now.mode, now.uid, now.gid):
        return Difference.METADATA
    if was.mtime_ns != now.mtime_ns and not was.directory:
        return Difference.METADATA
    return Difference.NONE if _attributes(path, old) == _attributes(path, new) else Difference.METADATA


def _same_data(path: bytes, old: SurveyedLayer, new: SurveyedLayer) -> bool:
    with ExitStack() as stack:
        one, other = (
            stack.enter_context(os.fdopen(layer.open(path, os.O_RDONLY), "rb", buffering=0)) for layer in (old, new)
        )
        return all(
            mine == theirs for mine, theirs in zip_longest(pieces(one.fileno()), pieces(other.fileno()))
        )


def pieces(fd: int) -> Iterator[tuple[int, bytes]]:
    """The data of a file in pieces of one size, with their offsets, but for those that are zeros alone.

    Two files of one size hold the same if their pieces are the same, wherever they have holes. Holes are not read: a
    file of a few bytes may have terabytes of them. Raises OSError.
    """
    end, offset = os.fstat(fd).st_size, 0
    while offset < end:
        try:
            offset = os.lseek(fd, offset, os.SEEK_DATA) // _CHUNK * _CHUNK
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return  # A hole up to the end.
        data = os.pread(fd, _CHUNK, offset)
        if data.strip(b"\0"):
            yield offset, data
        offset += _CHUNK


def _link(path: bytes, layer: SurveyedLayer) -> bytes:
    fd = layer.open(path, os.O_PATH)
    try:
        return os.readlink(b"", dir_fd=fd)
    finally:
        os.close(fd)


def _attributes(path: bytes, layer: SurveyedLayer) -> dict[str, bytes]:
    """The extended attributes that are a part of the image; of symbolic links, none is (see `copy_metadata`)."""
    if stat.S_ISLNK(layer.things[path].mode):
        return {}
    fd = layer.open(path, os.O_PATH)
    try:
        real = syscalls.fd_path(fd)
        names = syscalls.list_xattrs(real, follow=True)
        return {name: os.getxattr(real, name) for name in names if not os.fsencode(name).startswith(PRIVATE_XATTRS)}
    finally:
        os.close(fd)
