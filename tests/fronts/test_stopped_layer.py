"""Does a layer whose program has stopped keep only those waiting who need it, and can they be killed?

The layer is itself a view, whose daemon the tests stop.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

from tests import builders
from tests.conftest import PATIENCE, unmount_all, wait_until, why_no_mounts
from tests.contract.subjects import Fronted, Layers

MANY = 50


class Stopped(NamedTuple):
    """A view of two lowers; the lower one does not answer."""

    view: Fronted
    callers: list[int]

    def call(self, action: Callable[[], object]) -> int:
        """Let a new process do something in the view. It is killed in the end."""
        child = os.fork()
        if child == 0:
            try:
                action()
            finally:
                os._exit(0)
        self.callers.append(child)
        return child

    def all_wait(self) -> bool:
        """Whether all callers wait for the daemon."""
        return all(_waits(pid) for pid in self.callers)


def _waits(pid: int) -> bool:
    return Path(f"/proc/{pid}/wchan").read_text().endswith("request_wait_answer")


@pytest.fixture
def stopped(tmp_path: Path) -> Iterator[Stopped]:
    if problem := why_no_mounts():
        pytest.skip(problem)
    builders.directories(tmp_path, "far", "seen", "near", "upper", "work", "merged")
    builders.fill(
        os.fsencode(tmp_path / "far"), {"big": "far" * 100_000, "d": {f"f{number}": "far" for number in range(MANY)}}
    )
    builders.fill(os.fsencode(tmp_path / "near"), {"file": "near"})
    far = Fronted(Layers([tmp_path / "far"], None, None, tmp_path / "seen"), "kernel")
    lowers = [tmp_path / "seen", tmp_path / "near"]
    view = Fronted(Layers(lowers, tmp_path / "upper", tmp_path / "work", tmp_path / "merged"), "kernel")
    far.start()
    view.start()
    program = far.daemon()
    one = Stopped(view, [])
    try:
        view.mkdir("own")
        assert view.names("d")
        os.kill(program, signal.SIGSTOP)
        # If this test waits for the layer as well, it must not do so for ever.
        watchdog = threading.Timer(2 * PATIENCE, os.kill, (program, signal.SIGCONT))
        watchdog.start()
        yield one
        assert watchdog.is_alive(), "the view waited until its layer went on"
        watchdog.cancel()
    finally:
        for pid in one.callers:
            os.kill(pid, signal.SIGKILL)
        os.kill(program, signal.SIGCONT)
        for pid in one.callers:
            os.waitpid(pid, 0)
        for subject in (view, far):
            if os.path.ismount(subject.prefix):
                subject.stop()
        unmount_all(str(tmp_path))


def killed(pids: list[int]) -> None:
    """Kill processes, all of which end soon."""
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    left = set(pids)

    def all_have_ended() -> bool:
        left.difference_update([pid for pid in left if os.waitpid(pid, os.WNOHANG)[0]])
        return not left

    try:
        wait_until(all_have_ended, f"the end of {len(pids)} processes")
    finally:
        pids[:] = left


def others_are_served(view: Fronted) -> None:
    """What needs only the upper, or the other lower, is done."""
    assert view.read("file") == b"near"
    for number in range(20):
        name = f"own/{number}"
        view.write(name, b"1")
        view.rename(name, name + "x")
        assert view.names("own") == [os.fsencode(f"{number}x")]
        view.unlink(name + "x")
    view.statvfs()


CALLS: list[Callable[[Fronted, int], object]] = [
    lambda view, number: view.stat(f"d/missing-{number}"),
    lambda view, number: view.open(f"d/f{number}"),
    lambda view, number: view.chmod(f"d/f{number}", 0o600),
    lambda view, number: view.write(f"new-{number}", b"1"),
    lambda view, _: view.names("d"),
]


def test_callers_of_a_stopped_layer_keep_nobody_else_waiting_and_can_be_killed(stopped: Stopped) -> None:
    view = stopped.view
    # What the kernel has cached it need not ask for. It is trusted for a second at most.
    time.sleep(1.1)
    for number in range(MANY):
        stopped.call(partial(CALLS[number % len(CALLS)], view, number))
    wait_until(lambda: sum(map(_waits, stopped.callers)) >= MANY // 2, "callers that wait")
    others_are_served(view)
    killed(stopped.callers)
    others_are_served(view)


def test_view_with_a_stopped_layer_can_be_unmounted(stopped: Stopped) -> None:
    stopped.call(lambda: stopped.view.read("big"))
    wait_until(stopped.all_wait, "the caller")
    killed(stopped.callers)
    stopped.view.stop()  # It waits for the end of the daemon, and not for ever.
