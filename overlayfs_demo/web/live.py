"""The stream of changes for a page, as server-sent events (HTML standard, "Server-sent events").

Each page has its own connection to the view's daemon, so nothing is sent while nobody looks. Events within a tenth of
a second become one message, in which the writes to one file are one sentence.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import TypeVar

import anyio
import anyio.lowlevel
from anyio import CapacityLimiter, to_thread

from overlayfs_demo.errors import OverlayError, printable
from overlayfs_demo.mounts.control.client import Connection
from overlayfs_demo.mounts.control.protocol import Counters, Happened
from overlayfs_demo.mounts.layer_facts import UPPER
from overlayfs_demo.mounts.registry import mounted
from overlayfs_demo.named_tuple import NamedTuple
from overlayfs_demo.watch.state import Line
from overlayfs_demo.web.subject import Subject, key_of

MOST_PAGES = 16
# In seconds: how long to wait for an update, and for others that follow it at once; and after how much silence
# a comment is sent, to see whether the browser is still there.
_WAIT = 0.5
_TOGETHER = 0.1
_SILENCE = 15.0
_MOST_TOGETHER = 200

_Result = TypeVar("_Result")


class Stream:
    """The messages for one page about the view at `mountpoint`, from its daemon at `socket`."""

    def __init__(
        self, subject: Subject, mountpoint: str, socket: str, threads: CapacityLimiter, stopping: Callable[[], bool]
    ) -> None:
        self._subject = subject
        self._mountpoint = mountpoint
        self._socket = socket
        self._threads = threads
        self._stopping = stopping

    async def messages(self) -> AsyncIterator[str]:
        """Yield the messages as text for the wire, until the view is unmounted or the server stops."""
        try:
            with Connection(self._socket, self._mountpoint) as connection:
                await self._run(connection.attach)
                yield _message("attached", {})
                heard = time.monotonic()
                stopping = False
                while not stopping:
                    # Before the last reading: if the server stops because the view has ended, that reading says so.
                    stopping = self._stopping()
                    # The stream is cancelled here if the browser has gone.
                    await anyio.lowlevel.checkpoint()
                    batch = await self._run(lambda: _batch(connection))
                    if batch:
                        yield _message("change", self._change(batch))
                    elif time.monotonic() - heard < _SILENCE:
                        continue
                    else:
                        yield ": still here\n\n"
                    heard = time.monotonic()
        except (EOFError, OverlayError):
            yield _message("ended", {"why": self._end()})

    def _end(self) -> str:
        """Return how the view has ended. A daemon unmounts its view before it ends its connections."""
        return "its daemon died" if self._mountpoint in mounted() else "the view was unmounted"

    async def _run(self, action: Callable[[], _Result]) -> _Result:
        # A thread that waits for the daemon cannot be cancelled. It waits for at most _WAIT and _TOGETHER.
        with anyio.CancelScope(shield=True):
            result = await to_thread.run_sync(action, limiter=self._threads)
        return result

    def _change(self, batch: list[_Timed]) -> dict[str, object]:
        """Return what a page needs of these events: sentences, touched layers, changed paths and directories."""
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
    """A line and its time, in seconds since the epoch (0 for one without an event)."""

    seconds: float
    line: Line


def _batch(connection: Connection) -> list[_Timed]:
    """Return an event and those that follow it at once; nothing if it is quiet. Raises EOFError, MountError."""
    first = _receive(connection, _WAIT)
    if first is None:
        return []
    batch = [first]
    until = time.monotonic() + _TOGETHER
    while len(batch) < _MOST_TOGETHER and (left := until - time.monotonic()) > 0:
        try:
            later = _receive(connection, left)
        except EOFError:  # The events before the end are still shown; the next call meets the end again.
            break
        if later is None:
            break
        joined = batch[-1].line.joined(later.line)
        if joined is not None:
            batch[-1] = batch[-1]._replace(line=joined)
        else:
            batch.append(later)
    return batch


def _receive(connection: Connection, timeout: float) -> _Timed | None:
    """Return the next line; None if none comes for `timeout` seconds. Raises EOFError, MountError."""
    update = connection.receive(timeout)
    if update is None or isinstance(update, Counters):  # A page does not ask for counters.
        return None
    return _Timed(update.time if isinstance(update, Happened) else 0.0, Line.of(update))


def _message(kind: str, data: Mapping[str, object]) -> str:
    return f"event: {kind}\ndata: {json.dumps(data)}\n\n"
