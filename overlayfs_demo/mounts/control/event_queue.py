"""What is on its way to somebody who watches a view?"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from typing import Any

from overlayfs_demo.events import Event
from overlayfs_demo.linux import syscalls

# Events that may wait for one client; what comes on top of them is counted and dropped.
_MOST_WAITING = 10_000
# How often the counters are told, in seconds.
_COUNTED = 1.0


class Feed:
    """Events on their way to one client: many threads `put`, one iterates until `end`."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[Event, str, float]] = deque()
        self._changed = threading.Condition()
        self._dropped = 0
        self._ended = False
        self._counts: _Counts | None = None

    def count(self, asked: Mapping[str, int]) -> None:
        """Tell, too, how much is added to these counters from now on."""
        self._counts = _Counts(asked)

    def put(self, event: Event) -> None:
        """Runs inside the operation that caused the event, and so never waits for the client."""
        # The caller waits in its system call, so it is there to be asked for its name.
        name = syscalls.command_name(event.pid)
        with self._changed:
            if self._ended:
                return
            if len(self._waiting) >= _MOST_WAITING:
                self._dropped += 1
            else:
                self._waiting.append((event, name, time.time()))
            self._changed.notify()

    def end(self) -> None:
        """What waits is the last."""
        with self._changed:
            self._ended = True
            self._changed.notify()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The answers to send: events, how many were dropped after those, and how many requests there were."""
        patience = _COUNTED if self._counts else None
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._dropped or self._ended, patience)
                batch, dropped = list(self._waiting), self._dropped
                self._waiting.clear()
                self._dropped = 0
                ended = self._ended
            yield from (_event_json(*one) for one in batch)
            if dropped:
                yield {"dropped": dropped}
            if self._counts and (counters := self._counts.news(last=ended)):
                yield {"counters": counters}
            if ended:
                return


class _Counts:
    """What is added to counters from now on, told once a second at most."""

    def __init__(self, asked: Mapping[str, int]) -> None:
        self._asked = asked
        self._before = Counter(asked)
        self._told: Counter[str] = Counter()
        self._due = 0.0

    def news(self, *, last: bool) -> Counter[str] | None:
        """All that was added so far; None if that was told already, or if, not being the `last`, it comes too soon."""
        if time.monotonic() < self._due and not last:
            return None
        now = Counter(self._asked) - self._before
        if now == self._told:
            return None
        self._told, self._due = now, time.monotonic() + _COUNTED
        return now


def _event_json(event: Event, name: str, seconds: float) -> dict[str, Any]:
    return {
        "time": seconds,
        "action": event.action.value,
        "path": os.fsdecode(event.path),
        "pid": event.pid,
        "who": name,
        "uid": event.uid,
        "call": event.call,
        "layer": event.layer,
        "size": event.size,
        "detail": event.detail,
    }
