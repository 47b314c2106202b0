"""A stored layer as a stream: decompressed, and checked against its digests.

A layer is read once, forward: file, hash of the stored bytes, decompression, hash of the tar, reader. All stages except
the reader run ahead of it in a thread. No data is kept, and nothing is written to disk on the way.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import re
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, BinaryIO, cast

import zstandard

from overlayfs_demo.errors import ImageError, printable
from overlayfs_demo.images.model import Digest
from overlayfs_demo.images.progress import SILENT, Progress
from overlayfs_demo.images.readahead import ReadAhead

if TYPE_CHECKING:
    from hashlib import _Hash

    from _typeshed import WriteableBuffer

_BUFFER = 1 << 18

_DAMAGE = (EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError, gzip.BadGzipFile)


def _open_gzip(stored: BinaryIO) -> BinaryIO:
    return cast(BinaryIO, gzip.GzipFile(fileobj=stored, mode="rb"))


def _open_xz(stored: BinaryIO) -> BinaryIO:
    return cast(BinaryIO, lzma.LZMAFile(stored))


def _open_zstd(stored: BinaryIO) -> BinaryIO:
    return cast(BinaryIO, zstandard.ZstdDecompressor().stream_reader(stored, read_across_frames=True))


def _open_bzip2(stored: BinaryIO) -> BinaryIO:
    return cast(BinaryIO, bz2.BZ2File(stored))


# Each format with the magic bytes that its data begins with. bzip2's magic is text, and the first name in a tar may
# also begin with it. The magic of the first block tells them apart, or that of the end if there are no blocks.
_FORMATS: tuple[tuple[re.Pattern[bytes], str, Callable[[BinaryIO], BinaryIO]], ...] = (
    (re.compile(rb"\x1f\x8b"), "gzip", _open_gzip),
    # Or a skippable frame (RFC 8878, 3.1.2), with which the output of pzstd and others begins.
    (re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"), "zstd", _open_zstd),
    (re.compile(rb"\xfd7zXZ\x00"), "xz", _open_xz),
    (re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)"), "bzip2", _open_bzip2),
)
# Formats that are not read here, each with the command that decompresses it.
_OTHERS: tuple[tuple[re.Pattern[bytes], str, str], ...] = (
    (re.compile(rb"\x04\x22\x4d\x18|\x02\x21\x4c\x18"), "lz4", "lz4 -d"),
    (re.compile(rb"PK(\x03\x04|\x05\x06|\x07\x08)"), "zip", "unzip"),
    (re.compile(rb"7z\xbc\xaf\x27\x1c"), "7z", "7z x"),
    (re.compile(rb"Rar!\x1a\x07"), "rar", "unrar x"),
    (re.compile(rb"LZIP\x01"), "lzip", "lzip -d"),
    (re.compile(rb"\x5d\x00\x00[^\x00]"), "lzma", "xz -d --format=lzma"),
    (re.compile(rb"\x89LZO\x00\x0d\x0a\x1a\x0a"), "lzop", "lzop -d"),
    (re.compile(rb"\x1f[\x9d\xa0]"), "compress", "uncompress"),
    (re.compile(rb"\xff\x06\x00\x00sNaPpY"), "snappy", "snzip -d"),
)
# The length of the longest magic, in bytes.
_MAGIC = 10


def compression(fd: int, offset: int, size: int, label: str) -> str:
    """Return how a stretch of a file is compressed: gzip, zstd, xz, bzip2, or "" for not at all.

    Raises ImageError, which begins with `label`, for a compression that is not read here.
    """
    return _compression(os.pread(fd, min(size, _MAGIC), offset), label)


def _compression(magic: bytes, label: str) -> str:
    """Return the same for data that begins with these bytes."""
    for start, name, undo in _OTHERS:
        if start.match(magic):
            raise ImageError(
                f"{label} is compressed with {name}, which this program cannot read", f"decompress it first: {undo}"
            )
    return next((name for start, name, _ in _FORMATS if start.match(magic)), "")


class Window(io.RawIOBase):
    """`size` bytes of an open file from `offset`, read with pread(2): the file's own offset is not used.

    The caller keeps `fd` open. `hasher` gets every byte, and `progress` the number of bytes.
    """

    def __init__(
        self, fd: int, offset: int, size: int, hasher: _Hash | None = None, progress: Progress = SILENT
    ) -> None:
        self._fd = fd
        self._progress = progress
        self._at = offset
        self._end = offset + size
        self._hasher = hasher

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer)[: self._end - self._at]
        count = os.preadv(self._fd, [view], self._at) if view else 0
        self._at += count
        if self._hasher is not None:
            self._hasher.update(view[:count])
        self._progress.advance(count)
        return count


class _Plain(io.RawIOBase):
    """The bytes of `stored`, decompressed according to `kind`; damage raises ImageError, which begins with `label`."""

    def __init__(self, stored: io.RawIOBase, kind: str, label: str, hasher: _Hash | None = None) -> None:
        self._label = label
        self._hasher = hasher
        self._inner = cast(BinaryIO, stored)
        self._kind = kind
        for _start, name, opener in _FORMATS:
            if name == self._kind:
                self._inner = opener(cast(BinaryIO, io.BufferedReader(stored, _BUFFER)))

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer)
        try:
            count = self._inner.readinto(view)  # type: ignore[attr-defined]
        except (*_DAMAGE, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # The file cannot be read. bz2 reports damage as an OSError without a number.
            raise ImageError(
                f"{self._label}: its {self._kind} data is damaged or truncated ({error})", "fetch or export it again"
            ) from None
        if self._hasher is not None:
            self._hasher.update(view[:count])
        return int(count)


def open_plain(fd: int, offset: int, size: int, label: str) -> BinaryIO:
    """Return a stretch of a file, decompressed if its first bytes say so.

    Raises ImageError for a compression that is not read here; reading the result raises it for damaged data.
    """
    raw = _Plain(Window(fd, offset, size), compression(fd, offset, size, label), label)
    return cast(BinaryIO, io.BufferedReader(raw, _BUFFER))


class _Whole(io.RawIOBase):
    """A stream whose first bytes, `head`, were read already."""

    def __init__(self, head: bytes, rest: BinaryIO) -> None:
        self._head = head
        self._rest = rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer)
        data = self._head[: len(view)] or self._rest.read(len(view))
        self._head = self._head[len(data) :]
        view[: len(data)] = data
        return len(data)


def decompressed(stream: BinaryIO, label: str) -> BinaryIO:
    """Return a stream's data from here on, decompressed if its first bytes say so; it need not be a file.

    Raises as `open_plain` does.
    """
    head = stream.read(_MAGIC)
    raw = _Plain(_Whole(head, stream), _compression(head, label), label)
    return cast(BinaryIO, io.BufferedReader(raw, _BUFFER))


class LayerReader:
    """One layer's tar: the caller reads `tar` forward, then `finish` checks that it was the right one.

    The caller must close it, because a thread reads ahead, and must keep `fd` open until then. Making one raises
    ImageError if the layer's compression is not known.
    """

    def __init__(
        self,
        fd: int,
        offset: int,
        size: int,
        label: str,
        diff_id: Digest,
        digest: Digest | None,
        progress: Progress = SILENT,
    ) -> None:
        kind = compression(fd, offset, size, label)
        # An uncompressed blob is its own tar, so one hash checks both names.
        self._digest = None if digest == diff_id and not kind else digest
        self._diff_id = diff_id
        self._label = label
        self._stored_hash = self._digest.hasher() if self._digest else None
        self._plain_hash = diff_id.hasher()
        self._window = Window(fd, offset, size, self._stored_hash, progress)
        raw = _Plain(self._window, kind, label, self._plain_hash)
        self._ahead = ReadAhead(raw)
        self.tar = cast(BinaryIO, io.BufferedReader(self._ahead, _BUFFER))

    def close(self) -> None:
        """Stop reading."""
        self._ahead.close()

    def finish(self) -> None:
        """Read what follows the tar's end, then check both hashes. Raises ImageError if one of them is wrong."""
        while self.tar.read(_BUFFER):
            pass
        # The thread must have ended: from here on the window is read directly.
        self.close()
        while self._window.read(_BUFFER):
            pass
        if self._digest is not None and self._stored_hash is not None:
            require_digest(self._digest, self._stored_hash.hexdigest(), self._label, "its digest")
        require_digest(self._diff_id, self._plain_hash.hexdigest(), self._label, "its diff ID in the config")


def require_digest(expected: Digest, found: str, label: str, source: str) -> None:
    """Raise ImageError unless `found`, a hash in hexadecimal, is the expected one."""
    if found != expected.encoded:
        raise ImageError(
            f"{label} does not match {source}: expected {printable(str(expected))}, found {expected.algorithm}:{found}",
            "fetch or export the image again",
        )
