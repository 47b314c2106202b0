"""Recipes, with which a layer's tar is put together again from its unpacked directory, byte for byte.

A layer's diff ID is the hash of its tar (OCI image-spec, config.md, "Layer DiffID"), and no two programs write the same
tar of a directory. So a *recipe* is written while the layer is unpacked. It holds all of the tar except the data of the
files in the directory, to which it refers. The idea comes from Docker's tar-split.

A recipe itself keeps everything that the directory does not have, or does not show to everybody: headers, padding, the
end mark, and what follows it; the data of members that leave no file (whiteouts, hard links), of sparse members (the
tar has their stretches, not their holes), of files that a later member replaces, of files that their owner may not
read, and of files below directories that their owner may not search.

Format, version 1, numbers big-endian: 26 bytes of magic; 1 byte for the version; 8 bytes for the size of the tar; then
one zstd frame with a checksum (RFC 8878, 3.1.1). The frame is a sequence of records:
`I`, a length in 4 bytes, and that many bytes of the tar; `F`, the length of a path in 2 bytes, the size of that file in
8 bytes, the CRC-32 of its data in 4 bytes, and the path, relative to the layer's directory; `E` at the end.
"""

from __future__ import annotations

import io
import os
import shutil
import stat
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import IO, BinaryIO, cast

import zstandard

from overlayfs_demo.errors import ImageError, printable
from overlayfs_demo.images.sparse import write_sparse
from overlayfs_demo.images.tarstream import CHUNK
from overlayfs_demo.linux import syscalls
from overlayfs_demo.named_tuple import NamedTuple

_VERSION = 1
_MAGIC = b"overlayfs-demo tar recipe\n"
_HEAD = struct.Struct(f">{len(_MAGIC)}sBQ")
_INLINE, _FILE, _END = b"I", b"F", b"E"
_INLINE_HEAD = struct.Struct(">I")
_FILE_HEAD = struct.Struct(">HQI")

_BUFFER = 1 << 16
_REMEDY = "unpack the image again"
_SHORT = "it ends too early"

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
# O_NONBLOCK: if a fifo has replaced the file, opening it must not wait for a writer.
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY

Out = Callable[[bytes], object]


class _Reference(NamedTuple):
    """A file of the layer's directory that holds the next `size` bytes of the tar; `crc` is their CRC-32."""

    path: bytes
    size: int
    crc: int


@contextmanager
def recording(source: BinaryIO, root_fd: int, scratch: Path, label: str) -> Iterator[Recorder]:
    """Make a recorder of the tar `source`, which is unpacked into the directory `root_fd`; the caller keeps both.

    `scratch` is a directory for unnamed files that grow to the size of the recipe and of the replaced files' data;
    `label` names the layer in errors. Raises OSError.
    """
    with (
        tempfile.SpooledTemporaryFile(CHUNK, dir=str(scratch)) as spool,
        tempfile.TemporaryFile(dir=scratch, buffering=0) as kept,
    ):
        yield Recorder(source, root_fd, cast(BinaryIO, spool), kept.fileno(), label)


