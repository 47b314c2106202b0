"""Does the serving thread poll only while requests come closely, and sleep otherwise?"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator

import pytest

from overlayfs_demo.fronts.kernel import patience
from overlayfs_demo.fronts.kernel.patience import Patience
from tests.conftest import PATIENCE


class Clock:
    """A device without requests until `due`, and the time that passes with each look. All times in nanoseconds."""

    def __init__(self) -> None:
        self.now = 0
        self.due = 0
        self.looks = 0
        self.sleeps = 0

    def time(self) -> int:
        return self.now

    def poll(self, timeout: float | None = None) -> list[tuple[int, int]]:
        if timeout is None:
            self.sleeps += 1
            self.now = max(self.now, self.due)
        else:
            self.looks += 1
            self.now += 1000
        return [(0, 0)] if self.now >= self.due else []

    def after(self, nanoseconds: int) -> None:
        """The next request comes that much later."""
        self.due = self.now + nanoseconds
        self.looks = self.sleeps = 0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(patience, "perf_counter_ns", made.time)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1})
    return made


def patient(clock: Clock, *, polling: bool = True) -> Patience:
    made = Patience(0, polling=polling)
    made._look = clock.poll
    return made


def test_thread_that_was_asked_again_soon_polls_and_does_not_sleep(clock: Clock) -> None:
    waiting = patient(clock)
    clock.after(50_000)
    assert waiting.wait() and clock.sleeps == 1
    for _ in range(3):
        clock.after(20_000)
        assert not waiting.wait() and clock.sleeps == 0


def test_thread_that_has_polled_in_vain_sleeps_at_once_the_next_time(clock: Clock) -> None:
    waiting = patient(clock)
    clock.after(50_000)
    waiting.wait()
    clock.after(10**9)
    assert waiting.wait() and clock.looks > 10
    clock.after(10**9)
    assert waiting.wait() and clock.looks == 1


def test_thread_that_often_polls_in_vain_tries_less_often(clock: Clock) -> None:
    """The callers always come a little later than it polls."""
    waiting = patient(clock)
    tries = []
    for _ in range(400):
        clock.after(60_000)
        waiting.wait()
        tries.append(clock.looks > 1)
    assert tries.count(True) < 15
    for _ in range(70):
        clock.after(20_000)
        waiting.wait()
    assert clock.sleeps == 0  # As soon as it pays again, it polls again.


def test_thread_of_an_idle_mount_never_polls(clock: Clock) -> None:
    waiting = patient(clock)
    for _ in range(5):
        clock.after(10**7)
        assert waiting.wait() and (clock.looks, clock.sleeps) == (1, 1)


def test_thread_sleeps_at_once_if_it_may_not_poll(clock: Clock) -> None:
    waiting = patient(clock, polling=False)
    for _ in range(5):
        clock.after(20_000)
        assert waiting.wait() and (clock.looks, clock.sleeps) == (1, 1)


def test_thread_sleeps_at_once_if_there_is_one_processor(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0})
    waiting = patient(clock)
    for _ in range(5):
        clock.after(20_000)
        assert waiting.wait() and clock.looks == 1


@pytest.fixture
def device() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def test_sleeping_thread_is_woken_by_a_request_and_by_the_end(device: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = device
    waiting = Patience(theirs.fileno(), polling=True)
    for act in (lambda: ours.send(b"request"), ours.close):
        sleeper = threading.Thread(target=waiting.wait, daemon=True)
        sleeper.start()
        act()
        sleeper.join(PATIENCE)
        assert not sleeper.is_alive()
        theirs.recv(100)
