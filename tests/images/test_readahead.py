"""Does reading ahead change nothing but the time it takes?"""

from __future__ import annotations

import io
import random
import threading
import time

import pytest

from overlayfs_demo.images.readahead import MOST_AHEAD, PIECE, ReadAhead


class Source(io.BytesIO):
    """Counts what is read, and fails when `limit` bytes were."""

    def __init__(self, data: bytes, limit: int | None = None) -> None:
        super().__init__(data)
        self.limit = limit

    def read(self, size: int | None = -1) -> bytes:
        if self.limit is not None and self.tell() >= self.limit:
            raise ValueError("broken")
        return super().read(size)


def reader(source: Source) -> ReadAhead:
    return ReadAhead(source)  # type: ignore[arg-type]


def threads() -> list[threading.Thread]:
    return [one for one in threading.enumerate() if one.name == "read-ahead"]


def test_every_byte_comes_whatever_sizes_are_read() -> None:
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    data = chance.randbytes(3 * PIECE + 17)
    found = bytearray()
    with reader(Source(data)) as ahead:
        while piece := ahead.read(chance.choice((1, 511, PIECE - 1, PIECE, 2 * PIECE))):
            found += piece
        assert ahead.read(1) == b""
    assert found == data, f"seed {seed}"


def test_an_error_is_raised_behind_the_bytes_before_it_and_again() -> None:
    with reader(Source(bytes(5 * PIECE), limit=2 * PIECE)) as ahead:
        assert len(ahead.read(PIECE)) + len(ahead.read(PIECE)) == 2 * PIECE
        for _ in range(2):
            with pytest.raises(ValueError, match="broken"):
                ahead.read(1)


def test_it_is_only_so_far_ahead() -> None:
    source = Source(bytes(4 * MOST_AHEAD * PIECE))
    with reader(source) as ahead:
        ahead.read(1)
        before = -1
        while source.tell() != before:  # until the thread waits for room
            before = source.tell()
            time.sleep(0.1)
        # One piece is being read from, one waits to be put into the full queue.
        assert before <= (MOST_AHEAD + 2) * PIECE


@pytest.mark.parametrize("read", [0, 1, PIECE])
def test_closing_early_ends_the_thread(read: int) -> None:
    ahead = reader(Source(bytes(4 * MOST_AHEAD * PIECE)))
    assert len(ahead.read(read)) == read
    ahead.close()
    assert not threads()


def test_no_thread_is_left_at_the_end() -> None:
    with reader(Source(b"x")) as ahead:
        assert ahead.read() == b"x"
    assert not threads()
