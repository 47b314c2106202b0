"""A registry in memory that does what a test tells it to: right by default, or slow, broken, or lying.

`Fake.trap` is asked first for each request, and answers it itself by returning True.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from overlayfs_demo.images.reference import Reference
from overlayfs_demo.registry.patience import Patience
from overlayfs_demo.registry.pull import Pulled, pull
from overlayfs_demo.registry.push import Pushed, push, sources
from overlayfs_demo.registry.session import Ways, remote
from overlayfs_demo.store.store import Store
from tests.images.builders import Blobs

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
# Waits are short; whether something is too slow does not depend on the speed of the machine.
QUICK = Patience(attempts=3, first_delay=0.01, longest_delay=3.0, connect=15.0, read=15.0)


@dataclass(frozen=True)
class Seen:
    """One request that came."""

    method: str
    path: str
    headers: Mapping[str, str]


class Call(BaseHTTPRequestHandler):
    """One connection to a fake registry."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, *_: object) -> None:
        pass

    @property
    def fake(self) -> Fake:
        return self.server.fake

    def answer(self, status: int, body: bytes = b"", **headers: str) -> bool:
        """Answer with these headers; `_` in a name stands for a hyphen."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        return True

    def handle_one(self) -> None:
        self.fake.seen.append(Seen(self.command, self.path, dict(self.headers.items())))
        try:
            if not self.fake.trap(self):
                self._serve()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = handle_one

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        match = re.fullmatch(r"/v2/(.+)/(manifests|blobs|tags)/(.*)", parts.path)
        if match is None:
            self.answer(200 if parts.path == "/v2/" else 404)
        elif match[2] == "manifests":
            self._manifest(match[1], match[3])
        elif match[2] == "tags":
            tags = [tag for repository, tag in self.fake.manifests if repository == match[1] and ":" not in tag]
            self.answer(200, json.dumps({"name": match[1], "tags": tags}).encode())
        elif match[3].startswith("uploads/"):
            self._upload(match[1], match[3].removeprefix("uploads/"), query)
        else:
            self._blob(match[3])

    def _manifest(self, repository: str, reference: str) -> None:
        if self.command == "PUT":
            data = self.body()
            self.fake.keep_manifest(repository, reference, data, self.headers["Content-Type"])
            self.answer(201, Docker_Content_Digest=digest(data))
            return
        found = self.fake.manifests.get((repository, reference))
        if found is None:
            self.answer(404, b'{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}')
        else:
            self.answer(200, found[0], Content_Type=found[1], Docker_Content_Digest=digest(found[0]))

    def _blob(self, name: str) -> None:
        data = self.fake.blobs.get(name)
        if data is None:
            self.answer(404)
        elif wanted := self.headers.get("Range"):
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            self.answer(206, data[start:], Content_Range=f"bytes {start}-{len(data) - 1}/{len(data)}")
        else:
            self.answer(200, data)

    def _upload(self, repository: str, session: str, query: Mapping[str, str]) -> None:
        uploads = self.fake.uploads
        if self.command == "POST":
            if query.get("mount") in self.fake.blobs and query.get("from") in self.fake.mountable:
                self.answer(201)
                return
            session = f"u{len(self.fake.seen)}"
            uploads[session] = b""
        elif session not in uploads:
            self.answer(404, self.body()[:0])
            return
        elif self.command == "PATCH":
            uploads[session] += self.body()
        elif self.command == "DELETE":
            del uploads[session]
            self.answer(204)
            return
        elif self.command == "PUT":
            data = uploads.pop(session)
            if digest(data) == query["digest"]:
                self.fake.blobs[query["digest"]] = data
            self.answer(201 if digest(data) == query["digest"] else 400)
            return
        status = 204 if self.command == "GET" else 202
        place = f"/v2/{repository}/blobs/uploads/{session}"
        self.answer(status, Location=place, Range=f"0-{max(len(uploads[session]) - 1, 0)}")


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    fake: Fake

    def handle_error(self, *_: object) -> None:
        pass  # A client that has enough closes the connection.


@dataclass
class Fake:
    """What a fake registry has, and what it was asked."""

    domain: str = ""
    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[tuple[str, str], tuple[bytes, str]] = field(default_factory=dict)
    uploads: dict[str, bytes] = field(default_factory=dict)
    mountable: set[str] = field(default_factory=set)
    seen: list[Seen] = field(default_factory=list)
    trap: Callable[[Call], bool] = lambda _call: False
    # Ends the waits of traps that never answer.
    over: threading.Event = field(default_factory=threading.Event)

    def keep_manifest(self, repository: str, tag: str, data: bytes, kind: str = MANIFEST) -> None:
        self.manifests[repository, tag] = self.manifests[repository, digest(data)] = data, kind

    def put(self, repository: str, tag: str, blobs: Blobs, entry: Mapping[str, Any]) -> bytes:
        """Take the blobs of a layout; the tag stands for the entry's manifest or index, which is returned."""
        for place, data in blobs.members.items():
            self.blobs[f"sha256:{place.rpartition('/')[2]}"] = data
            self.manifests[repository, digest(data)] = data, MANIFEST
        data = self.blobs[entry["digest"]]
        self.keep_manifest(repository, tag, data, entry["mediaType"])
        return data

    def paths(self, method: str) -> list[str]:
        return [request.path for request in self.seen if request.method == method]


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@contextmanager
def serving(fake: Fake, address: str = "127.0.0.1") -> Iterator[Fake]:
    with _Server((address, 0), Call) as server:
        server.fake = fake
        fake.domain = f"{address}:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield fake
        finally:
            fake.over.set()
            server.shutdown()
            thread.join()


def pulled(fake: Fake, store: Store, name: str = "app:1", patience: Patience = QUICK) -> Pulled:
    reference = Reference.parse(f"{fake.domain}/{name}")
    with remote(reference.repository, "pull", Ways(patience=patience)) as there:
        return pull(store, there, reference)


def pushed(fake: Fake, store: Store, name: str = "app:1", patience: Patience = QUICK) -> Pushed:
    image = store.find(f"{fake.domain}/{name}")
    assert image.name is not None
    target = image.name.repository
    with remote(target, "pull,push", Ways(patience=patience), sources(store, image, target)) as there:
        return push(store, there, image, image.name.tag)
