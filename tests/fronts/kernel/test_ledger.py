"""Does another process find in the ledger what the one before wrote, wherever that one was killed?"""

from __future__ import annotations

import os
import random
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import pytest

from overlayfs_demo.fronts.kernel import ledger, shared_records, wire
from overlayfs_demo.fronts.kernel.ledger import RESENT, Ledger, NotedFile, NotedNode, Place
from overlayfs_demo.fronts.kernel.shared_records import DamagedError

FILE = NotedFile(0, 5, os.O_RDWR, 3, 10, 1000, 1001, 42, True)


@contextmanager
def memory() -> Iterator[int]:
    fd = shared_records.create()
    try:
        yield fd
    finally:
        os.close(fd)


def test_new_ledger_knows_nothing() -> None:
    found = Ledger()
    assert len(found) == 0
    assert found.protocol is None
    assert not list(found.nodes())
    assert not found.files()


def test_protocol_is_found_again() -> None:
    with memory() as fd:
        Ledger(fd).protocol = wire.Protocol(38, 1 << 17, wire.HAS_RESEND | 1)
        assert Ledger(fd).protocol == wire.Protocol(38, 1 << 17, wire.HAS_RESEND | 1)


def test_node_is_found_again() -> None:
    with memory() as fd:
        first = Ledger(fd)
        directory = first.enter(1, b"dir", 100)
        nodeid = first.enter(directory, b"\xff name", 1 << 60)
        second = Ledger(fd)
        assert len(second) == 2
        assert second.node(nodeid) == NotedNode(1 << 60, Place(directory, b"\xff name"))
        assert second.count(nodeid, 1) == 2


def test_node_that_was_moved_is_found_where_it_is_now() -> None:
    with memory() as fd:
        first = Ledger(fd)
        nodeid = first.enter(1, b"old", 7)
        first.move(nodeid, 1, b"a much longer name than it had before")
        assert Ledger(fd).node(nodeid).place == Place(1, b"a much longer name than it had before")


def test_node_without_a_name_has_no_place() -> None:
    with memory() as fd:
        first = Ledger(fd)
        nodeid = first.enter(1, b"gone", 7)
        first.lose_name(nodeid)
        assert Ledger(fd).node(nodeid) == NotedNode(7, None)


def test_number_of_a_removed_node_means_nothing() -> None:
    found = Ledger()
    nodeid = found.enter(1, b"a", 7)
    found.remove(nodeid)
    following = found.enter(1, b"b", 8)
    assert following != nodeid
    with pytest.raises(KeyError):
        found.node(nodeid)
    assert found.count(nodeid, 1) == 0
    with pytest.raises(KeyError):
        found.node(1 << 40)


def test_no_number_is_used_again_by_another_process() -> None:
    with memory() as fd:
        nodeid = Ledger(fd).enter(1, b"a", 7)
        assert Ledger(fd).enter(1, b"b", 8) not in (nodeid, wire.ROOT_ID)


def test_no_number_of_a_released_file_is_used_again_by_another_process() -> None:
    """A RELEASE may come again to a process that does not know of the file any more."""
    with memory() as fd:
        first = Ledger(fd)
        number = first.open(FILE)
        first.close(number)
        assert Ledger(fd).open(FILE) != number


def test_open_file_is_found_again() -> None:
    with memory() as fd:
        first = Ledger(fd)
        number = first.open(FILE)
        cached = first.open(FILE._replace(backing=None, in_upper=False))
        second = Ledger(fd)
        assert second.file(number) == FILE._replace(number=number)
        assert second.file(cached) == FILE._replace(number=cached, backing=None, in_upper=False)
        second.close(number)
        assert [file.number for file in Ledger(fd).files()] == [cached]
        with pytest.raises(KeyError):
            second.close(number)


def test_what_was_intended_is_found_by_the_request_that_is_sent_again() -> None:
    with memory() as fd:
        Ledger(fd).intend(20, 7)
        second = Ledger(fd)
        assert second.intended(20 | RESENT) == 7
        assert second.intended(22 | RESENT) is None


def test_attempts_are_counted_over_processes() -> None:
    with memory() as fd:
        assert Ledger(fd).attempt(20 | RESENT) == 1
        assert Ledger(fd).attempt(20 | RESENT) == 2
        assert Ledger(fd).attempt(22 | RESENT) == 1


@pytest.mark.parametrize("size", [0, 1, 300, 1 << 18, 700_001])
def test_order_of_a_directory_is_found_again(size: int) -> None:
    data = random.Random(size).randbytes(size)
    with memory() as fd:
        first = Ledger(fd)
        nodeid = first.enter(1, b"d", 7)
        first.keep_stream(nodeid, b"before")
        first.keep_stream(nodeid, data)
        second = Ledger(fd)
        assert second.stream(nodeid) == data
        second.remove(nodeid)
        assert Ledger(fd).stream(nodeid) is None


def test_many_nodes_are_found_again_and_their_memory_is_used_again() -> None:
    with memory() as fd:
        first = Ledger(fd)
        ids = [first.enter(1, b"%d" % number * (1 + number % 40), number) for number in range(40_000)]
        size = os.fstat(fd).st_size
        second = Ledger(fd)
        assert all(second.node(nodeid).ino == number for number, nodeid in enumerate(ids))
        for nodeid in ids:
            second.remove(nodeid)
        third = Ledger(fd)
        for number in range(40_000):
            third.enter(1, b"%d" % number * (1 + number % 40), number)
        assert os.fstat(fd).st_size == size


def test_memory_of_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with memory() as fd:
        Ledger(fd).enter(1, b"a", 7)
        monkeypatch.setattr(ledger, "_HEADER", 0x1234)
        with pytest.raises(DamagedError):
            Ledger(fd)


