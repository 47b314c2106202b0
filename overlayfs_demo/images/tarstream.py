"""A strict, forward-only reader of the members of a tar stream.

The standard library's `tarfile` does the parsing. Its own loop, however, takes a damaged header, or the end of the
data, for the end of the archive; the loop here does not. It reads forward only, keeps no list of members, and turns
whatever a damaged header can raise into an ImageError.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator, Mapping
from typing import BinaryIO

from overlayfs_demo.errors import ImageError, printable
from overlayfs_demo.images.sparse import write_sparse

CHUNK = 1 << 20

# The largest total size in bytes of one member's headers (long names, xattrs, sparse maps), which are kept in memory.
_MAX_HEADER = 16 << 20

# The exceptions that tarfile lets through for a damaged header; a chain of extended headers recurses.
_DAMAGE = (tarfile.TarError, ValueError, IndexError, KeyError, OverflowError, RecursionError)


class _Forward:
    """The few methods of a file object that tarfile needs: exact reads, a position, and forward seeks."""

    __slots__ = ("_seekable", "header_left", "last", "position", "source")

    def __init__(self, source: BinaryIO) -> None:
        self.source = source
        self.position = 0
        self.last = b""
        # The bytes that the headers of the current member may still take.
        self.header_left = _MAX_HEADER
        self._seekable = source.seekable()

    def read(self, size: int) -> bytes:
        if not 0 <= size <= self.header_left:
            raise tarfile.ReadError(f"a header of more than {_MAX_HEADER} bytes")
        self.header_left -= size
        data = self.source.read(size)
        self.position += len(data)
        self.last = data
        if data and len(data) < size:
            raise tarfile.ReadError("the data ends inside a header")
        return data

    def tell(self) -> int:
        return self.position

    def seek(self, position: int) -> None:
        distance = position - self.position
        if distance < 0:
            raise tarfile.ReadError("a member of negative size")
        if self._seekable:
            self.source.seek(distance, os.SEEK_CUR)
            self.position = position
        while self.position < position:
            data = self.source.read(min(CHUNK, position - self.position))
            if not data:
                raise tarfile.ReadError("the data ends inside a member")
            self.position += len(data)


class _StrictTar(tarfile.TarFile):
    """A TarFile that ends only at an end-of-archive block, or where the data ends after a member."""

    fileobj: _Forward  # type: ignore[assignment]
    firstmember: tarfile.TarInfo | None
    ended = False
    at_end_of_data = False

    @property
    def pax_headers(self) -> Mapping[str, str]:
        """The records of global headers, which tarfile gives to all members that follow: always empty.

        Docker, podman and umoci ignore global headers (moby, pkg/archive: TypeXGlobalHeader). With them, a layer would
        be a different tree here than there.
        """
        return {}

    @pax_headers.setter
    def pax_headers(self, _records: Mapping[str, str]) -> None:
        pass

    def next(self) -> tarfile.TarInfo | None:
        # The constructor has read the first member already; members are not collected, unlike in TarFile.
        first, self.firstmember = self.firstmember, None
        if first is not None or self.ended:
            return first
        stream = self.fileobj
        if stream.position != self.offset:
            stream.seek(self.offset)
        stream.header_left = _MAX_HEADER
        try:
            return tarfile.TarInfo.fromtarfile(self)
        except tarfile.HeaderError:
            # Only the header at `offset` itself may end the tar, not one that belongs to a long name.
            read = stream.position - self.offset
            self.at_end_of_data = read == 0
            if read > tarfile.BLOCKSIZE or any(stream.last):
                raise
            self.ended = True
            return None


class TarStream:
    """The members of one tar, once, in order; `label` says in errors which tar it is.

    Between two members the caller may read the current one's data with `copy` and `read`. Names are text with surrogate
    escapes: `name.encode("utf-8", "surrogateescape")` returns the bytes of the tar.

    `marked_end` says that the end-of-archive mark must be there (pax(1), "ustar Interchange Format"). It is not needed
    where a digest guards the stream: some builders leave the mark out, and Docker reads their layers.
    """

    def __init__(self, source: BinaryIO, label: str, marked_end: bool) -> None:
        self._forward = _Forward(source)
        self._label = label
        self._marked_end = marked_end
        self._tar: _StrictTar | None = None
        self._last = ""

    def __iter__(self) -> Iterator[tarfile.TarInfo]:
        while True:
            try:
                if self._tar is None:
                    self._tar = _StrictTar(
                        fileobj=self._forward,  # type: ignore[arg-type]
                        encoding="utf-8",
                        errors="surrogateescape",
                    )
                info = self._tar.next()
            except _DAMAGE as error:
                raise self._broken(str(error) or type(error).__name__) from None
            if info is None:
                break
            if info.size < 0:
                raise self._broken("a member of negative size")
            self._last = info.name
            yield info
        if self._tar.at_end_of_data and self._marked_end:
            raise self._broken("the end-of-archive mark is missing")

    def _broken(self, problem: str) -> ImageError:
        where = (
            f"damaged or truncated: after member '{printable(self._last)}'"
            if self._last
            else "not a tar archive, or damaged at its start"
        )
        return ImageError(f"{self._label} is {where}: {problem}", "fetch or export it again")

    @property
    def stored(self) -> int:
        """The number of bytes of data (and padding) that follow the current member's header."""
        assert self._tar is not None
        return self._tar.offset - self._forward.position

    def read(self, size: int) -> bytes:
        """Return the next `size` bytes of the current member; ask for at most CHUNK at a time. Raises ImageError."""
        data = self._forward.source.read(size)
        self._forward.position += len(data)
        if len(data) != size:
            raise self._broken("the data ends inside it")
        return data

    def copy(self, size: int, fd: int) -> None:
        """Append the next `size` bytes of the current member to the file `fd`, at its offset; see `write_sparse`."""
        while size > 0:
            data = self.read(min(size, CHUNK))
            size -= len(data)
            write_sparse(fd, data)
