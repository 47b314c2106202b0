"""What is in this exported image archive, and where in the file?

Mostly the archive is a tar on disk; it may also lie unpacked in a directory. A tar is indexed once
(headers only), and its members are then read where they lie. One that is compressed as a whole has no
such places: it is decompressed into an unnamed temporary file first, which is gone with the process.
"""

from __future__ import annotations

import contextlib
import io
import os
import posixpath
import stat
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from overlayfs_demo.errors import ImageError, printable
from overlayfs_demo.images.layer_stream import LayerReader, compression, open_plain, require_digest
from overlayfs_demo.images.model import Digest, Layer
from overlayfs_demo.images.progress import SILENT, Progress
from overlayfs_demo.images.sparse import write_sparse
from overlayfs_demo.images.tarstream import CHUNK, TarStream
from overlayfs_demo.linux import syscalls

# A manifest or config is text that people write; the registries' own limit is 4 MiB.
_MAX_DOCUMENT = 4 << 20
_MAX_LINKS = 40


@dataclass(frozen=True, slots=True)
class _Member:
    """A member's data in the archive file (offset and size in bytes), or the member a link leads to."""

    offset: int
    size: int
    target: str | None
    directory: bool


class Archive:
    """An open image archive: its members by name, and their bytes. Made by `open_archive`.

    `label` names it in errors; `top_directories` are those at its top, listed or not.
    """

    def __init__(self, label: str) -> None:
        self.label = label
        self._members: dict[str, _Member] = {}
        self._twice: set[str] = set()
        self.top_directories: set[str] = set()

    def _add(self, name: str, member: _Member) -> None:
        if name in self._members:
            self._twice.add(name)
        top, slash, _ = name.partition("/")
        if slash or member.directory:
            self.top_directories.add(top)
        self._members[name] = member

    def _descriptor(self, member: str) -> int:
        """The file that the member's offset is one in; it stays the archive's."""
        raise NotImplementedError

    def _whole(self) -> int | None:
        """The archive as one tar, which may be a tree itself; None if it is none."""
        raise NotImplementedError

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def _find(self, name: str) -> tuple[str, _Member]:
        """The member `name`, or the one that it links to inside the archive. Raises ImageError naming it."""
        wanted = name
        for _ in range(_MAX_LINKS):
            if name in self._twice:
                raise self.bad(name, "is there twice, and which of the two is meant cannot be known")
            member = self._members.get(name)
            if member is None:
                way = "" if name == wanted else f"links to '{printable(name)}', which "
                raise self.bad(wanted, f"{way}is missing")
            if member.directory:
                raise self.bad(wanted, "is a directory, not a file")
            if member.target is None:
                return name, member
            name = member.target
        raise self.bad(wanted, "is a link that leads to itself")

    def bad(self, member: str, problem: str) -> ImageError:
        """The error for a member that this program cannot use."""
        return ImageError(f"{self.label}: member '{printable(member)}' {problem}", "export the image again")

    def document(self, name: str, digest: Digest | None = None) -> bytes:
        """A small member, whole. Raises ImageError: missing, twice, not small, or not what `digest` names."""
        place, member = self._find(name)
        if member.size > _MAX_DOCUMENT:
            raise self.bad(name, f"is not a manifest or config: it has {member.size} bytes")
        data = os.pread(self._descriptor(place), member.size, member.offset)
        if digest is not None:
            found = Digest.of(data, digest.algorithm).encoded
            require_digest(digest, found, f"{self.label}: member '{printable(name)}'", "its digest")
        return data

    def stored_size(self, name: str) -> int:
        """The bytes a member has in the archive. Raises ImageError: missing, or twice."""
        return self._find(name)[1].size

    def layer_size(self, layer: Layer) -> int:
        """The bytes that a layer is stored in. Raises ImageError."""
        return self.stored_size(layer.member) if layer.member else self._whole_size()

    def _whole_size(self) -> int:
        fd = self._whole()
        assert fd is not None, "only a tar was taken for a tree"
        return os.fstat(fd).st_size

    def open_layer(self, layer: Layer, progress: Progress = SILENT) -> LayerReader:
        """Read a layer's tar; the reader is good for as long as the archive is open. Raises ImageError.

        `progress` is told of the bytes that it is stored in.
        """
        if not layer.member:
            fd = self._whole()
            assert fd is not None, "only a tar was taken for a tree"
            return LayerReader(fd, 0, self._whole_size(), self.label, layer.diff_id, None, progress)
        place, member = self._find(layer.member)
        label = f"{self.label}: member '{printable(layer.member)}'"
        return LayerReader(
            self._descriptor(place), member.offset, member.size, label, layer.diff_id, layer.digest, progress
        )

    def whole_digest(self, progress: Progress = SILENT) -> Digest:
        """The sha256 of the archive's tar: the diff ID of a tree that is one layer. Raises ImageError: no tar."""
        fd = self._whole()
        if fd is None:
            raise ImageError(f"{self.label} is not a tar archive", "give the tar of a tree, as docker export writes it")
        progress.step(f"hashing {self.label}", self._whole_size())
        hasher = Digest("sha256", "").hasher()
        position = 0
        while data := os.pread(fd, CHUNK, position):
            hasher.update(data)
            position += len(data)
            progress.advance(len(data))
        return Digest("sha256", hasher.hexdigest())