class Recorder:
    """Writer of the recipe of one layer's tar while `unpack_layer` unpacks it; see `recording`.

    The unpacker reads `tar` instead of `source`, and reports with `refer` and `keep` where the data goes. Memory is a
    few hundred bytes for each file. The caller keeps ownership of all arguments.
    """

    def __init__(self, source: BinaryIO, root_fd: int, spool: BinaryIO, kept_fd: int, label: str) -> None:
        self.tar = cast(BinaryIO, _Tee(source, self._take))
        self._root = root_fd
        self._label = label
        self._spool = spool
        self._writer = _Writer(self._spool)
        self._size = 0
        # The file whose data is being read: its path, its size, the bytes still to come, the CRC-32 so far.
        self._path, self._file_size, self._left, self._crc = b"", 0, 0, 0
        # References keyed by path, each with its number; and by number, the offset of data kept in place of one.
        self._live: dict[bytes, tuple[int, _Reference]] = {}
        self._references = 0
        self._kept: dict[int, int] = {}
        self._kept_fd = kept_fd

    def refer(self, path: bytes, size: int) -> None:
        """Report that the next `size` bytes of the tar are the whole data of the new file `path`, and stay there."""
        self._path, self._file_size, self._left, self._crc = path, size, size, 0

    def keep(self, paths: Iterable[bytes]) -> None:
        """Take the data of these files into the recipe, because they will be removed or become unreadable.

        Paths that the recipe does not refer to are ignored. Raises OSError, or ImageError if a file is not what was
        unpacked.
        """
        with closing(_Files(self._root, self._label)) as files:
            for path in paths:
                if path not in self._live:
                    continue
                number, reference = self._live.pop(path)
                self._kept[number] = os.lseek(self._kept_fd, 0, os.SEEK_CUR)
                files.copy(reference, partial(write_sparse, self._kept_fd))

    def finish(self, recipe: BinaryIO) -> None:
        """Read `source` to its end and write the recipe. Raises OSError, and whatever reading `source` raises.

        Call it between `unpack_layer` and `LayerReader.finish`, which would read the rest without recording it.
        """
        while self.tar.read(CHUNK):
            pass
        self._writer.end()
        recipe.write(_HEAD.pack(_MAGIC, _VERSION, self._size))
        self._spool.seek(0)
        if self._kept:
            self._write_kept(recipe)
        else:
            shutil.copyfileobj(self._spool, recipe, CHUNK)

    def _take(self, data: bytes) -> None:
        """Record data that was read from the tar."""
        self._size += len(data)
        if self._left:
            part = data[: self._left]
            self._crc = zlib.crc32(part, self._crc)
            self._left -= len(part)
            data = data[len(part) :]
            if not self._left:
                reference = _Reference(self._path, self._file_size, self._crc)
                self._writer.reference(reference)
                self._live[self._path] = self._references, reference
                self._references += 1
        self._writer.inline(data)

    def _write_kept(self, recipe: BinaryIO) -> None:
        """Write the spooled records again, with the kept data in place of the references to it."""
        writer = _Writer(recipe)
        number = 0
        for part in _records(self._spool, self._label):
            if isinstance(part, bytes):
                writer.inline(part)
                continue
            if number not in self._kept:
                writer.reference(part)
            else:
                for start in range(0, part.size, CHUNK):
                    size = min(CHUNK, part.size - start)
                    writer.inline(os.pread(self._kept_fd, size, self._kept[number] + start))
            number += 1
        writer.end()


def tar_size(recipe: BinaryIO, label: str = "the layer") -> int:
    """Return the size in bytes of the tar that `recipe`, read from its start, makes. Raises ImageError if damaged."""
    head = recipe.read(_HEAD.size)
    if len(head) != _HEAD.size or not head.startswith(_MAGIC):
        raise _damaged(label, "it does not start with the right bytes")
    _magic, version, size = _HEAD.unpack(head)
    if version != _VERSION:
        raise ImageError(f"{label}: the recipe of its tar has version {version}, not {_VERSION}", _REMEDY)
    return int(size)


def file_checksums(recipe: BinaryIO) -> Iterator[tuple[bytes, int, int]]:
    """Yield the path, the size in bytes and the CRC-32 of each file to which the recipe refers.

    `recipe` is read forward from its start; the caller keeps ownership of it. Raises ImageError if it is damaged.
    """
    label = "the layer"
    tar_size(recipe, label)
    for part in _records(recipe, label):
        if isinstance(part, _Reference):
            yield part.path, part.size, part.crc


def assemble(recipe: BinaryIO, root_fd: int, out: Out, label: str = "the layer") -> None:
    """Hand the tar to `out`, piece by piece, in order; a piece is at most 1 MiB, and valid until `out` returns.

    `recipe` is read forward from its start; files are opened below the layer's directory `root_fd`; the caller keeps
    ownership of both. Raises ImageError, which begins with `label`, if a file is missing or is not what was unpacked,
    or if the recipe is damaged; OSError if reading fails; and whatever `out` raises. After an error the pieces so far
    are useless. Only its diff ID proves that the tar is the right one.
    """
    size = tar_size(recipe, label)
    done = 0
    with closing(_Files(root_fd, label)) as files:
        for part in _records(recipe, label):
            if isinstance(part, bytes):
                out(part)
                done += len(part)
            else:
                files.copy(part, out)
                done += part.size
    if done != size:
        raise _damaged(label, f"it produces a tar of {done} bytes, not {size}")


