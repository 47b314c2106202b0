"""Where `save` writes the files of an image layout: one after the other into a tar, or into a directory."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

# Takes the next bytes of a file.
Write = Callable[[bytes | memoryview], object]


class Sink(Protocol):
    """A place for files, which have relative names and are written once. Every method raises OSError."""

    def file(self, name: str, data: bytes) -> None:
        """Write a small file."""

    def member(self, name: str, size: int) -> AbstractContextManager[Write]:
        """Give a function that writes a file piece by piece; it must get exactly `size` bytes."""

    def end(self) -> None:
        """Write what comes after the last file."""


class TarSink:
    """A tar, written strictly forward into a stream that the caller owns."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out

    def file(self, name: str, data: bytes) -> None:
        """Write a small file."""
        with self.member(name, len(data)) as write:
            write(data)

    @contextmanager
    def member(self, name: str, size: int) -> Iterator[Write]:
        """Give a function that writes a file piece by piece."""
        info = tarfile.TarInfo(name)
        info.size = size
        self._out.write(info.tobuf(tarfile.PAX_FORMAT))
        yield self._out.write
        self._out.write(bytes(-size % tarfile.BLOCKSIZE))

    def end(self) -> None:
        """Write the end of the tar."""
        self._out.write(bytes(2 * tarfile.BLOCKSIZE))
        self._out.flush()


class DirectorySink:
    """A directory that exists and has no such files yet; the ones above a file are made."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def file(self, name: str, data: bytes) -> None:
        """Write a small file."""
        with self.member(name, len(data)) as write:
            write(data)

    @contextmanager
    def member(self, name: str, size: int) -> Iterator[Write]:
        """Give a function that writes a file piece by piece."""
        path = self._directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
        with os.fdopen(fd, "wb") as stream:
            yield stream.write

    def end(self) -> None:
        """Do nothing: a directory has no end."""