class TarArchive(Archive):
    """An archive that is a tar: indexed once, its members are read where they lie."""

    def __init__(self, file: BinaryIO, label: str) -> None:
        super().__init__(label)
        self._file = file
        file.seek(0)
        for info in TarStream(file, label, marked_end=True):
            name = info.name.removeprefix("./").rstrip("/")
            self._add(name, _Member(info.offset_data, info.size, _link_target(name, info), info.isdir()))

    def _descriptor(self, _member: str) -> int:
        return self._file.fileno()

    def _whole(self) -> int | None:
        return self._file.fileno()


class UnpackedArchive(Archive):
    """An archive that lies unpacked in a directory; its members are the files in it, and links between them."""

    def __init__(self, root: Path, label: str) -> None:
        super().__init__(label)
        self._root = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._open: dict[str, int] = {}
        try:
            for directory, _, files, fd in os.fwalk(".", dir_fd=self._root):
                for file in files:
                    status = os.stat(file, dir_fd=fd, follow_symlinks=False)
                    name = posixpath.normpath(posixpath.join(directory, file))
                    if stat.S_ISREG(status.st_mode):
                        self._add(name, _Member(0, status.st_size, None, directory=False))
                    elif stat.S_ISLNK(status.st_mode):
                        target = _beside(name, os.readlink(file, dir_fd=fd))
                        self._add(name, _Member(0, 0, target, directory=False))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close its files."""
        for fd in (self._root, *self._open.values()):
            os.close(fd)

    def _descriptor(self, member: str) -> int:
        fd = self._open.get(member)
        if fd is None:
            try:
                fd = syscalls.open_beneath(self._root, os.fsencode(member), os.O_RDONLY | os.O_NOFOLLOW)
            except OSError as error:
                raise self.bad(member, f"cannot be read: {error.strerror}") from None
            self._open[member] = fd
        return fd

    def _whole(self) -> int | None:
        return None


def _link_target(name: str, info: tarfile.TarInfo) -> str | None:
    """Where a link leads inside the archive; a path that climbs out keeps its `..` and so names no member."""
    if info.islnk():
        return posixpath.normpath(info.linkname)
    if info.issym():
        return _beside(name, info.linkname)
    return None


def _beside(name: str, target: str) -> str:
    """The path that a symbolic link's target means."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(name), target))


@contextmanager
def open_archive(
    path: Path, scratch: Path | None = None, label: str = "", progress: Progress = SILENT
) -> Iterator[Archive]:
    """Open and index an image archive; it may be compressed as a whole (gzip, zstd, xz, bzip2).

    `scratch` is the directory of the unnamed temporary file that a compressed archive, or a pipe, needs; `label` names
    the archive in errors, in place of its path. Raises ImageError: cannot be read, is no tar, is cut short.
    """
    label = label or printable(str(path))
    try:
        if stat.S_ISDIR(path.stat().st_mode):
            with contextlib.closing(_unpacked(path, label)) as layout:
                yield layout
            return
        with path.open("rb") as file, open_stream(file, scratch, label, progress) as archive:
            yield archive
    except OSError as error:
        if error.filename != str(path):
            raise
        raise ImageError(f"{label}: {error.strerror}", "name a readable image archive") from None


@contextmanager
def open_stream(stream: BinaryIO, scratch: Path | None, label: str, progress: Progress = SILENT) -> Iterator[Archive]:
    """Open and index an image archive that is read from an open file, a pipe or a FIFO; see `open_archive`.

    What an image consists of may stand at the end of its archive. So what cannot be read twice is kept, in an unnamed
    temporary file in `scratch`. The stream stays the caller's.
    """
    with contextlib.ExitStack() as files:
        if not _is_file(stream):
            kept = files.enter_context(tempfile.TemporaryFile(dir=scratch))
            progress.step(f"reading {label}")
            while piece := stream.read(CHUNK):
                progress.advance(len(piece))
                write_sparse(kept.fileno(), piece)
            stream = files.enter_context(os.fdopen(os.dup(kept.fileno()), "rb"))
        if compression(stream.fileno(), 0, os.fstat(stream.fileno()).st_size, label):
            plain = files.enter_context(tempfile.TemporaryFile(dir=scratch))
            _decompress(stream, plain.fileno(), label, progress)
            stream = files.enter_context(os.fdopen(os.dup(plain.fileno()), "rb"))
        yield TarArchive(stream, label)


def _is_file(stream: BinaryIO) -> bool:
    """True for a file that is read from its start, and can be read from there again."""
    try:
        return stat.S_ISREG(os.fstat(stream.fileno()).st_mode) and stream.tell() == 0
    except io.UnsupportedOperation:
        return False  # It has no descriptor.


def _unpacked(path: Path, label: str) -> UnpackedArchive:
    if not any((path / one).is_file() for one in ("oci-layout", "manifest.json")):
        raise ImageError(
            f"{label} is a directory, but not an unpacked image (it has neither 'oci-layout' nor 'manifest.json')",
            "name an image archive; the tar of a tree, for 'import', is made by tar -C DIRECTORY -cf TREE.tar .",
        )
    return UnpackedArchive(path, label)


def _decompress(file: BinaryIO, target: int, label: str, progress: Progress) -> None:
    size = os.fstat(file.fileno()).st_size
    progress.step(f"decompressing {label}")
    plain = open_plain(file.fileno(), 0, size, label)
    while data := plain.read(CHUNK):
        progress.advance(len(data))
        write_sparse(target, data)
