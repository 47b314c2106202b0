"""Which members does this tar stream hold, and did it end where a tar ends?

The standard library's `tarfile` does the parsing. Its own loop, however, takes a damaged header, or
the end of the data, for the end of the archive; the loop here does not. It reads forward only, keeps
no list of members, and turns whatever a damaged header can raise into an ImageError.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator, Mapping
from typing import BinaryIO

from overlayfs_demo.errors import ImageError, printable
from overlayfs_demo.images.sparse import write_sparse

CHUNK = 1 << 20

# The most that all headers of one member (long names, xattrs, sparse maps) may have in bytes: they are kept in memory.
_MAX_HEADER = 16 << 20

# What tarfile lets through when a header holds nonsense; a chain of extended headers recurses.
_DAMAGE = (tarfile.TarError, ValueError, IndexError, KeyError, OverflowError, RecursionError)


class _Forward:
    """The little of a file object that tarfile needs: exact reads, a position, and forward seeks."""

    __slots__ = ("_seekable", "header_left", "last", "position", "source")

    def __init__(self, source: BinaryIO) -> None:
        self.source = source
        self.position = 0
        self.last = b""
        # What the headers of the current member may still take.
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
    """TarFile, except that only an end-of-archive block, or the end of the data after a member, ends it."""

    fileobj: _Forward  # type: ignore[assignment]
    firstmember: tarfile.TarInfo | None
    ended = False
    at_end_of_data = False

    @property
    def pax_headers(self) -> Mapping[str, str]:
        """The records of global headers, which tarfile gives to all members that follow: none.

        Docker, podman and umoci leave global headers out (moby, pkg/archive: TypeXGlobalHeader), and so a layer
        would be another tree here than there.
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

    Between two members the caller may read the current one's data with `copy` and `read`. Names are
    text with surrogate escapes: `name.encode("utf-8", "surrogateescape")` gives the bytes of the tar back.

    `marked_end`: the end-of-archive mark must be there (pax(1), "ustar Interchange Format"). Where a
    digest guards the stream it need not be: some builders leave the mark out, and Docker reads them.
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

    def _broken(self, what: str) -> ImageError:
        where = (
            f"damaged or cut short: after member '{printable(self._last)}'"
            if self._last
            else "not a tar archive, or damaged at its start"
        )
        return ImageError(f"{self._label} is {where}: {what}", "fetch or export it again")

    @property
    def stored(self) -> int:
        """How many bytes of data (and padding) follow the current member's header."""
        assert self._tar is not None
        return self._tar.offset - self._forward.position

    def read(self, size: int) -> bytes:
        """The next `size` bytes of the current member; at most CHUNK are wanted at a time."""
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
