"""How is a view watched on the whole of a terminal, with keys, until somebody has seen enough?"""

from __future__ import annotations

import select
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.live import Live

from overlayfs_demo.mounts.control.client import Connection
from overlayfs_demo.mounts.layer_facts import UPPER, LayerFacts, walked
from overlayfs_demo.watch.keyboard import keys, pressed
from overlayfs_demo.watch.screen import drawing
from overlayfs_demo.watch.state import State

# How long to wait for something new, and for what comes with it, in seconds.
_IDLE, _TOGETHER = 0.2, 0.05
# The upper is walked anew at most so often in seconds, and no more than that part of the time.
_WALKED = 1.0
_SHARE = 0.2


def show(
    connection: Connection,
    mountpoint: str,
    layers: Sequence[LayerFacts],
    is_wanted: Callable[[Mapping[str, Any]], bool],
    *,
    walk: bool,
) -> tuple[Mapping[str, int], bool]:
    """Show what an attached connection tells, until `q` is pressed or the mount ends.

    `layers` are from the top down; `walk` says that they are to be counted. Returns what was asked meanwhile, and
    whether the mount has ended. Events that are not wanted are counted only.
    The terminal is left as it was, whatever happens.
    """
    # A terminal in another encoding gets question marks.
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
            # Also when nothing seems to come: something may have come together with what was read before.
            if not _take(connection, state, walker, is_wanted):
                return state.asked, True
            now = (state.scene(walker.facts()), console.size)
            if now != before:
                live.update(drawing(now[0]), refresh=True)
                before = now
            select.select([connection.fileno()] if fd is None else [connection.fileno(), fd], [], [], _IDLE)
            if fd is not None and not _press(pressed(fd), state):
                return state.asked, False


def _take(
    connection: Connection, state: State, walker: _Walker, is_wanted: Callable[[Mapping[str, Any]], bool]
) -> bool:
    """Take in what has come, and what comes within a moment: many events make few pictures. False at the end."""
    until = time.monotonic() + _TOGETHER
    try:
        while (answer := connection.event(max(until - time.monotonic(), 0))) is not None:
            state.take(answer, told=is_wanted(answer))
            if "counters" not in answer:
                walker.note()
            if time.monotonic() > until + _IDLE:
                return True
    except EOFError:
        return False
    return True


def _press(typed: str | None, state: State) -> bool:
    """Do what was typed, if anything was; False if that is the end."""
    for key in typed or "":
        if key == "q":
            return False
        state.press(key)
    return typed != ""


class _Walker:
    """Walks the layers in a thread of its own: each once, and the upper again after it was changed."""

    def __init__(self, layers: Sequence[LayerFacts], *, walk: bool) -> None:
        self._facts = list(layers)
        self._changed = threading.Event()
        if walk:
            threading.Thread(target=self._run, name="walker", daemon=True).start()

    def facts(self) -> tuple[LayerFacts, ...]:
        """What is known now."""
        return tuple(self._facts)

    def note(self) -> None:
        """The upper has changed."""
        self._changed.set()

    def _run(self) -> None:
        for at, layer in enumerate(self._facts):
            self._facts[at] = walked(layer)
        while self._facts[0].label == UPPER:
            self._changed.wait()
            self._changed.clear()
            start = time.monotonic()
            self._facts[0] = walked(self._facts[0])
            took = time.monotonic() - start
            time.sleep(max(_WALKED, took / _SHARE))
