"""The sentences of `mount --trace`: repeated events are one sentence with a count, as in `watch`."""

from __future__ import annotations

import threading
from collections.abc import Callable

from overlayfs_demo.events import Event
from overlayfs_demo.ui.wording import process_name
from overlayfs_demo.watch.state import Line

# For how many seconds a sentence waits for others that it can be joined with.
_FOLD = 0.5


class Trace:
    """Puts a sentence for each event; equal ones, and the writes of one process to one file, are joined. Thread-safe.

    A sentence is put when another event comes, when it has waited for a moment, or at the end: call `finish`.
    """

    def __init__(self, put: Callable[[str], None]) -> None:
        self._put = put
        self._lock = threading.Lock()
        self._line: Line | None = None
        self._timer: threading.Timer | None = None

    def tell(self, event: Event) -> None:
        """Take in an event: a listener, see `Events`."""
        # The calling process waits in its system call, so it still has a name.
        line = Line(event, process_name(event.pid))
        with self._lock:
            joined = self._line.joined(line) if self._line is not None else None
            if joined is not None:
                self._line = joined
                return
            self._flush()
            self._line = line
            self._timer = threading.Timer(_FOLD, self.finish)
            self._timer.daemon = True
            self._timer.start()

    def finish(self) -> None:
        """Put the sentence that waits."""
        with self._lock:
            self._flush()

    def _flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        line, self._line, self._timer = self._line, None, None
        if line is not None:
            self._put(line.words())
