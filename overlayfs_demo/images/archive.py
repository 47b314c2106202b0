"""Random access to the members of an image archive.

An archive is usually a tar on disk; it may also be unpacked in a directory. A tar is indexed once (headers only), and
its members are then read in place. This is not possible in a tar that is compressed as a whole, so it is first
decompressed into an unnamed temporary file, which disappears with the process.
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

# Manifests and configs are small; the registries' own limit is 4 MiB.
_MAX_DOCUMENT = 4 << 20
_MAX_LINKS = 40


@dataclass(frozen=True, slots=True)
class Member:
    """A member's data in the archive file (offset and size in bytes), or the member to which a link leads."""

    offset: int
    size: int
    target: str | None
    directory: bool


class Archive:
    """An open image archive: its members by name, and their bytes. `open_archive` makes it.

    `label` names it in errors; `top_directories` are the directories at its top, whether listed or not.
    """

    def __init__(self, label: str) -> None:
        self.label = label
        self._members: dict[str, Member] = {}
        self._twice: set[str] = set()
        self.top_directories: set[str] = set()

    def _add(self, name: str, member: Member) -> None:
        if name in self._members:
            self._twice.add(name)
        top, slash, _ = name.partition("/")
        if slash or member.directory:
            self.top_directories.add(top)
        self._members[name] = member

    def _descriptor(self, member: str) -> int:
        """Return the descriptor of the file to which the member's offset refers; the archive owns it."""
        raise NotImplementedError

    def _whole(self) -> int | None:
        """Return the descriptor of the archive as one tar, which may itself be a tree; None if it is not a tar."""
        raise NotImplementedError

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def _find(self, name: str) -> tuple[str, Member]:
        """Return the member `name`, or the one to which it links inside the archive. Raises ImageError naming it."""
        wanted = name
        for _ in range(_MAX_LINKS):
            if name in self._twice:
                raise self.bad(name, "occurs twice, so it is ambiguous")
            member = self._members.get(name)
            if member is None:
                way = "" if name == wanted else f"links to '{printable(name)}', which "
                raise self.bad(wanted, f"{way}is missing")
            if member.directory:
                raise self.bad(wanted, "is a directory, not a file")
            if member.target is None:
                return name, member
            name = member.target
        raise self.bad(wanted, "is a link to itself")

    def bad(self, member: str, problem: str) -> ImageError:
        """Return the error for a member that this program cannot use."""
        return ImageError(f"{self.label}: member '{printable(member)}' {problem}", "export the image again")

    def document(self, name: str, digest: Digest | None = None) -> bytes:
        """Return the bytes of a small member.

        Raises ImageError if it is missing, there twice, not small, or not what `digest` names.
        """
        place, member = self._find(name)
        if member.size > _MAX_DOCUMENT:
            raise self.bad(name, f"is not a manifest or config: it has {member.size} bytes")
        data = os.pread(self._descriptor(place), member.size, member.offset)
        if digest is not None:
            found = Digest.of(data, digest.algorithm).encoded
            require_digest(digest, found, f"{self.label}: member '{printable(name)}'", "its digest")
        return data

    def stored_size(self, name: str) -> int:
        """Return a member's size in the archive, in bytes. Raises ImageError if it is missing or there twice."""
        return self._find(name)[1].size

    def layer_size(self, layer: Layer) -> int:
        """Return a layer's size as stored, in bytes. Raises ImageError."""
        return self.stored_size(layer.member) if layer.member else self._whole_size()

    def _whole_size(self) -> int:
        fd = self._whole()
        assert fd is not None, "only a tar was taken for a tree"
        return os.fstat(fd).st_size

    def open_layer(self, layer: Layer, progress: Progress = SILENT) -> LayerReader:
        """Return a reader of a layer's tar, valid as long as the archive is open. Raises ImageError.

        The caller must close the reader. `progress` gets the stored bytes.
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
        """Return the sha256 of the archive's tar, the diff ID of a tree that is one layer.

        Raises ImageError if the archive is not a tar.
        """
        fd = self._whole()
        if fd is None:
            raise ImageError(
                f"{self.label} is not a tar archive", "use a tar of a file tree, as docker export writes it"
            )
        progress.step(f"hashing {self.label}", self._whole_size())
        hasher = Digest("sha256", "").hasher()
        position = 0
        while data := os.pread(fd, CHUNK, position):
            hasher.update(data)
            position += len(data)
            progress.advance(len(data))
        return Digest("sha256", hasher.hexdigest())


class TarArchive(Archive):
    """An archive that is a tar: it is indexed once, and its members are read in place."""

    def __init__(self, file: BinaryIO, label: str) -> None:
        super().__init__(label)
        self._file = file
        file.seek(0)
        for info in TarStream(file, label, marked_end=True):
            name = info.name.removeprefix("./").rstrip("/")
            self._add(name, Member(info.offset_data, info.size, _link_target(name, info), info.isdir()))

    def _descriptor(self, _member: str) -> int:
        return self._file.fileno()

    def _whole(self) -> int | None:
        return self._file.fileno()


class UnpackedArchive(Archive):
    """An archive that is unpacked in a directory; its members are the files there, and the links between them."""

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
                        self._add(name, Member(0, status.st_size, None, directory=False))
                    elif stat.S_ISLNK(status.st_mode):
                        target = _beside(name, os.readlink(file, dir_fd=fd))
                        self._add(name, Member(0, 0, target, directory=False))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the archive's files."""
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
    """Return where a link leads inside the archive. A path that climbs out keeps its `..`, so it names no member."""
    if info.islnk():
        return posixpath.normpath(info.linkname)
    if info.issym():
        return _beside(name, info.linkname)
    return None


def _beside(name: str, target: str) -> str:
    """Return the path that a symbolic link's target means."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(name), target))


@contextmanager
def open_archive(
    path: Path, scratch: Path | None = None, label: str = "", progress: Progress = SILENT
) -> Iterator[Archive]:
    """Open and index an image archive; it may be compressed as a whole (gzip, zstd, xz, bzip2).

    `scratch` is the directory for the unnamed temporary file that a compressed archive or a pipe needs; `label` names
    the archive in errors, instead of its path. Raises ImageError if it cannot be read, is not a tar, or is cut short.
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

    The list of an image's parts may come at the end of its archive. So a stream that cannot be read twice is kept in an
    unnamed temporary file in `scratch`. The caller keeps ownership of the stream.
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
    """Return True for a regular file at its start, which can be read from there again."""
    try:
        return stat.S_ISREG(os.fstat(stream.fileno()).st_mode) and stream.tell() == 0
    except io.UnsupportedOperation:
        return False  # An in-memory file has no descriptor.


def _unpacked(path: Path, label: str) -> UnpackedArchive:
    if not any((path / name).is_file() for name in ("oci-layout", "manifest.json")):
        raise ImageError(
            f"{label} is a directory, but not an unpacked image (it has neither 'oci-layout' nor 'manifest.json')",
            "name an image archive; to 'import' a directory, pack it first: tar -C DIRECTORY -cf TREE.tar .",
        )
    return UnpackedArchive(path, label)


def _decompress(file: BinaryIO, target: int, label: str, progress: Progress) -> None:
    size = os.fstat(file.fileno()).st_size
    progress.step(f"decompressing {label}")
    plain = open_plain(file.fileno(), 0, size, label)
    while data := plain.read(CHUNK):
        progress.advance(len(data))
        write_sparse(target, data)
