"""Downloads of blobs into unnamed files: in parallel, verified while they arrive, resumed where they broke off."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, cast

from overlayfs_demo.errors import RegistryError, printable
from overlayfs_demo.images.model import Digest
from overlayfs_demo.images.progress import SILENT, Progress
from overlayfs_demo.registry.client import BUSY, MAX_ERROR, BrokenError, Stream
from overlayfs_demo.registry.listener import Listener
from overlayfs_demo.registry.remote import Remote

# As many as docker's daemon downloads at once ("max-concurrent-downloads").
PARALLEL = 3

_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-\d{1,18}/(?:\d{1,18}|\*)")


@dataclass(frozen=True, slots=True)
class Blob:
    """A blob that a manifest names; `title` says in errors what it is."""

    digest: Digest
    size: int
    title: str


class _Arrival:
    """A blob on its way into a file: how much of it is there, and the hash of that."""

    def __init__(self, remote: Remote, blob: Blob, file: BinaryIO, progress: Progress) -> None:
        self._remote = remote
        self._client = remote.client
        self._blob = blob
        self._file = file
        self._progress = progress
        self._hasher = blob.digest.hasher()
        self.size = 0

    def run(self) -> None:
        """Download the whole blob. Raises RegistryError, OSError."""
        blob = self._blob
        self._client.attempts(blob.title, self._attempt, lambda: self.size)
        if self._hasher.hexdigest() != blob.digest.encoded:
            raise self._lie(
                f"does not match its digest: expected {blob.digest}, "
                f"found {blob.digest.algorithm}:{self._hasher.hexdigest()}"
            )

    def _lie(self, problem: str) -> RegistryError:
        return RegistryError(
            f"{self._client.title}: {self._blob.title} {problem}",
            "do not use this image, and report it to those who run the registry",
        )

    def _attempt(self) -> None:
        """Download what is missing. Raises BrokenError if less came, RegistryError if something else did."""
        blob = self._blob
        if self.size == blob.size and blob.size:
            return
        headers = {"Range": f"bytes={self.size}-"} if self.size else {}
        with self._client.open("GET", self._remote.path(f"blobs/{blob.digest}"), headers) as (answer, _):
            if answer.status not in (200, 206):
                self._refused(answer)
            self._place(answer)
            self._require_promise(answer)
            for piece in answer.pieces:
                self._client.require_running()
                self._take(piece)
        if self.size < blob.size:
            raise BrokenError(f"the answer ended after {self.size} of {blob.size} bytes")

    def _refused(self, answer: Stream) -> None:
        if answer.status == 404:
            raise self._lie("is not there, although the manifest names it")
        data = self._client.whole(answer, MAX_ERROR, self._blob.title)
        if answer.status in BUSY:
            raise self._client.busy(answer, data)
        raise self._client.refusal(self._blob.title, answer.status, data)

    def _place(self, answer: Stream) -> None:
        """Continue where the answer begins: at our place, or at the start if it does not know ranges."""
        if answer.status == 200:
            self._progress.advance(-self.size)
            self.size = 0
            self._hasher = self._blob.digest.hasher()
            os.ftruncate(self._file.fileno(), 0)
            return
        match = _CONTENT_RANGE.fullmatch(answer.headers.get("content-range", ""))
        if match is None or int(match[1]) != self.size:
            said = printable(answer.headers.get("content-range", "nothing"))
            raise self._lie(f"was requested from byte {self.size}, but the registry answers with {said}")

    def _require_promise(self, answer: Stream) -> None:
        promised = answer.headers.get("content-length")
        left = self._blob.size - self.size
        if promised is not None and promised != str(left):
            raise self._lie(
                f"has {self._blob.size} bytes in the manifest, but the registry offers "
                f"{printable(promised[:20])} bytes instead of {left}"
            )

    def _take(self, piece: bytes) -> None:
        if self.size + len(piece) > self._blob.size:
            raise self._lie(f"has {self._blob.size} bytes in the manifest, but the registry sends more")
        self._hasher.update(piece)
        written = 0
        while written < len(piece):
            written += os.pwrite(self._file.fileno(), piece[written:], self.size + written)
        self.size += len(piece)
        self._progress.advance(len(piece))


class Downloads:
    """Blobs of one repository, each downloaded once into an unnamed file of the directory `scratch`.

    At the end of the `with` block all files are gone. After an error in the block, downloads that still run are broken
    off.
    """

    def __init__(self, remote: Remote, scratch: Path, listener: Listener) -> None:
        self._remote = remote
        self._scratch = scratch
        self._listener = listener
        self._threads = ThreadPoolExecutor(PARALLEL, "download")
        self._running: dict[Digest, Future[BinaryIO]] = {}
        self._files: list[BinaryIO] = []

    def __enter__(self) -> Downloads:
        return self

    def __exit__(self, kind: type[BaseException] | None, _error: object, _trace: TracebackType | None) -> None:
        if kind is not None:
            self._remote.client.stop()
        self._threads.shutdown(wait=True, cancel_futures=True)
        for file in self._files:
            file.close()

    def begin(self, blobs: Iterable[Blob], *, silent: bool = False) -> None:
        """Begin to download those blobs that were not begun. Raises RegistryError if they do not fit on the disk."""
        new = {blob.digest: blob for blob in blobs if blob.digest not in self._running}
        self._require_room(list(new.values()))
        for digest, blob in new.items():
            self._running[digest] = self._threads.submit(self._download, blob, silent)

    def _require_room(self, blobs: list[Blob]) -> None:
        disk = os.statvfs(self._scratch)
        free, needed = disk.f_bavail * disk.f_frsize, sum(blob.size for blob in blobs)
        if needed > free:
            largest = max(blobs, key=lambda blob: blob.size)
            raise RegistryError(
                f"{self._remote.client.title}: {largest.title} has {largest.size} bytes in the manifest, and all that "
                f"is missing {needed}, but the store has room for {free}",
                "make room, or use another --store",
            )

    def file(self, digest: Digest) -> BinaryIO:
        """Return a file with the whole blob, once it is there and verified. Raises RegistryError, OSError."""
        return self._running[digest].result()

    def wait(self) -> None:
        """Wait for all downloads that have begun. Raises the first error at once."""
        finished, _ = wait(self._running.values(), return_when=FIRST_EXCEPTION)
        for running in finished:
            running.result()

    def _download(self, blob: Blob, silent: bool) -> BinaryIO:
        progress = SILENT if silent else self._listener.begin(blob.digest.short, "Downloading", blob.size)
        file = cast(BinaryIO, tempfile.TemporaryFile(dir=self._scratch))  # noqa: SIM115 - closed at the end of the block
        self._files.append(file)
        try:
            _Arrival(self._remote, blob, file, progress).run()
        except OSError as error:
            raise RegistryError(f"{blob.title} cannot be kept: {error.strerror}", "make room in the store") from None
        return file
