"""How the thread that serves waits for the next request: it polls for a moment before it sleeps.

To wake a sleeping thread takes the kernel longer than most requests take us. So after a reply the thread looks for the
next request again and again for some microseconds, as KVM does before it halts a processor
(Documentation/virt/kvm/halt-polling.rst). It does so only while requests follow each other that closely: after a wait
that was longer it sleeps at once, until a short one shows that somebody is busy again. An idle mount costs nothing.
Where polling is often in vain, because the callers do other things in between or all processors are busy, it is tried
less and less often. With one processor there is no polling, because it would only keep the caller from running.
"""

from __future__ import annotations

import os
import select
from time import perf_counter_ns

_WINDOW_NS = 40_000
# A wait that ends in sleep is this long even if the caller asks at once.
_CLOSE_NS = 120_000
# After polling in vain several times in a row, this many short waits are slept through.
_LONGEST_PAUSE = 63


class Patience:
    """One thread's waiting for a device that does not block."""

    __slots__ = ("_look", "_may_poll", "_pause", "_polls", "_skips")

    def __init__(self, device: int, *, polling: bool) -> None:
        """Wait for `device`. Without `polling`, always sleep at once."""
        poll = select.poll()
        poll.register(device, select.POLLIN)
        self._look = poll.poll
        self._may_poll = polling and len(os.sched_getaffinity(0)) > 1
        self._polls = False
        # How many short waits to sleep through after polling in vain, and how many of them are left.
        self._pause = 0
        self._skips = 0

    def wait(self) -> bool:
        """Return when there is a request, or the device has failed. Return whether the thread has slept."""
        look = self._look
        if look(0):
            return False
        began = perf_counter_ns()
        if self._polls:
            end = began + _WINDOW_NS
            while perf_counter_ns() < end:
                if look(0):
                    self._pause //= 2
                    return False
            self._pause = self._skips = min(2 * self._pause + 1, _LONGEST_PAUSE)
            self._polls = False
            look()
        else:
            look()
            is_close = perf_counter_ns() - began < _CLOSE_NS
            if is_close and self._skips:
                self._skips -= 1
            self._polls = self._may_poll and is_close and not self._skips
        return True
