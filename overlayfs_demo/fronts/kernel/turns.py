"""Turns, which decide which threads serve the device, and how many requests may take long.

Most requests are so short that many threads would only compete for the interpreter, so only a few threads serve the
device at a time. A thread that gets a long request (a copy-up, an fsync) passes its turn on, finishes the request
beside the others, and then queues for a turn again. A thread whose request turns out to take long is relieved of its
turn, see `overdue`. Threads are made when they are needed, and a few stay for the next time.

The number of long requests at a time is limited, generously: such a thread does something that only a thread can do,
and is itself kept waiting by a disk or a layer. A further long request is parked: it keeps no thread, and begins again
when a place is free. A request that waits for another one's copy-up needs no thread and no place; it is parked when the
copy-up has ended.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from overlayfs_demo.fronts.kernel.request import Request
from overlayfs_demo.overlay.interruption import Call

# The most threads that wait for something to do. It takes about a tenth of a millisecond to make one.
_MOST_IDLE = 8


class ParkedError(Exception):
    """All places for long requests are taken. Undo what the request has done so far, then `Turns.park` it."""


class Turn:
    """The state of one thread: it holds a turn to serve the device, a place for a long request, or neither.

    The thread counts its requests, and says whether it is `answering` one at the moment, and which; `call` is what the
    engine knows of it. `seen` is the number of requests at the last look.
    """

    __slots__ = ("answering", "call", "is_long", "request", "requests", "seen", "serves")

    def __init__(self) -> None:
        self.serves = False
        self.is_long = False
        self.answering = False
        self.requests = 0
        self.seen = 0
        self.call = Call()
        self.request: Request | None = None

    def begin(self, request: Request) -> None:
        """Note that the thread begins to answer a request."""
        # In this order: as soon as it is said to be answering, the turn may go to a thread that reads of an interrupt.
        self.call.number = request.unique
        self.request = request
        self.requests += 1
        self.answering = True


class Turns:
    """The turns of one device: `serving` threads serve it at a time, and up to `long` others do long requests.

    `start_thread` makes a thread that soon calls `take`; it returns False if there is no memory for it.
    """

    __slots__ = (
        "_all",
        "_changed",
        "_coming",
        "_ended",
        "_free",
        "_here",
        "_idle",
        "_long",
        "_parked",
        "_start_thread",
        "_turns",
    )

    def __init__(self, serving: int, long: int, start_thread: Callable[[], bool]) -> None:
        # Guards all that follows. Invariant: for each free turn, and for each parked request that has a free place,
        # there is an idle thread or a new one that is coming, unless there is no memory for it.
        self._changed = threading.Condition(threading.Lock())
        self._turns = serving
        self._free = self._long = long
        self._parked: deque[Request] = deque()
        self._idle = self._coming = 0
        self._ended = threading.Event()
        self._all: list[Turn] = []
        self._here = threading.local()
        self._start_thread = start_thread

    @property
    def mine(self) -> Turn:
        """The turn of this thread, which must have called `enter`."""
        mine: Turn = self._here.turn
        return mine

    @property
    def any_long(self) -> bool:
        """Whether a long request is in progress."""
        return self._free < self._long

    @property
    def all(self) -> list[Turn]:
        """The turns of all threads."""
        return list(self._all)

    def start(self, number: int) -> bool:
        """Make the first threads. Return False if there is no memory for them."""
        with self._changed:
            return all(self._add_thread() for _ in range(number))

    def enter(self) -> Turn:
        """Begin with this thread, which `start_thread` has made. Return its turn."""
        self._here.turn = turn = Turn()
        with self._changed:
            self._coming -= 1
            self._all.append(turn)
        return turn

    def leave(self) -> None:
        """End with this thread: give up what it holds."""
        mine = self.mine
        with self._changed:
            self._all.remove(mine)
            if mine.serves:
                self._turns += 1
            elif mine.is_long:
                self._free += 1
            mine.serves = mine.is_long = False
            self._provide()

    def take(self, resume: Callable[[Request], None]) -> bool:
        """Wait for a turn, unless this thread has one; meanwhile, answer parked requests with `resume`.

        Return False if the thread must end, because there are enough others, or it was the `end`.
        """
        mine = self.mine
        mine.answering = False
        if mine.serves:
            return True
        while True:
            with self._changed:
                request = self._next(mine)
            if request is None:
                return mine.serves
            mine.begin(request)
            resume(request)
            mine.answering = False

    def _next(self, mine: Turn) -> Request | None:
        """Wait for a turn, or for a parked request that has a place. Return the request, or None. Call with the lock.

        Return None without a turn if the thread must end.
        """
        self._idle += 1
        if mine.is_long:
            mine.is_long = False
            self._free += 1
            self._provide()
        try:
            while not self._ended.is_set():
                if self._turns:
                    self._turns -= 1
                    mine.serves = True
                    return None
                if self._parked and self._free:
                    self._free -= 1
                    mine.is_long = True
                    return self._parked.popleft()
                if self._idle > _MOST_IDLE:
                    return None
                self._changed.wait()
        finally:
            self._idle -= 1
        return None

    def pass_on(self) -> None:
        """Begin a long request: give up the turn, if this thread has one. Raises ParkedError."""
        if not self.try_pass_on() and self.any_long:
            raise ParkedError
        # Without memory for a second thread, and nothing to wait for, the request is answered before all others.

    def try_pass_on(self) -> bool:
        """Do the same, but return False if all places for long requests are taken; the thread then keeps its turn."""
        mine = self.mine
        if not mine.serves:
            return True
        with self._changed:
            return not mine.serves or self._make_long(mine)

    def relieve_overdue(self) -> bool:
        """Take the turn from each thread that is answering the same request as at the last look.

        Return whether any thread that serves has had a request since.
        """
        had_any = False
        for turn in self.all:
            if turn.serves and turn.requests != turn.seen:
                turn.seen = turn.requests
                had_any = True
            elif turn.serves and turn.answering:
                had_any = True
                with self._changed:
                    if turn.serves and turn.answering and turn.requests == turn.seen:
                        self._make_long(turn)
        return had_any

    def park(self, request: Request) -> bool:
        """Keep a request until there is a place for it. The request must not use this thread's memory.

        Return False if a place has become free meanwhile: this thread then has it, and must answer the request.
        """
        mine = self.mine
        with self._changed:
            if not mine.serves or self._make_long(mine):
                return False
            self._keep(request)
            return True

    def resume(self, request: Request) -> None:
        """Let another thread answer a request again, as soon as there is a place for it. Called by any thread."""
        with self._changed:
            self._keep(request)

    def parked(self, unique: int) -> Request | None:
        """Return the parked request with this number, if there is one."""
        with self._changed:
            return next((request for request in self._parked if request.unique == unique), None)

    def drop(self, unique: int) -> bool:
        """Forget a parked request; False if it is not parked. Called by any thread."""
        with self._changed:
            kept = [request for request in self._parked if request.unique != unique]
            was_parked = len(kept) < len(self._parked)
            self._parked = deque(kept)
            return was_parked

    def end(self) -> None:
        """Forget the parked requests, because nobody waits for answers any more, and let all threads end."""
        with self._changed:
            self._ended.set()
            self._parked.clear()
            self._changed.notify_all()

    def wait_for_end(self) -> None:
        """Return after `end` was called."""
        self._ended.wait()

    def _keep(self, request: Request) -> None:
        if not self._ended.is_set():
            self._parked.append(request)
            self._provide()

    def _make_long(self, turn: Turn) -> bool:
        """Give a thread a place for a long request instead of its turn; False if none is free. Call with the lock."""
        if not self._free:
            return False
        if not self._idle + self._coming and not self._add_thread():
            return False  # Nobody would take the turn.
        self._free -= 1
        self._turns += 1
        turn.serves, turn.is_long = False, True
        self._provide()
        return True

    def _provide(self) -> None:
        """Wake idle threads for what there is to do, and make those that are missing. Call with the lock."""
        needed = self._turns + min(len(self._parked), self._free)
        for _ in range(needed - self._idle - self._coming):
            if self._ended.is_set() or not self._add_thread():
                break
        if needed:
            self._changed.notify(needed)

    def _add_thread(self) -> bool:
        if not self._start_thread():
            return False
        self._coming += 1
        return True
