"""How does a test get a page that is really served?"""

from __future__ import annotations

import http.client
import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import overlayfs_demo.web.serve  # noqa: F401 - so that each server need not import it
from tests.command import started
from tests.places import MINUTE


@dataclass(frozen=True)
class Answer:
    """What the server said."""

    status: int
    text: str
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def rows(self) -> dict[str, dict[str, Any]]:
        """The rows of a directory, by the shown name."""
        return {row["name"]: row for row in json.loads(self.text)["rows"]}


@dataclass(frozen=True)
class Server:
    """A running `serve`. Requests show its token in the cookie, if it has one, unless they bring their own `Cookie`."""

    process: subprocess.Popen[str]
    address: str

    @property
    def port(self) -> int:
        port = urlsplit(self.address).port
        assert port is not None
        return port

    @property
    def token(self) -> str:
        """The token of the address, "" if there is none."""
        return urlsplit(self.address).query.removeprefix("token=")

    def cookie(self) -> str:
        """What a browser sends that has been to the address."""
        return f"overlayfs-demo-{self.port}={self.token}"

    def get(self, path: str, method: str = "GET", **headers: str) -> Answer:
        headers = {"Cookie": self.cookie(), **headers}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=MINUTE)
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        return Answer(answer.status, text, {name.lower(): value for name, value in answer.getheaders()})

    @contextmanager
    def events(self) -> Iterator[Iterator[tuple[str, dict[str, Any]]]]:
        """The messages about a view as they come: kind and data."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=MINUTE)
        connection.request("GET", "/events", headers={"Cookie": self.cookie()})
        answer = connection.getresponse()
        assert answer.getheader("content-type", "").startswith("text/event-stream")
        try:
            yield _messages(answer)
        finally:
            connection.close()

    def ends(self) -> tuple[int, str]:
        """The exit status and what else was said, once it has ended by itself."""
        _, complaint = self.process.communicate(timeout=MINUTE)
        return self.process.returncode, complaint


def _messages(answer: http.client.HTTPResponse) -> Iterator[tuple[str, dict[str, Any]]]:
    kind = ""
    while line := answer.readline().decode():
        name, _, value = line.rstrip("\n").partition(": ")
        if name == "event":
            kind = value
        elif name == "data":
            yield kind, json.loads(value)


@contextmanager
def serving(what: str | Path, *words: str | Path) -> Iterator[Server]:
    """Serve it at a free port."""
    process = started(["serve", what, "--port", "0", *words], stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        said = process.stderr.readline() + process.stderr.readline()
        # Not what it says after this, too: a server that runs says nothing more, and never ends.
        address = re.search(r"^http://127\.0\.0\.1:\S+$", said, re.MULTILINE)
        assert address is not None, said
        yield Server(process, address[0])
    finally:
        process.kill()
        process.wait(MINUTE)