class _Files:
    """The files of a layer's directory `root_fd`, which the caller keeps; `label` names the layer in errors.

    The directory of the last file stays open, because the next file is usually beside it.
    """

    def __init__(self, root_fd: int, label: str) -> None:
        self._root = root_fd
        self._label = label
        self._above = b""
        self._directory = root_fd

    def close(self) -> None:
        """Close the open directory."""
        if self._directory != self._root:
            os.close(self._directory)
        self._above, self._directory = b"", self._root

    def copy(self, reference: _Reference, out: Out) -> None:
        """Hand a file's data to `out`. Raises ImageError if it is not what the reference says, and OSError."""
        path, size, expected = reference
        fd = self._open(path)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise self._error(path, "is not the regular file that was unpacked")
            if status.st_size != size:
                raise self._error(path, f"has {status.st_size} bytes, not the {size} that were unpacked")
            left, crc = size, 0
            while left and (data := os.read(fd, min(CHUNK, left))):
                out(data)
                crc = zlib.crc32(data, crc)
                left -= len(data)
        finally:
            os.close(fd)
        if left or crc != expected:
            raise self._error(path, "has been changed since it was unpacked")

    def _open(self, path: bytes) -> int:
        # With its slash, so that an absolute path is refused.
        above = path[: path.rfind(b"/") + 1]
        try:
            if above != self._above:
                self.close()
                self._directory = syscalls.open_beneath(self._root, above, _DIRECTORY) if above else self._root
                self._above = above
            return os.open(path[len(above) :], _READ, dir_fd=self._directory)
        except OSError as error:
            raise self._error(path, f"which is part of its tar, cannot be opened: {error.strerror}", ", ") from None

    def _error(self, path: bytes, what: str, mark: str = " ") -> ImageError:
        return ImageError(f"{self._label}: file '{printable(path)}'{mark}{what}", _REMEDY)


# --- the records of a recipe -----------------------------------------------------------------------


class _Tee(io.BufferedIOBase):
    """Reader of `source` that hands every byte to `take`. It cannot seek, so no byte can be skipped."""

    def __init__(self, source: BinaryIO, take: Callable[[bytes], None]) -> None:
        self._source = source
        self._take = take

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1) -> bytes:
        data = self._source.read(-1 if size is None else size)
        self._take(data)
        return data


class _Writer:
    """Writer of records, in one zstd frame, to a file of the caller's."""

    def __init__(self, file: IO[bytes]) -> None:
        self._frame = zstandard.ZstdCompressor(write_checksum=True).stream_writer(file, closefd=False)
        self._pending = bytearray()

    def inline(self, data: bytes) -> None:
        self._pending += data
        if len(self._pending) >= _BUFFER:
            self._flush()

    def reference(self, reference: _Reference) -> None:
        self._flush()
        self._frame.write(_FILE + _FILE_HEAD.pack(len(reference.path), reference.size, reference.crc) + reference.path)

    def end(self) -> None:
        self._flush()
        self._frame.write(_END)
        self._frame.flush(zstandard.FLUSH_FRAME)

    def _flush(self) -> None:
        if self._pending:
            self._frame.write(_INLINE + _INLINE_HEAD.pack(len(self._pending)))
            self._frame.write(self._pending)
            self._pending.clear()


def _records(frame: BinaryIO, label: str) -> Iterator[bytes | _Reference]:
    """Yield the records of a zstd frame: the tar's own bytes in pieces of at most CHUNK, and references."""
    raw = zstandard.ZstdDecompressor().stream_reader(frame, closefd=False)
    read = io.BufferedReader(cast(io.RawIOBase, raw), _BUFFER).read
    try:
        while (kind := read(1)) != _END:
            if kind == _FILE:
                length, size, crc = _FILE_HEAD.unpack(read(_FILE_HEAD.size))
                path = read(length)
                if len(path) != length:
                    raise _damaged(label, _SHORT)
                yield _Reference(path, size, crc)
            elif kind == _INLINE:
                (left,) = _INLINE_HEAD.unpack(read(_INLINE_HEAD.size))
                while left:
                    piece = read(min(left, CHUNK))
                    if not piece:
                        raise _damaged(label, _SHORT)
                    left -= len(piece)
                    yield piece
            else:
                raise _damaged(label, f"it has a record of unknown kind '{printable(kind)}'" if kind else _SHORT)
        # zstd checks the checksum only when it reads past the last record.
        if read(1):
            raise _damaged(label, "it has data after its end")
    except zstandard.ZstdError as error:
        raise _damaged(label, str(error)) from None
    except struct.error:
        raise _damaged(label, _SHORT) from None


def _damaged(label: str, how: str) -> ImageError:
    return ImageError(f"{label}: the recipe of its tar is damaged: {how}", _REMEDY)
