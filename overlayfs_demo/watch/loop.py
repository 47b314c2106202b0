"""The full-screen loop of `watch`: takes in updates, redraws and reads keys."""

from __future__ import annotations

import select
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from rich.console import Console
from rich.live import Live

from overlayfs_demo.mounts.control.client import Connection
from overlayfs_demo.mounts.control.protocol import Counters, Seen
from overlayfs_demo.mounts.layer_facts import UPPER, LayerFacts, walked
from overlayfs_demo.ui.keyboard import keys, pressed
from overlayfs_demo.watch.screen import drawing
from overlayfs_demo.watch.state import State

# In seconds: how long to wait for an update, and for others that follow it at once.
_IDLE, _TOGETHER = 0.2, 0.05
# The upper is walked again after this many seconds at the earliest, and walking takes at most this share of the time.
_WALK_INTERVAL = 1.0
_WALK_SHARE = 0.2


def show(
    connection: Connection,
    mountpoint: str,
    layers: Sequence[LayerFacts],
    is_wanted: Callable[[Seen], bool],
    *,
    walk: bool,
) -> tuple[Mapping[str, int], bool]:
    """Show the updates of an attached connection, until `q` is pressed or the mount ends.

    `layers` are from the top down; `walk`: count what is in them. Returns the view's counters of requests, and whether
    the mount has ended. Events that are not wanted are only counted. The terminal is left as it was, whatever happens.
    Raises MountError.
    """
    # On a terminal with another encoding, question marks replace what it cannot show.
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    walker = _Walker(layers, walk=walk)
    console = Console(file=sys.stdout)
    with (
        keys() as fd,
        Live(console=console, screen=True, auto_refresh=False, redirect_stdout=False, redirect_stderr=False) as live,
    ):
        state = State(mountpoint, has_keys=fd is not None)
        before: tuple[object, ...] = ()
        while True:
            # Even if select(2) saw nothing, because the connection may have buffered more than one update.
            if not _take(connection, state, walker, is_wanted):
                return state.asked, True
            now = (state.scene(walker.facts()), console.size)
            if now != before:
                live.update(drawing(now[0]), refresh=True)
                before = now
            select.select([connection.fileno()] if fd is None else [connection.fileno(), fd], [], [], _IDLE)
            if fd is not None and not _press(pressed(fd), state):
                return state.asked, False


def _take(connection: Connection, state: State, walker: _Walker, is_wanted: Callable[[Seen], bool]) -> bool:
    """Take in all updates of a moment, so that many events make few pictures; return False at the end."""
    until = time.monotonic() + _TOGETHER
    try:
        while (update := connection.receive(max(until - time.monotonic(), 0))) is not None:
            state.take(update, shown=is_wanted(update))
            if not isinstance(update, Counters):
                walker.note()
            if time.monotonic() > until + _IDLE:
                return True
    except EOFError:
        return False
    return True


def _press(typed: str | None, state: State) -> bool:
    """Act on the keys that were typed; return False if one of them quits."""
    for key in typed or "":
        if key == "q":
            return False
        state.press(key)
    return typed != ""


class _Walker:
    """Thread that walks the layers: each once, and the upper again after changes."""

    def __init__(self, layers: Sequence[LayerFacts], *, walk: bool) -> None:
        self._facts = list(layers)
        self._changed = threading.Event()
        if walk:
            threading.Thread(target=self._run, name="walker", daemon=True).start()

    def facts(self) -> tuple[LayerFacts, ...]:
        """Return what is known now, from the top layer down."""
        return tuple(self._facts)

    def note(self) -> None:
        """Note that the upper has changed."""
        self._changed.set()

    def _run(self) -> None:
        for index, layer in enumerate(self._facts):
            self._facts[index] = walked(layer)
        while self._facts[0].label == UPPER:
            self._changed.wait()
            self._changed.clear()
            start = time.monotonic()
            self._facts[0] = walked(self._facts[0])
            took = time.monotonic() - start
            time.sleep(max(_WALK_INTERVAL, took / _WALK_SHARE))
