"""Is no parked request forgotten, and are there never more long requests than places?"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from overlayfs_demo.fronts.kernel.request import Request
from overlayfs_demo.fronts.kernel.turns import ParkedError, Turn, Turns
from tests.conftest import PATIENCE, wait_until


def numbered(unique: int) -> Request:
    return Request((0, 0, unique, 0, 0, 0, 0, 0, 0), memoryview(b""), memoryview(b""))


class Server:
    """A thread that does what it is told, and notes what it is to resume."""

    def __init__(self, turns: Turns) -> None:
        self.resumed: list[int] = []
        self._turns = turns
        self._thread = ThreadPoolExecutor(1)
        self.do(turns.enter)

    def do(self, work: Callable[[], object]) -> object:
        return self._thread.submit(work).result(PATIENCE)

    def take(self) -> None:
        self.do(lambda: self._turns.take(self.resume))

    def take_in_background(self) -> None:
        self._thread.submit(self._turns.take, self.resume)

    def resume(self, request: Request) -> None:
        self.resumed.append(request.unique)

    def close(self) -> None:
        self._thread.shutdown()


@pytest.fixture
def turns() -> Turns:
    """One place for a long request."""
    return Turns(2, 1, lambda: True)


@pytest.fixture
def servers(turns: Turns) -> Iterator[list[Server]]:
    """Two threads that serve."""
    made = [Server(turns) for _ in range(2)]
    for one in made:
        one.take()
    yield made
    for one in made:
        one.close()


def test_request_that_is_parked_is_resumed_when_a_long_one_is_finished(turns: Turns, servers: list[Server]) -> None:
    first, second = servers
    first.do(turns.pass_on)
    with pytest.raises(ParkedError):
        second.do(turns.pass_on)
    assert second.do(lambda: turns.park(numbered(7)))
    third = Server(turns)
    third.take()  # There is a turn.
    first.take_in_background()
    wait_until(lambda: first.resumed == [7], "the parked request")
    second.do(turns.leave)  # Now there is a turn for the first as well.
    third.close()


def test_request_is_not_parked_when_the_last_long_one_has_just_finished(turns: Turns, servers: list[Server]) -> None:
    first, second = servers
    first.do(turns.pass_on)
    with pytest.raises(ParkedError):
        second.do(turns.pass_on)
    first.take()
    assert not second.do(lambda: turns.park(numbered(7)))
    second.do(turns.pass_on)  # It has the place.
    with pytest.raises(ParkedError):
        first.do(turns.pass_on)
    second.take()
    first.do(turns.pass_on)


def test_thread_that_is_refused_a_place_keeps_its_turn(turns: Turns, servers: list[Server]) -> None:
    first, second = servers
    first.do(turns.pass_on)
    assert not second.do(turns.try_pass_on)
    first.take()
    third = Server(turns)
    second.do(turns.pass_on)
    third.take()  # There is a turn for it only now.
    third.close()


def test_thread_without_a_turn_is_never_parked(turns: Turns, servers: list[Server]) -> None:
    servers[0].do(turns.pass_on)
    third = Server(turns)
    for _ in range(3):
        third.do(turns.pass_on)
    third.close()


def test_what_is_parked_is_forgotten_at_the_end(turns: Turns, servers: list[Server]) -> None:
    first, second = servers
    first.do(turns.pass_on)
    assert second.do(lambda: turns.park(numbered(7)))
    turns.end()
    assert second.do(lambda: turns.park(numbered(8)))
    first.take()
    assert first.resumed == []


def test_every_request_is_carried_out_once_and_few_are_long_at_a_time() -> None:
    serving, long, count = 2, 2, 2000
    lock = threading.Lock()

    def start_thread() -> bool:
        threading.Thread(target=serve, daemon=True).start()
        return True

    turns = Turns(serving, long, start_thread)
    left = list(range(count))
    done: list[int] = []
    at_work, most = 0, 0

    def carry_out(request: Request) -> None:
        nonlocal at_work, most
        try:
            turns.pass_on()
        except ParkedError:
            if not turns.park(request):
                carry_out(request)
            return
        with lock:
            at_work += 1
            most = max(most, at_work)
        with lock:
            at_work -= 1
            done.append(request.unique)

    def serve() -> None:
        turns.enter()
        while turns.take(carry_out):
            with lock:
                unique = left.pop() if left else None
            if unique is None:
                break
            carry_out(numbered(unique))
        turns.leave()

    assert turns.start(serving + long)
    wait_until(lambda: len(done) == count, "all requests")
    turns.end()
    assert sorted(done) == list(range(count))
    assert 1 <= most <= long


def test_thread_whose_request_takes_long_loses_its_turn_to_another(turns: Turns, servers: list[Server]) -> None:
    first, _ = servers
    mine = first.do(lambda: turns.mine)
    assert isinstance(mine, Turn)
    third = Server(turns)
    mine.requests, mine.answering = 1, True
    assert turns.relieve_overdue() and mine.serves  # It may have begun just now.
    assert turns.relieve_overdue() and not mine.serves
    third.take()
    first.do(turns.pass_on)  # It has a place already.
    third.close()


def test_thread_that_waits_for_a_request_keeps_its_turn(turns: Turns, servers: list[Server]) -> None:
    mine = servers[0].do(lambda: turns.mine)
    assert isinstance(mine, Turn)
    mine.requests = 1
    assert turns.relieve_overdue()
    assert not turns.relieve_overdue() and mine.serves


def test_no_thread_loses_its_turn_while_all_places_are_taken(turns: Turns, servers: list[Server]) -> None:
    first, second = servers
    first.do(turns.pass_on)
    mine = second.do(lambda: turns.mine)
    assert isinstance(mine, Turn)
    mine.requests, mine.answering = 1, True
    for _ in range(3):
        assert turns.relieve_overdue() and mine.serves
    first.take()
    turns.relieve_overdue()
    assert not mine.serves
