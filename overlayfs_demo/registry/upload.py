"""Uploads of blobs: continued where they broke off, mounted from another repository where the registry has them.

The rules are those of distribution-spec, "Pushing blobs": POST begins an upload, PATCH sends the bytes, PUT with the
digest ends it. Until then the registry shows nothing.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from typing import BinaryIO
from urllib.parse import quote, urlencode

from overlayfs_demo.errors import RegistryError
from overlayfs_demo.images.model import Digest
from overlayfs_demo.images.progress import SILENT, Progress
from overlayfs_demo.registry.client import BUSY, MAX_ERROR, BrokenError, Reply, Stream
from overlayfs_demo.registry.download import Blob
from overlayfs_demo.registry.remote import Remote

_PIECE = 1 << 17
_RANGE = re.compile(r"(?:bytes=)?0-(\d{1,18})")


def mounted(remote: Remote, digest: Digest, source: str) -> bool:
    """Let the repository have a blob of another one, whose path is `source`, and return whether it has it now."""
    query = urlencode({"mount": str(digest), "from": source}, safe="/:")
    reply = remote.client.exchange("POST", remote.path(f"blobs/uploads/?{query}"), f"blob {digest.short}")
    if reply.status == 202:
        # The registry cannot do it, and has begun an upload instead.
        with contextlib.suppress(RegistryError):
            abandon(remote, _location(remote, reply))
    return reply.status == 201


def abandon(remote: Remote, location: str) -> None:
    """Tell the registry that an upload will not be continued. An error is ignored: it forgets old uploads itself."""
    with contextlib.suppress(RegistryError, BrokenError), remote.client.open("DELETE", location, {}):
        pass


def _location(remote: Remote, reply: Reply) -> str:
    where = reply.headers.get("location", "")
    return remote.client.resolved(reply.url, where, "an upload")


class Upload:
    """One blob, all of which is in `file`, on its way into a repository."""

    def __init__(self, remote: Remote, blob: Blob, file: BinaryIO, progress: Progress = SILENT) -> None:
        self._remote = remote
        self._client = remote.client
        self._blob = blob
        self._file = file
        self._progress = progress
        self._sent = 0
        # Where the registry wants the upload to be continued; "" if it has not begun.
        self.location = ""

    def run(self) -> None:
        """Upload the blob. Raises RegistryError, OSError."""
        self._client.attempts(self._blob.title, self._attempt, lambda: self._sent)
        self.location = ""

    def _attempt(self) -> None:
        if self.location and self._is_complete():
            return
        if not self.location:
            self._reached(0)
            self._follow(self._ask("POST", self._remote.path("blobs/uploads/"), {}), 202)
        if self._sent < self._blob.size:
            self._send()
        separator = "&" if "?" in self.location else "?"
        end = f"{self.location}{separator}digest={quote(str(self._blob.digest), safe=':')}"
        reply = self._ask("PUT", end, {"Content-Type": "application/octet-stream"}, self._client.patience.commit)
        if reply.status != 201:
            raise self._refused(reply)

    def _is_complete(self) -> bool:
        """Find out how much of a broken upload has arrived, and return whether it was even ended.

        Without a clear answer it begins again: a registry that has one byte says the same as one that has nothing.
        """
        reply = self._ask("GET", self.location, {})
        match = _RANGE.fullmatch(reply.headers.get("range", ""))
        arrived = int(match[1]) + 1 if match is not None and reply.status == 204 else 0
        if 1 < arrived <= self._blob.size:
            self._reached(arrived)
            self._follow(reply, 204)
            return False
        if reply.status != 404:
            abandon(self._remote, self.location)
        self.location = ""
        return reply.status == 404 and self._remote.has_blob(self._blob.digest, self._blob.size)

    def _send(self) -> None:
        size, start = self._blob.size, self._sent
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size - start)}
        if start:
            headers["Content-Range"] = f"{start}-{size - 1}"
        with self._client.open("PATCH", self.location, headers, lambda: self._pieces(start)) as (answer, url):
            reply = self._reply(answer, url)
        if reply.status == 416:
            raise BrokenError("it has another part of the upload than it said")
        self._follow(reply, 202)

    def _pieces(self, start: int) -> Iterator[bytes]:
        self._reached(start)
        while piece := os.pread(self._file.fileno(), min(_PIECE, self._blob.size - self._sent), self._sent):
            self._client.require_running()
            yield piece
            self._reached(self._sent + len(piece))

    def _reached(self, position: int) -> None:
        self._progress.advance(position - self._sent)
        self._sent = position

    def _ask(self, method: str, url: str, headers: dict[str, str], timeout: float = 0) -> Reply:
        """Make one attempt at a request without a body. Raises BrokenError."""
        with self._client.open(method, url, headers, timeout=timeout) as (answer, where):
            return self._reply(answer, where)

    def _reply(self, answer: Stream, url: str) -> Reply:
        data = self._client.whole(answer, MAX_ERROR, self._blob.title)
        if answer.status in BUSY:
            raise self._client.busy(answer, data)
        return Reply(answer.status, answer.headers, data, url)

    def _follow(self, reply: Reply, status: int) -> None:
        """Continue where an answer says. Raises RegistryError unless it has this status."""
        if reply.status == 404 and self.location:
            self.location = ""
            raise BrokenError("it has forgotten the upload")
        if reply.status != status:
            raise self._refused(reply)
        if "location" in reply.headers:
            self.location = _location(self._remote, reply)
        elif not self.location:
            raise RegistryError(f"{self._client.title}: {self._blob.title}: it does not say where to upload")

    def _refused(self, reply: Reply) -> RegistryError:
        return self._client.refusal(self._blob.title, reply.status, reply.body)
