"""Do requests that take long leave threads to those that do not, and is each answered in the end?"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from overlayfs_demo.fronts.kernel import session, wire
from overlayfs_demo.fronts.kernel.wire import Opcode
from overlayfs_demo.overlay import copyup_file
from overlayfs_demo.overlay.copy_data import copy_data
from overlayfs_demo.overlay.file_ops import FileOps
from overlayfs_demo.overlay.handle import Handle
from overlayfs_demo.overlay.node import FileNode
from tests.conftest import wait_until
from tests.contract.engine_subject import Engine
from tests.fronts.kernel.fake_kernel import FakeKernel, serving
from tests.fronts.kernel.gate import Gate
from tests.overlay.conftest import Make

# Places for long requests.
LONG = 8
MANY = 2 * LONG + 2


@pytest.fixture
def gate() -> Iterator[Gate]:
    """Opened at the latest when the test ends."""
    one = Gate()
    yield one
    one.open()


@pytest.fixture
def view(overlaid: Make) -> Engine:
    return overlaid({**{f"f{number}": f"data {number}" for number in range(MANY)}, "other": "1"})


@pytest.fixture
def kernel(view: Engine, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKernel]:
    monkeypatch.setattr(session, "_LONG", LONG)
    with serving(view, monkeypatch) as one:
        yield one
        gate.open()


@pytest.fixture
def copies(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> Gate:
    """What copy-ups wait at before they copy data."""

    def wait_and_copy(source: int, target: int, size: int, before_step: Callable[[], None]) -> None:
        gate.wait()
        copy_data(source, target, size, before_step)

    monkeypatch.setattr(copyup_file, "copy_data", wait_and_copy)
    return gate


def others_are_served(kernel: FakeKernel, waiting: list[int]) -> None:
    """All kinds of short requests are answered, and none of those that wait."""
    other = kernel.lookup("other")
    for _ in range(MANY):
        kernel.ask(Opcode.GETATTR, other, bytes(16))
        handle = kernel.open(other)
        assert kernel.ask(Opcode.READ, other, wire.READ_IN.pack(handle, 0, 4096, 0) + bytes(16)) == b"1"
        kernel.release(other, handle)
    assert not kernel.replies.keys() & set(waiting)


def all_succeed(kernel: FakeKernel, waiting: list[int]) -> None:
    assert {kernel.reply(unique).code for unique in waiting} == {0}


def left_in_work(view: Engine) -> list[str]:
    assert view.layers.work is not None
    return [path.name for path in (view.layers.work / "work").iterdir() if path.name.startswith("#")]


def test_opens_that_wait_for_one_copy_up_leave_threads_to_others(
    view: Engine, kernel: FakeKernel, copies: Gate
) -> None:
    node = kernel.lookup("f1")
    waiting = [kernel.send_open(node, os.O_RDWR) for _ in range(MANY)]
    others_are_served(kernel, waiting)
    assert copies.reached == 1
    assert kernel.session._turns._free == LONG - 1, "those that wait hold no thread"
    copies.open()
    all_succeed(kernel, waiting)
    assert view.read("f1") == b"data 1"
    assert left_in_work(view) == []


def test_copy_ups_of_many_files_leave_threads_to_others(view: Engine, kernel: FakeKernel, copies: Gate) -> None:
    nodes = [kernel.lookup(f"f{number}") for number in range(MANY)]
    waiting = [kernel.send_open(node, os.O_WRONLY) for node in nodes]
    wait_until(lambda: copies.reached == LONG, "the copy-ups that have a place")
    others_are_served(kernel, waiting)
    assert copies.reached == LONG
    copies.open()
    all_succeed(kernel, waiting)
    assert copies.reached == MANY
    assert all(view.upper(f"f{number}").exists() for number in range(MANY))
    assert left_in_work(view) == []


def test_parked_request_keeps_what_it_asks_for(view: Engine, kernel: FakeKernel, copies: Gate) -> None:
    """Other requests come in the memory that it came in."""
    nodes = [kernel.lookup(f"f{number}") for number in range(MANY)]
    waiting = []
    for number, node in enumerate(nodes):
        value = b"value %d" % number
        body = wire.SETXATTR_IN.pack(len(value), 0, 0) + b"user.of-%d\0" % number + value
        waiting.append(kernel.send(Opcode.SETXATTR, node, body))
    others_are_served(kernel, waiting)
    copies.open()
    all_succeed(kernel, waiting)
    for number in range(MANY):
        assert view.xattr(f"f{number}", f"user.of-{number}") == b"value %d" % number


def test_fsync_of_a_fast_disk_changes_no_threads(
    view: Engine, kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = kernel.lookup("f1")
    handle = kernel.open(node, os.O_RDWR)
    files, upper = kernel.session._requests.files, view.overlay._tree.writable()
    passed: list[bool] = []
    # The thread that copied the file up may still count as long.
    services = files._services._replace(pass_on=lambda: passed.append(upper.syncs_slowly), any_long=lambda: False)
    monkeypatch.setattr(files, "_services", services)
    for syncs_slowly in (True, False):
        upper.syncs_slowly = syncs_slowly
        kernel.ask(Opcode.FSYNC, node, wire.FSYNC_IN.pack(handle, 0))
    assert passed == [True]


VERBS: dict[str, tuple[str, Callable[[FakeKernel, int, int], int]]] = {
    "fsync": ("sync_file", lambda kernel, node, handle: kernel.send(Opcode.FSYNC, node, wire.FSYNC_IN.pack(handle, 0))),
    "fallocate": (
        "allocate",
        lambda kernel, node, handle: kernel.send(Opcode.FALLOCATE, node, wire.FALLOCATE_IN.pack(handle, 0, 1, 0)),
    ),
    "copy_file_range": (
        "copy_range",
        lambda kernel, node, handle: kernel.send(
            Opcode.COPY_FILE_RANGE, node, wire.COPY_FILE_RANGE_IN.pack(handle, 0, node, handle, 9, 1, 0)
        ),
    ),
    "fsyncdir": (
        "sync_directory",
        lambda kernel, _node, _handle: kernel.send(Opcode.FSYNCDIR, wire.ROOT_ID, wire.FSYNC_IN.pack(0, 0)),
    ),
    "syncfs": ("sync", lambda kernel, _node, _handle: kernel.send(Opcode.SYNCFS, wire.ROOT_ID, bytes(8))),
}


@pytest.mark.parametrize("kind", VERBS)
def test_slow_disk_leaves_threads_to_others(
    view: Engine, kernel: FakeKernel, gate: Gate, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    node = kernel.lookup("f1")
    handle = kernel.open(node, os.O_RDWR)
    verb, ask = VERBS[kind]
    carry_out = getattr(FileOps, verb)

    def wait_and_carry_out(*words: object) -> object:
        gate.wait()
        return carry_out(*words)

    monkeypatch.setattr(FileOps, verb, wait_and_carry_out)
    waiting = [ask(kernel, node, handle) for _ in range(MANY)]
    wait_until(lambda: gate.reached == LONG, "the requests that have a place")
    others_are_served(kernel, waiting)
    gate.open()
    all_succeed(kernel, waiting)
    assert gate.reached == MANY


def test_request_is_counted_once_though_it_was_parked(view: Engine, kernel: FakeKernel, copies: Gate) -> None:
    waiting = [kernel.send_open(kernel.lookup(f"f{number}"), os.O_WRONLY) for number in range(MANY)]
    copies.open()
    all_succeed(kernel, waiting)
    assert kernel.session._asked["open"] == MANY


def test_directory_is_listed_while_all_long_places_are_taken(kernel: FakeKernel, copies: Gate) -> None:
    """What is read ahead then is left to be read when it is asked for."""
    waiting = [kernel.send_open(kernel.lookup(f"f{number}"), os.O_WRONLY) for number in range(MANY)]
    wait_until(lambda: copies.reached == LONG, "the copy-ups that have a place")
    for _ in range(MANY):
        assert kernel.ask(Opcode.READDIRPLUS, wire.ROOT_ID, wire.READ_IN.pack(0, 0, 65536, 0) + bytes(16))
    others_are_served(kernel, waiting)


def test_requests_that_take_long_without_having_said_so_leave_a_thread_to_others(
    view: Engine, kernel: FakeKernel, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So reads from a slow disk do."""
    slow, read_into = kernel.lookup("f1"), Handle.read_into
    handles = [kernel.open(slow) for _ in range(LONG)]
    file = view.node("f1")
    assert isinstance(file, FileNode)
    held = {id(handle) for handle in file.handles}

    def read_slowly(handle: Handle, buffer: memoryview, offset: int) -> int:
        if id(handle) in held:
            gate.wait()
        return read_into(handle, buffer, offset)

    monkeypatch.setattr(Handle, "read_into", read_slowly)
    body = [wire.READ_IN.pack(handle, 0, 4096, 0) + bytes(16) for handle in handles]
    waiting = [kernel.send(Opcode.READ, slow, data) for data in body]
    wait_until(lambda: gate.reached == LONG, "all slow reads")
    others_are_served(kernel, waiting)
    gate.open()
    all_succeed(kernel, waiting)


def test_thread_that_looks_after_overdue_requests_sleeps_while_there_are_none(kernel: FakeKernel) -> None:
    overdue = kernel.session._overdue
    wait_until(lambda: overdue._asleep, "the sleep")
    kernel.lookup("f1")
    wait_until(lambda: not overdue._asleep, "the first look")
    wait_until(lambda: overdue._asleep, "the sleep")
