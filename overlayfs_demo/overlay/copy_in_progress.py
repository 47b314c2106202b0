"""A copy-up in progress, which other callers may wait for.

Callers that need the same file share one copy-up. If the caller for whom it began leaves, see `interruption`, the copy
goes on as long as anybody waits for it, and is given up otherwise.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from overlayfs_demo.overlay import interruption


class CopyInProgress:
    """One copy-up, from its beginning to `end`. Use it as a context in the thread that copies, while data is copied.

    During that time the caller may leave. The methods `wait`, `call_at_end` and `forget` are for other threads.
    """

    __slots__ = ("_call", "_lock", "_waiting")

    def __init__(self) -> None:
        """Begin in the thread that copies."""
        self._call = interruption.current()
        self._lock = threading.Lock()
        # What to call at the end; None after it.
        self._waiting: list[Callable[[], None]] | None = []

    @property
    def caller_has_left(self) -> bool:
        """Whether the caller for whom the copy-up began has left."""
        return self._call.has_left

    def check(self) -> None:
        """Raise EINTR if nobody needs the copy any more."""
        if self._call.has_left and not self._waiting:
            raise interruption.interrupted()

    def __enter__(self) -> None:
        """Let the caller leave from now on. Raises EINTR if it was interrupted before."""
        self._call.__enter__()

    def __exit__(self, *_: object) -> None:
        """The caller may not leave any more. `check` afterwards."""
        self._call.__exit__()

    def wait(self) -> None:
        """Return at the end of the copy-up, however it ended."""
        ended = threading.Event()
        if self.call_at_end(ended.set):
            ended.wait()

    def call_at_end(self, function: Callable[[], None]) -> bool:
        """Call `function` at the end, in the thread that copies. Return False if the copy-up has ended already."""
        with self._lock:
            if self._waiting is None:
                return False
            self._waiting.append(function)
            return True

    def forget(self, function: Callable[[], None]) -> None:
        """Do not call `function` any more: nobody waits for that."""
        with self._lock:
            if self._waiting and function in self._waiting:
                self._waiting.remove(function)

    def end(self) -> None:
        """The copy-up has ended: let those go on that wait for it. Call it without the tree's lock."""
        with self._lock:
            waiting, self._waiting = self._waiting, None
        for function in waiting or ():
            function()
