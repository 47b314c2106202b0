"""The requests in flight: read from the device, and not answered yet. An interrupt names one of them.

The kernel sends INTERRUPT for any signal that its caller gets, at most once for each request, and goes on waiting for
the answer (Documentation/filesystems/fuse, "Interrupting filesystem operations"). For the caller's sake not every
signal ends its call: a program that is told of a timer or of a child does not expect open(2) to fail. The kernel's own
overlayfs stops a copy-up only for a signal that kills. Here, those that ask a program to end do so as well, even if the
program handles them; any other interrupt is looked at again from time to time, because a later signal is not reported.

An interrupt for a request that is not in flight needs no answer: the request has been answered in the meantime. One
cannot come before its request, because a thread notes the request before another thread reads the device.
"""

from __future__ import annotations

import errno
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import NoReturn

from overlayfs_demo.fronts.kernel.request import Request
from overlayfs_demo.fronts.kernel.turns import Turns
from overlayfs_demo.fronts.kernel.wire import Opcode
from overlayfs_demo.linux import proc
from overlayfs_demo.overlay.copy_in_progress import CopyInProgress

# Requests that leave no trace, so that it does not matter what becomes of them once their caller has gone.
_TRACELESS = frozenset(
    {
        Opcode.GETATTR,
        Opcode.STATX,
        Opcode.READLINK,
        Opcode.READ,
        Opcode.STATFS,
        Opcode.GETXATTR,
        Opcode.LISTXATTR,
        Opcode.READDIR,
        Opcode.FSYNC,
        Opcode.FSYNCDIR,
        Opcode.SYNCFS,
        Opcode.LSEEK,
    }
)
_ENDING = (signal.SIGKILL, signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
# Seconds after which an interrupt that did not ask for the end is looked at again.
_AGAIN = 0.1


class PostponedError(Exception):
    """Another caller's copy-up must end first. Undo what the request has done so far, then `InFlight.put_aside` it."""

    def __init__(self, copy: CopyInProgress) -> None:
        super().__init__()
        self.copy = copy


def postpone(copy: CopyInProgress) -> NoReturn:
    """Raise PostponedError."""
    raise PostponedError(copy)


class InFlight:
    """The requests in flight of one session. `fail` answers a request, given its number, with an errno."""

    def __init__(self, turns: Turns, fail: Callable[[int, int], None]) -> None:
        self._turns = turns
        self._fail = fail
        # Guards the next attribute. A request is removed from it by whoever answers or resumes it.
        self._lock = threading.Lock()
        # The requests that wait for a copy-up, and hold no thread.
        self._waiting: dict[int, _Waiting] = {}
        self._unsettled: set[int] = set()
        self._look_again_at = 0.0

    def put_aside(self, request: Request, copy: CopyInProgress) -> None:
        """Begin a request again at the end of a copy-up. The request must not use this thread's memory."""
        waiting = _Waiting(request, copy, partial(self._resume, request))
        with self._lock:
            self._waiting[request.unique] = waiting
        if not copy.call_at_end(waiting.resume):
            waiting.resume()

    def _resume(self, request: Request) -> None:
        with self._lock:
            waiting = self._waiting.pop(request.unique, None)
        if waiting is not None:  # Else it was interrupted at the same time.
            self._turns.resume(request)

    def interrupt(self, unique: int) -> None:
        """Let the caller of a request go if it asks for that, now or as soon as the request is at a point where it can.

        Called by any thread.
        """
        request = self._find(unique)
        # One that is not found may just be passing from one thread to another.
        if request is None or not (_asks_to_end(request.pid) and self._end(request)):
            self._unsettled.add(unique)

    def look_again(self) -> bool:
        """Look again at the interrupts that had no effect, if it is time to. Called by one thread, often.

        Return whether there are any.
        """
        if self._unsettled and time.monotonic() >= self._look_again_at:
            self._look_again_at = time.monotonic() + _AGAIN
            for unique in list(self._unsettled):
                self._unsettled.discard(unique)
                if self._find(unique) is not None:
                    self.interrupt(unique)
        return bool(self._unsettled)

    def _find(self, unique: int) -> Request | None:
        """Return a request in flight."""
        for turn in self._turns.all:
            request = turn.request
            if turn.answering and request is not None and request.unique == unique:
                return request
        with self._lock:
            waiting = self._waiting.get(unique)
        return waiting.request if waiting else self._turns.parked(unique)

    def _end(self, request: Request) -> bool:
        """Answer a request with EINTR, in place of the thread that carries it out. Return False if that must do it."""
        ended = self._forget(request.unique) or any(turn.call.leave(request.unique) for turn in self._turns.all)
        if ended or request.opcode in _TRACELESS:
            self._fail(request.unique, errno.EINTR)
            return True
        return False

    def _forget(self, unique: int) -> bool:
        """Forget a request that no thread carries out; False if there is none with this number."""
        with self._lock:
            waiting = self._waiting.pop(unique, None)
        if waiting is None:
            return self._turns.drop(unique)
        waiting.copy.forget(waiting.resume)
        return True


class _Waiting:
    """A request that waits for a copy-up, at the end of which `resume` is called."""

    __slots__ = ("copy", "request", "resume")

    def __init__(self, request: Request, copy: CopyInProgress, resume: Callable[[], None]) -> None:
        self.request = request
        self.copy = copy
        self.resume = resume


def _asks_to_end(pid: int) -> bool:
    """Whether a thread has a signal that kills it, or asks it to end. Where nothing is known of it, it may go."""
    try:
        pending, blocked = proc.pending_and_blocked_signals(pid)
    except OSError:
        return True
    return any((pending & ~blocked) >> (number - 1) & 1 for number in _ENDING)
