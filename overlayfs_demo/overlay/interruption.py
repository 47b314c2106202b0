"""Interruption: a caller that is being killed does not wait for the end of the verb it has called.

A front that learns of interrupts gives each of its threads a `Call` to begin with, see `adopt`, and calls `Call.leave`
from another thread. The verb does not stop just anywhere: it has parts during which its caller may leave, because
nothing of what it does shows in the view yet (data is being copied to a file in the work directory, or a layer is being
asked). If the caller leaves during such a part, or was interrupted before it, the verb raises EINTR, having undone what
it has begun. Without a front, nothing is ever interrupted.
"""

from __future__ import annotations

import errno
import threading

from overlayfs_demo.linux.failure import failure


class Call:
    """The call that one thread carries out, again and again another one, each with a `number` that is never 0.

    The thread sets `number` when it begins. Use it as a context for a part during which the caller may leave.
    """

    __slots__ = ("_depth", "_interrupted", "_left", "_lock", "number")

    def __init__(self) -> None:
        self.number = 0
        # Numbers, not flags: a thread that has begun its next call is not interrupted by what was meant for the last.
        self._interrupted = 0
        self._left = 0
        # Of how many parts within each other the thread is in the innermost one.
        self._depth = 0
        self._lock = threading.Lock()

    def leave(self, number: int) -> bool:
        """Interrupt the call with this number. Return whether its caller has left: the verb then tells it nothing more.

        Otherwise the verb raises EINTR when it comes to a part during which the caller may leave, or has been carried
        out. Called by any thread.
        """
        with self._lock:
            if self.number != number:
                return False
            self._interrupted = number
            if self._depth:
                self._left = number
            return self._depth > 0

    @property
    def has_left(self) -> bool:
        """Whether the caller has left the present call."""
        return self.number != 0 and self._left == self.number

    def check(self) -> None:
        """Raise EINTR if the caller has left."""
        if self.has_left:
            raise interrupted()

    def __enter__(self) -> None:
        """Let the caller leave from now on. Raises EINTR if it was interrupted before."""
        with self._lock:
            # Inside another part, the caller may have left, and the work goes on for others.
            if not self._depth and self.number and self._interrupted == self.number:
                raise interrupted()
            self._depth += 1

    def __exit__(self, *_: object) -> None:
        """The caller may not leave any more. This does not `check`, because what is done may serve others."""
        with self._lock:
            self._depth -= 1


class _Here(threading.local):
    """The call of this thread."""

    def __init__(self) -> None:
        self.call = Call()


_here = _Here()


def interrupted() -> OSError:
    """Return EINTR."""
    return failure(errno.EINTR)


def adopt(call: Call) -> None:
    """Let `call` be the one that this thread carries out from now on."""
    _here.call = call


def current() -> Call:
    """Return the call that this thread carries out."""
    return _here.call
