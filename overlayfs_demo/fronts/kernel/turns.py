"""Turns, which decide which threads serve the device, and how many requests may take long.

Most requests are so short that many threads would only compete for the interpreter, so only a few threads serve the
device at a time. A thread that gets a long request (a copy-up, an fsync) passes its turn on, finishes the request
beside the others, and then queues for a turn again. A thread whose request turns out to take long is relieved of its
turn, see `overdue`. The number of long requests at a time is limited so that there is always a thread left for each
turn. A further long request is parked: it keeps no thread, and begins again when a place is free.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from overlayfs_demo.fronts.kernel.request import Request


class ParkedError(Exception):
    """All places for long requests are taken. Undo what the request has done so far, then `Turns.park` it."""


class Turn:
    """The state of one thread: it holds a turn to serve the device, a place for a long request, or neither.

    The thread counts its requests, and says whether it is `answering` one at the moment. `seen` is the number of
    requests at the last look.
    """

    __slots__ = ("answering", "is_long", "requests", "seen", "serves")

    def __init__(self) -> None:
        self.serves = False
        self.is_long = False
        self.answering = False
        self.requests = 0
        self.seen = 0


class _Here(threading.local):
    """The turn of this thread, which is also entered into a list of all."""

    def __init__(self, turns: list[Turn]) -> None:
        self.turn = Turn()
        turns.append(self.turn)


class Turns:
    """The turns of one device: `serving` threads serve it at a time, and up to `long` others do long requests."""

    __slots__ = ("_all", "_ended", "_free", "_here", "_lock", "_long", "_parked", "_serving")

    def __init__(self, serving: int, long: int) -> None:
        self._serving = threading.BoundedSemaphore(serving)
        self._all: list[Turn] = []
        self._here = _Here(self._all)
        # Guards the next three attributes. A request is parked only while no place is free, and a place becomes free
        # only while no request is parked, so for each parked request there is a thread that will take it.
        self._lock = threading.Lock()
        self._free = self._long = long
        self._parked: deque[Request] = deque()
        self._ended = False

    @property
    def mine(self) -> Turn:
        """The turn of this thread."""
        return self._here.turn

    def take(self, resume: Callable[[Request], None]) -> None:
        """Wait for a turn, unless this thread has one.

        A thread that has finished a long request first answers the parked requests with `resume`.
        """
        mine = self._here.turn
        mine.answering = False
        if mine.serves:
            return
        while (request := self._next_parked()) is not None:
            resume(request)
        self._serving.acquire()
        mine.serves = True

    @property
    def any_long(self) -> bool:
        """Whether a long request is in progress."""
        return self._free < self._long

    def pass_on(self) -> None:
        """Begin a long request: give up the turn, if this thread has one. Raises ParkedError."""
        if not self.try_pass_on():
            raise ParkedError

    def try_pass_on(self) -> bool:
        """Do the same, but return False if all places for long requests are taken; the thread then keeps its turn."""
        mine = self._here.turn
        if not mine.serves:
            return True
        with self._lock:
            return not mine.serves or self._make_long(mine)

    def relieve_overdue(self) -> bool:
        """Take the turn from each thread that is answering the same request as at the last look.

        Return whether any thread that serves has had a request since.
        """
        had_any = False
        for turn in self._all:
            if turn.serves and turn.requests != turn.seen:
                turn.seen = turn.requests
                had_any = True
            elif turn.serves and turn.answering:
                had_any = True
                with self._lock:
                    if turn.serves and turn.answering and turn.requests == turn.seen:
                        self._make_long(turn)
        return had_any

    def park(self, request: Request) -> bool:
        """Keep a request until there is a place for it. The request must not use this thread's memory.

        Return False if a place has become free meanwhile: this thread then has it, and must answer the request.
        """
        mine = self._here.turn
        with self._lock:
            if not mine.serves or self._make_long(mine):
                return False
            if not self._ended:
                self._parked.append(request)
            return True

    def leave(self) -> None:
        """Give up the turn, because this thread ends.

        A place for a long request is not given back, because there is one thread less.
        """
        with self._lock:
            if self._here.turn.serves:
                self._here.turn.serves = False
                self._serving.release()

    def end(self) -> None:
        """Forget the parked requests, because nobody waits for answers any more."""
        with self._lock:
            self._ended = True
            self._parked.clear()

    def _make_long(self, turn: Turn) -> bool:
        """Give a thread a place for a long request instead of its turn; False if none is free. Call with the lock."""
        if not self._free:
            return False
        self._free -= 1
        turn.serves, turn.is_long = False, True
        self._serving.release()
        return True

    def _next_parked(self) -> Request | None:
        """Return a parked request for this thread's place, or give the place back if there is none."""
        mine = self._here.turn
        if not mine.is_long:
            return None
        with self._lock:
            if self._parked:
                return self._parked.popleft()
            self._free += 1
        mine.is_long = False
        return None
