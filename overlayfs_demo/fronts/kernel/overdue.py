"""A thread that looks after requests which take long without having said so, such as a read from a slow disk.

Only one thread serves the device, so such a request would keep all callers waiting. If one takes longer than a moment,
its thread loses the turn to another one, as if it had passed it on. The thread also looks again at interrupts that had
no effect so far, see `in_flight`. While nobody asks for anything, it sleeps.
"""

from __future__ import annotations

import threading
import time

from overlayfs_demo.fronts.kernel.in_flight import InFlight
from overlayfs_demo.fronts.kernel.turns import Turns

# Seconds between two looks. A request that is met twice is overdue.
_MOMENT = 0.002
# After so many looks without a request, this thread sleeps.
_QUIET_LOOKS = 50


class Overdue:
    """The thread for one session, until `close`."""

    __slots__ = ("_asleep", "_ended", "_in_flight", "_thread", "_turns", "_wake")

    def __init__(self, turns: Turns, in_flight: InFlight) -> None:
        self._turns = turns
        self._in_flight = in_flight
        self._asleep = False
        self._ended = False
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="overdue", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._ended = True
        self._wake.set()

    def wake(self) -> None:
        """Look after requests again. Call it when a request has begun after a time without any."""
        if self._asleep:
            self._wake.set()

    def _run(self) -> None:
        quiet = 0
        while not self._ended:
            if quiet == _QUIET_LOOKS:
                self._sleep()
                quiet = 0
            time.sleep(_MOMENT)
            any_unsettled, had_any = self._in_flight.look_again(), self._turns.relieve_overdue()
            quiet = 0 if any_unsettled or had_any else quiet + 1

    def _sleep(self) -> None:
        self._wake.clear()
        self._asleep = True
        # A request that has begun before this thread said that it sleeps would not wake it.
        if not self._turns.relieve_overdue() and not self._ended:
            self._wake.wait()
        self._asleep = False
