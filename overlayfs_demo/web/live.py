"""How does a page hear at once of what happens in a view?

By server-sent events (HTML standard, "Server-sent events"). Each browser has a connection of its own to the view's
daemon, so nothing is told while nobody looks. What happens within a tenth of a second is one message, in which the
writes to one file are one sentence.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import anyio.lowlevel
from anyio import CapacityLimiter, to_thread

from overlayfs_demo.errors import OverlayError, printable
from overlayfs_demo.mounts.control.client import Connection
from overlayfs_demo.mounts.layer_facts import UPPER
from overlayfs_demo.watch.state import Line
from overlayfs_demo.web.subject import Subject, key_of

MOST_PAGES = 16
# In seconds: how long what follows is waited for; after which silence the connection is used, to see if it stands.
_TOGETHER = 0.1
_WAIT = 0.5
_SILENCE = 15.0
_MOST_TOGETHER = 200


class Stream:
    """The messages for one page about the view at `mountpoint`, from its daemon at `socket`."""

    def __init__(
        self, subject: Subject, mountpoint: str, socket: Path, threads: CapacityLimiter, stopping: Callable[[], bool]
    ) -> None:
        self._subject = subject
        self._mountpoint = mountpoint
        self._socket = socket
        self._threads = threads
        self._stopping = stopping

    async def messages(self) -> AsyncIterator[str]:
        """Each as it goes over the wire, until the view is unmounted or the server stops."""
        try:
            with Connection(self._socket, self._mountpoint) as connection:
                await self._run(connection.attach)
                yield _message("attached", {})
                heard = time.monotonic()
                while not self._stopping():
                    # Here the stream ends if the browser has gone.
                    await anyio.lowlevel.checkpoint()
                    batch = await self._run(lambda: _batch(connection))
                    if batch:
                        yield _message("change", self._told(batch))
                    elif time.monotonic() - heard < _SILENCE:
                        continue
                    else:
                        yield ": still here\n\n"
                    heard = time.monotonic()
        except (EOFError, OverlayError):
            yield _message("ended", {})

    async def _run(self, action: Callable[[], Any]) -> Any:
        # A thread that waits for the daemon, at most _WAIT and _TOGETHER long, cannot be left behind.
        with anyio.CancelScope(shield=True):
            return await to_thread.run_sync(action, limiter=self._threads)

    def _told(self, batch: list[_Timed]) -> dict[str, object]:
        """What a page needs to know of these events: sentences, the layers touched, the directories that changed."""
        sentences, layers, paths = [], {UPPER}, set()
        for seconds, line in batch:
            if line.event is None:
                sentences.append({"time": "", "text": line.words()})
                continue
            sentences.append(
                {
                    "time": time.strftime("%H:%M:%S", time.localtime(seconds)),
                    "text": line.words(),
                    "action": line.event.action.value,
                    "path": printable(line.event.path),
                }
            )
            layer = self._subject.layer_of(line.event.layer)
            layers |= {layer.key} if layer else set()
            paths |= {path for path in line.event.paths if path.startswith(b"/")}
        return {
            "sentences": sentences,
            "layers": sorted(layers),
            "paths": sorted(map(key_of, paths)),
            "directories": sorted({key_of(os.path.dirname(path)) for path in paths}),
        }


class _Timed(NamedTuple):
    """A line, and when it was, in seconds since the epoch."""

    seconds: float
    line: Line

    @classmethod
    def of(cls, answer: dict[str, Any]) -> _Timed:
        """What a daemon told."""
        return cls(answer.get("time", 0.0), Line.of(answer))


def _batch(connection: Connection) -> list[_Timed]:
    """What happened, and what followed at once; nothing if it is quiet. Raises EOFError, MountError."""
    first = connection.event(_WAIT)
    if first is None:
        return []
    batch = [_Timed.of(first)]
    until = time.monotonic() + _TOGETHER
    while len(batch) < _MOST_TOGETHER and (left := until - time.monotonic()) > 0:
        try:
            answer = connection.event(left)
        except EOFError:  # What was told before the end is told; the next call meets the end again.
            break
        if answer is None:
            break
        later = _Timed.of(answer)
        joined = batch[-1].line.joined(later.line)
        if joined is not None:
            batch[-1] = batch[-1]._replace(line=joined)
        else:
            batch.append(later)
    return batch


def _message(kind: str, data: dict[str, Any]) -> str:
    return f"event: {kind}\ndata: {json.dumps(data)}\n\n"
