"""A registry in memory, as much of the OCI distribution-spec as docker push and pull need, which counts the uploads."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit


@dataclass
class Registry:
    """What was pushed, by digest or tag, and the number of blobs that were sent."""

    address: str = ""
    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    uploads: int = 0


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    registry: Registry
    parts: dict[str, bytes]

    def log_message(self, *_words: object) -> None:
        pass

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        name = path.rpartition("/")[2]
        if path == "/v2/":
            self._answer(200)
        elif "/blobs/" in path and name in self.registry.blobs:
            self._answer(200, self.registry.blobs[name], Docker_Content_Digest=name)
        elif "/manifests/" in path and name in self.registry.manifests:
            kind, data = self.registry.manifests[name]
            self._answer(200, data, Content_Type=kind, Docker_Content_Digest=_digest(data))
        else:
            self._answer(404)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        place = urlsplit(self.path).path + f"{len(self.parts)}"
        self.parts[place] = self._body()
        self._answer(202, Location=place, Range="0-0")

    def do_PATCH(self) -> None:
        place = urlsplit(self.path).path
        self.parts[place] += self._body()
        self._answer(202, Location=place, Range=f"0-{len(self.parts[place]) - 1}")

    def do_PUT(self) -> None:
        url = urlsplit(self.path)
        data = self._body()
        if "/manifests/" in url.path:
            for name in (url.path.rpartition("/")[2], _digest(data)):
                self.registry.manifests[name] = (self.headers["Content-Type"], data)
        else:
            data = self.parts[url.path] + data
            assert parse_qs(url.query)["digest"] == [_digest(data)]
            self.registry.blobs[_digest(data)] = data
            self.registry.uploads += 1
        self._answer(201, Docker_Content_Digest=_digest(data), Location=url.path)


@contextmanager
def serving() -> Iterator[Registry]:
    """A registry on the loopback interface, which docker trusts without TLS."""
    registry = Registry()
    handler = type("Handler", (_Handler,), {"registry": registry, "parts": {}})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        registry.address = f"127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield registry
        finally:
            server.shutdown()
            thread.join()
