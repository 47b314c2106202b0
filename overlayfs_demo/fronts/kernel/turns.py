"""Turns, which decide which threads serve the device, and how many requests may take long.

Most requests are so short that many threads would only compete for the interpreter, so only a few threads serve the
device at a time. A thread that gets a long request (a copy-up, an fsync) passes its turn on, finishes the request
beside the others, and then queues for a turn again. The number of long requests at a time is limited so that there is
always a thread left for each turn. A further long request is parked: it keeps no thread, and begins again when a place
is free.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from overlayfs_demo.fronts.kernel.request import Request


class ParkedError(Exception):
    """All places for long requests are taken. Undo what the request has done so far, then `Turns.park` it."""


class _Mine(threading.local):
    """The state of this thread: it holds a turn to serve the device, a place for a long request, or neither."""

    serves = False
    is_long = False


class Turns:
    """The turns of one device: `serving` threads serve it at a time, and up to `long` others do long requests."""

    __slots__ = ("_ended", "_free", "_lock", "_mine", "_parked", "_serving")

    def __init__(self, serving: int, long: int) -> None:
        self._serving = threading.BoundedSemaphore(serving)
        self._mine = _Mine()
        # Guards the next three attributes. A request is parked only while no place is free, and a place becomes free
        # only while no request is parked, so for each parked request there is a thread that will take it.
        self._lock = threading.Lock()
        self._free = long
        self._parked: deque[Request] = deque()
        self._ended = False

    def take(self, resume: Callable[[Request], None]) -> None:
        """Wait for a turn, unless this thread has one.

        A thread that has finished a long request first answers the parked requests with `resume`.
        """
        mine = self._mine
        if mine.serves:
            return
        while (request := self._next_parked()) is not None:
            resume(request)
        self._serving.acquire()
        mine.serves = True

    def pass_on(self) -> None:
        """Begin a long request: give up the turn, if this thread has one. Raises ParkedError."""
        if not self.try_pass_on():
            raise ParkedError

    def try_pass_on(self) -> bool:
        """Do the same, but return False if all places for long requests are taken; the thread then keeps its turn."""
        if not self._mine.serves:
            return True
        with self._lock:
            if not self._free:
                return False
            self._free -= 1
        self._become_long()
        return True

    def park(self, request: Request) -> bool:
        """Keep a request until there is a place for it. The request must not use this thread's memory.

        Return False if a place has become free meanwhile: this thread then has it, and must answer the request.
        """
        with self._lock:
            if not self._free:
                if not self._ended:
                    self._parked.append(request)
                return True
            self._free -= 1
        self._become_long()
        return False

    def leave(self) -> None:
        """Give up the turn, because this thread ends.

        A place for a long request is not given back, because there is one thread less.
        """
        if self._mine.serves:
            self._mine.serves = False
            self._serving.release()

    def end(self) -> None:
        """Forget the parked requests, because nobody waits for answers any more."""
        with self._lock:
            self._ended = True
            self._parked.clear()

    def _become_long(self) -> None:
        self._mine.serves, self._mine.is_long = False, True
        self._serving.release()

    def _next_parked(self) -> Request | None:
        """Return a parked request for this thread's place, or give the place back if there is none."""
        if not self._mine.is_long:
            return None
        with self._lock:
            if self._parked:
                return self._parked.popleft()
            self._free += 1
        self._mine.is_long = False
        return None
