"""Does a caller that is being killed get its answer at once, and is nothing of its request left?"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from collections.abc import Callable, Iterator

import pytest

from overlayfs_demo.fronts.kernel import in_flight, session, wire
from overlayfs_demo.fronts.kernel.wire import Opcode
from overlayfs_demo.overlay import copyup_file
from overlayfs_demo.overlay.copy_data import copy_data
from overlayfs_demo.overlay.handle import Handle
from overlayfs_demo.overlay.upper import Upper
from tests.conftest import wait_until
from tests.contract.engine_subject import Engine
from tests.fronts.kernel.fake_kernel import FakeKernel, serving
from tests.fronts.kernel.gate import Gate
from tests.overlay.conftest import Make

DATA = "data" * 20_000
LONG = 3


@pytest.fixture
def gate() -> Iterator[Gate]:
    """Opened at the latest when the test ends."""
    one = Gate()
    yield one
    one.open()


@pytest.fixture
def view(overlaid: Make) -> Engine:
    return overlaid({f"f{number}": DATA for number in range(LONG + 2)})


@pytest.fixture
def kernel(view: Engine, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKernel]:
    monkeypatch.setattr(session, "_LONG", LONG)
    monkeypatch.setattr(in_flight, "_asks_to_end", lambda _pid: True)
    with serving(view, monkeypatch) as one:
        yield one
        gate.open()


@pytest.fixture
def copies(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> Gate:
    """What copy-ups wait at when they have copied the first of two pieces."""

    def wait_and_copy(source: int, target: int, size: int, before_step: Callable[[], None]) -> None:
        os.pwrite(target, os.pread(source, size // 2, 0), 0)
        gate.wait()
        before_step()
        copy_data(source, target, size)

    monkeypatch.setattr(copyup_file, "copy_data", wait_and_copy)
    return gate


def left_in_work(view: Engine) -> list[str]:
    assert view.layers.work is not None
    return [path.name for path in (view.layers.work / "work").iterdir() if path.name.startswith("#")]


def begin(kernel: FakeKernel, copies: Gate, name: str = "f1") -> int:
    """Open a file for writing, so that its copy-up has begun: the number of the request."""
    before = copies.reached
    unique = kernel.send_open(kernel.lookup(name), os.O_RDWR)
    wait_until(lambda: copies.reached == before + 1, "the copy-up")
    return unique


def interrupt(kernel: FakeKernel, unique: int) -> int:
    """Interrupt a request: the errno of its reply."""
    kernel.interrupt(unique)
    return kernel.reply(unique).code


def test_interrupted_copy_up_is_answered_at_once_and_leaves_nothing(
    view: Engine, kernel: FakeKernel, copies: Gate
) -> None:
    before = view.stat("f1")
    unique = begin(kernel, copies)
    assert interrupt(kernel, unique) == errno.EINTR
    copies.open()
    wait_until(lambda: left_in_work(view) == [], "the removal of the unfinished copy")
    assert not view.upper("f1").exists()
    assert view.stat("f1") == before
    assert kernel.open(kernel.lookup("f1"), os.O_RDWR)
    assert view.upper("f1").read_text() == DATA


def test_caller_that_leaves_while_the_disk_writes_gets_no_copy_either(
    view: Engine, kernel: FakeKernel, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Upper, "persist", lambda *_: gate.wait())
    unique = begin(kernel, gate)
    assert interrupt(kernel, unique) == errno.EINTR
    gate.open()
    wait_until(lambda: left_in_work(view) == [], "the removal of the copy")
    assert not view.upper("f1").exists()


def test_copy_up_goes_on_for_others_when_its_first_caller_leaves(
    view: Engine, kernel: FakeKernel, copies: Gate
) -> None:
    first = begin(kernel, copies)
    others = [kernel.send_open(kernel.lookup("f1"), os.O_RDWR) for _ in range(2 * LONG)]
    kernel.lookup("f2")  # The others have been read.
    assert interrupt(kernel, first) == errno.EINTR
    copies.open()
    assert {kernel.reply(unique).code for unique in others} == {0}
    assert copies.reached == 1
    assert view.upper("f1").read_text() == DATA


def test_caller_that_waits_for_anothers_copy_up_may_leave(view: Engine, kernel: FakeKernel, copies: Gate) -> None:
    first = begin(kernel, copies)
    others = [kernel.send_open(kernel.lookup("f1"), os.O_RDWR) for _ in range(2 * LONG)]
    for unique in others:
        assert interrupt(kernel, unique) == errno.EINTR
    copies.open()
    assert kernel.reply(first).code == 0
    assert view.upper("f1").read_text() == DATA


def test_copy_up_ends_when_everyone_who_waited_for_it_has_left(view: Engine, kernel: FakeKernel, copies: Gate) -> None:
    first = begin(kernel, copies)
    second = kernel.send_open(kernel.lookup("f1"), os.O_RDWR)
    assert interrupt(kernel, first) == errno.EINTR
    assert interrupt(kernel, second) == errno.EINTR
    copies.open()
    wait_until(lambda: left_in_work(view) == [], "the removal of the unfinished copy")
    assert not view.upper("f1").exists()


def test_parked_request_is_answered_and_never_begun(view: Engine, kernel: FakeKernel, copies: Gate) -> None:
    begun = [begin(kernel, copies, f"f{number}") for number in range(LONG)]
    parked = kernel.send_open(kernel.lookup(f"f{LONG}"), os.O_RDWR)
    assert interrupt(kernel, parked) == errno.EINTR
    copies.open()
    assert {kernel.reply(unique).code for unique in begun} == {0}
    assert copies.reached == LONG
    assert not view.upper(f"f{LONG}").exists()


def test_interrupted_copy_of_a_metacopys_data_leaves_its_metadata(
    overlaid: Make, copies: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(in_flight, "_asks_to_end", lambda _pid: True)
    view = overlaid({"f1": DATA}, metacopy=True)
    view.chmod("f1", 0o640)
    before = view.stat("f1")
    with serving(view, monkeypatch) as kernel:
        assert interrupt(kernel, begin(kernel, copies)) == errno.EINTR
        copies.open()
    after = view.stat("f1")
    assert (after.mtime_ns, after.size, after.mode) == (before.mtime_ns, before.size, before.mode)
    assert view.read("f1") == DATA.encode()


def test_read_that_hangs_is_answered_and_its_late_answer_dropped(
    kernel: FakeKernel, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = kernel.lookup("f1")
    handle, read_into = kernel.open(node), Handle.read_into

    def read_late(handle: Handle, buffer: memoryview, offset: int) -> int:
        gate.wait()
        return read_into(handle, buffer, offset)

    monkeypatch.setattr(Handle, "read_into", read_late)
    unique = kernel.send(Opcode.READ, node, wire.READ_IN.pack(handle, 0, 4096, 0) + bytes(16))
    wait_until(lambda: gate.reached == 1, "the read")
    assert interrupt(kernel, unique) == errno.EINTR
    gate.open()
    assert kernel.ask(Opcode.READ, node, wire.READ_IN.pack(handle, 0, 4, 0) + bytes(16)) == b"data"


def test_interrupt_of_an_answered_request_changes_nothing(kernel: FakeKernel) -> None:
    node = kernel.lookup("f1")
    unique = kernel.send_open(node, os.O_RDWR)
    handle = kernel.reply(unique).body
    kernel.interrupt(unique)
    kernel.interrupt(10**9)
    assert kernel.open(node, os.O_RDWR)
    assert kernel.replies[unique].body == handle
    unsettled = kernel.session._in_flight._unsettled
    wait_until(lambda: not unsettled, "nothing left to look at")


def test_signal_that_a_program_handles_does_not_end_its_call_but_a_later_one_does(
    view: Engine, kernel: FakeKernel, copies: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel reports only the first one."""
    asked: list[int] = []
    dying: list[int] = []

    def asks_to_end(pid: int) -> bool:
        asked.append(pid)
        return bool(dying)

    monkeypatch.setattr(in_flight, "_asks_to_end", asks_to_end)
    unique = begin(kernel, copies)
    kernel.interrupt(unique)
    wait_until(lambda: len(asked) > 1, "the second look")
    assert unique not in kernel.replies
    dying.append(1)
    assert kernel.reply(unique).code == errno.EINTR


def test_only_signals_that_ask_for_the_end_count() -> None:
    with subprocess.Popen(["sleep", "1000"]) as process:
        try:
            process.send_signal(signal.SIGSTOP)
            # Until then, the next signal would end it.
            os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
            for number, ends in ((signal.SIGUSR1, False), (signal.SIGALRM, False), (signal.SIGTERM, True)):
                process.send_signal(number)
                assert in_flight._asks_to_end(process.pid) == ends
        finally:
            process.kill()
    assert in_flight._asks_to_end(process.pid), "nobody waits any more"
