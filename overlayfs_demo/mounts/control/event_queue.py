"""Bounded event queue for one watcher."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping

from overlayfs_demo.events import Event
from overlayfs_demo.linux import proc
from overlayfs_demo.mounts.control.protocol import Counters, Dropped, Happened, Update

# So many events are kept for one client. Those that come on top are counted and dropped.
_MOST_WAITING = 10_000
# How often counters are sent, in seconds.
_COUNTER_INTERVAL = 1.0


class EventQueue:
    """Events on their way to one client: many threads `put`, one thread iterates until `end`."""

    def __init__(self) -> None:
        self._waiting: deque[Happened] = deque()
        self._changed = threading.Condition()
        self._dropped = 0
        self._ended = False
        self._counts: _Counts | None = None

    def count(self, asked: Mapping[str, int]) -> None:
        """Also send how much is added to these counters from now on."""
        self._counts = _Counts(asked)

    def put(self, event: Event) -> None:
        """Queue an event, or count it as dropped. Never waits for the client: it runs inside the operation itself."""
        # The calling process waits in its system call, so it still exists and has a name.
        name = proc.command_name(event.pid)
        with self._changed:
            if self._ended:
                return
            if len(self._waiting) >= _MOST_WAITING:
                self._dropped += 1
            else:
                self._waiting.append(Happened(time.time(), event, name))
            self._changed.notify()

    def end(self) -> None:
        """Take no more events. The iteration ends after those that are queued."""
        with self._changed:
            self._ended = True
            self._changed.notify()

    def __iter__(self) -> Iterator[Update]:
        """What to send: events, how many were dropped after them, and the counters."""
        timeout = _COUNTER_INTERVAL if self._counts else None
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._dropped or self._ended, timeout)
                batch, dropped = list(self._waiting), self._dropped
                self._waiting.clear()
                self._dropped = 0
                ended = self._ended
            yield from batch
            if dropped:
                yield Dropped(dropped)
            if self._counts and (counts := self._counts.news(last=ended)):
                yield Counters(counts)
            if ended:
                return


class _Counts:
    """What is added to counters from now on, reported once a second at most."""

    def __init__(self, asked: Mapping[str, int]) -> None:
        self._asked = asked
        self._before = Counter(asked)
        self._reported: Counter[str] = Counter()
        self._due = 0.0

    def news(self, *, last: bool) -> Counter[str] | None:
        """All that was added; None if it was reported already, or if it is too soon and not the `last` time."""
        if time.monotonic() < self._due and not last:
            return None
        now = Counter(self._asked) - self._before
        if now == self._reported:
            return None
        self._reported, self._due = now, time.monotonic() + _COUNTER_INTERVAL
        return now