def test_damaged_memory_is_refused() -> None:
    with memory() as fd:
        found = Ledger(fd)
        nodeid = found.enter(1, b"a", 7)
        view, at = found._node(nodeid)
        view[at + 3] = 1 << 50
        with pytest.raises(DamagedError):
            Ledger(fd)


# --- killed anywhere -------------------------------------------------------------------------------

Step = Callable[[Ledger, dict[str, int]], None]


def entering(label: str, name: bytes, ino: int) -> Step:
    def step(found: Ledger, ids: dict[str, int]) -> None:
        ids[label] = found.enter(1, name, ino)

    return step


def steps() -> list[Step]:
    """Changes of every kind, of records that are new and of some that are used again."""
    return [
        entering("a", b"a", 11),
        entering("b", b"a longer name", 12),
        lambda found, ids: found.move(ids["a"], ids["b"], b"elsewhere"),
        lambda found, ids: found.move(ids["b"], 1, b"b"),
        lambda found, ids: found.lose_name(ids["a"]),
        lambda found, ids: found.remove(ids["a"]),
        entering("c", b"a", 13),
        lambda found, ids: ids.update(file=found.open(FILE)),
        lambda found, ids: found.keep_stream(ids["b"], b"12345" * 30),
        lambda found, ids: found.keep_stream(ids["b"], b"678"),
        lambda found, ids: found.close(ids["file"]),
        lambda found, ids: ids.update(file=found.open(FILE._replace(backing=None))),
        lambda found, ids: found.remove(ids["b"]),
        entering("d", b"b", 14),
    ]


State = tuple[dict[int, NotedNode], list[NotedFile], dict[int, bytes | None]]


def state(found: Ledger) -> State:
    nodes = dict(found.nodes())
    return nodes, found.files(), {nodeid: found.stream(nodeid) for nodeid in nodes}


def left_at_each_line(fd: int) -> Iterator[tuple[int, bytes]]:
    """Take all steps. Yield what a process that is killed before some line of the ledger's code leaves, by the step."""
    left: list[tuple[int, bytes]] = []
    number = 0

    def trace(frame: FrameType, event: str, _argument: object) -> object:
        if frame.f_code.co_filename not in (ledger.__file__, shared_records.__file__):
            return None
        if event == "line":
            now = os.pread(fd, os.fstat(fd).st_size, 0)
            if not left or now != left[-1][1]:  # Most lines store nothing.
                left.append((number, now))
        return trace

    found, ids = Ledger(fd), dict[str, int]()
    before = sys.gettrace()
    for number, step in enumerate(steps()):  # noqa: B007 - `trace` reads the number
        sys.settrace(trace)  # type: ignore[arg-type]
        try:
            step(found, ids)
        finally:
            sys.settrace(before)
        yield from left
        left.clear()


def test_ledger_is_old_or_new_wherever_its_process_was_killed() -> None:
    states = []
    with memory() as fd:
        found, ids = Ledger(fd), dict[str, int]()
        states.append(state(found))
        for step in steps():
            step(found, ids)
            states.append(state(found))
    lines = 0
    with memory() as fd:
        for number, left in left_at_each_line(fd):
            lines += 1
            with memory() as copy:
                os.write(copy, left)
                after = Ledger(copy)
                expected = states[number : number + 2]
                # A stream that is replaced may be lost: the reader's order is then that of the names on disk.
                lost = [(*both[:2], dict.fromkeys(both[2])) for both in expected]
                assert state(after) in expected + lost, f"killed in step {number}"
                after.enter(1, b"another", 99)
                assert len(Ledger(copy)) == len(after)
    assert lines > 50


def test_number_that_was_given_back_is_not_used_again_by_the_next_process() -> None:
    with memory() as fd:
        first = Ledger(fd)
        number, nodeid = first.open(FILE), first.enter(1, b"name", 7)
        first.close(number)
        first.remove(nodeid)
        second = Ledger(fd)
        assert second.open(FILE) != number and second.enter(1, b"name", 7) != nodeid


@pytest.mark.parametrize("used", [1, (1 << 12) - 1, 1 << 12, (1 << 13) + 1])
def test_next_process_begins_after_the_serial_numbers_of_the_one_before(used: int) -> None:
    with memory() as fd:
        first = Ledger(fd)
        numbers = []
        for _ in range(used):
            numbers.append(first.open(FILE))
            first.close(numbers[-1])
        assert Ledger(fd).open(FILE) > max(numbers)


def test_threads_that_need_memory_at_the_same_time_get_different_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    both, truncate = threading.Barrier(2), os.ftruncate

    def slow(fd: int, length: int) -> None:
        with suppress(threading.BrokenBarrierError):
            both.wait(0.1)
        truncate(fd, length)

    with memory() as fd:
        shared = shared_records.Memory(fd)
        monkeypatch.setattr(os, "ftruncate", slow)
        threads = [threading.Thread(target=shared.add, args=(kind,)) for kind in (7, 8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert shared.of_kind(7) and shared.of_kind(8) and len(shared) == 2


def test_memory_of_streams_is_used_again_by_others() -> None:
    with memory() as fd:
        first = Ledger(fd)
        nodeid = first.enter(1, b"directory", 7)
        for size in range(50_000, 90_000, 8):
            first.keep_stream(nodeid, bytes(size))
        assert os.fstat(fd).st_size < 8 << 20


def test_intent_of_a_request_that_is_sent_again_is_found_by_the_third_process() -> None:
    with memory() as fd:
        Ledger(fd).intend(10 | RESENT, 5)
        assert Ledger(fd).intended(10 | RESENT) == 5
