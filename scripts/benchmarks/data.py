"""Reads and writes of large files."""

from __future__ import annotations

import mmap
import os
import random
from collections.abc import Iterable
from pathlib import Path

from benchmarks.faults import expect
from benchmarks.inputs import MIB, PAGE, page
from benchmarks.view import View, timed


def _check_upper(view: View, name: str, mebibytes: int) -> None:
    """The upper must hold exactly the numbered pages that were written. Raises WrongResultError."""
    with (view.upper / name).open("rb") as file:
        right = all(file.read(PAGE) == page(number) for number in range(mebibytes * MIB // PAGE))
        expect("bytes in the upper", right and not file.read(1), True)


def _write(path: Path, mebibytes: int, chunk: int) -> float:
    """Write numbered pages in pieces of `chunk` bytes, and return the seconds for one piece."""
    data = b"".join(page(number) for number in range(mebibytes * MIB // PAGE))
    pieces = [memoryview(data)[start : start + chunk] for start in range(0, len(data), chunk)]

    def fill() -> None:
        with path.open("xb", buffering=0) as file:
            for piece in pieces:
                file.write(piece)

    return timed(fill)[0] / len(pieces)


def write_pages(view: View) -> float:
    seconds = _write(view.path / "written", view.sizes.written, PAGE)
    _check_upper(view, "written", view.sizes.written)
    return seconds


def write_mebibytes(view: View) -> float:
    # More than for pages, because the time for one piece varies.
    size = view.sizes.written * 2
    seconds = _write(view.path / "written", size, MIB)
    _check_upper(view, "written", size)
    return seconds


def random_writes(view: View) -> float:
    """Write pages of an upper file in random order; return the seconds for one."""
    size = view.sizes.written
    _write(view.path / "written", size, MIB)
    numbers = _random_pages(size, view.sizes.random)
    fd = os.open(view.path / "written", os.O_WRONLY)
    try:
        pages = [(page(number), number * PAGE) for number in numbers]
        seconds, _ = timed(lambda: [os.pwrite(fd, data, offset) for data, offset in pages])
    finally:
        os.close(fd)
    _check_upper(view, "written", size)
    return seconds / len(numbers)


def _random_pages(mebibytes: int, count: int) -> list[int]:
    return random.Random(2).choices(range(mebibytes * MIB // PAGE), k=count)


def _expect_pages(found: Iterable[bytes], numbers: Iterable[int]) -> None:
    expect("pages", list(found), [number.to_bytes(8, "big") for number in numbers])


def _read_through(path: Path, mebibytes: int) -> float:
    """Read a file of numbered pages from its start to its end; return the seconds for 1 MiB."""
    buffer = bytearray(MIB)

    def read() -> list[bytes]:
        with path.open("rb", buffering=0) as file:
            return [bytes(buffer[:8]) for _ in range(mebibytes + 1) if file.readinto(buffer)]

    seconds, found = timed(read)
    _expect_pages(found, range(0, mebibytes * MIB // PAGE, MIB // PAGE))
    return seconds / mebibytes


def _read_randomly(path: Path, mebibytes: int, count: int) -> float:
    """Read pages of a file of numbered pages in random order; return the seconds for one."""
    numbers = _random_pages(mebibytes, count)
    fd = os.open(path, os.O_RDONLY)
    try:
        seconds, found = timed(lambda: [os.pread(fd, PAGE, number * PAGE) for number in numbers])
    finally:
        os.close(fd)
    _expect_pages([data[:8] for data in found], numbers)
    return seconds / count


def read_cold(view: View) -> float:
    return _read_through(view.path / "large", view.sizes.large)


def read_warm(view: View) -> float:
    read_cold(view)
    return read_cold(view)


def random_read_cold(view: View) -> float:
    return _read_randomly(view.path / "large", view.sizes.large, view.sizes.random)


def random_read_warm(view: View) -> float:
    read_cold(view)
    return random_read_cold(view)


def read_written(view: View) -> float:
    """Read a file that was written just now."""
    _write(view.path / "written", view.sizes.written, MIB)
    return _read_through(view.path / "written", view.sizes.written)


def random_read_written(view: View) -> float:
    _write(view.path / "written", view.sizes.written, MIB)
    return _read_randomly(view.path / "written", view.sizes.written, view.sizes.random)


def mapped_read(view: View) -> float:
    """Touch each page of a mapped file; return the seconds for 1 MiB."""
    size = view.sizes.large * MIB
    fd = os.open(view.path / "large", os.O_RDONLY)
    try:
        with mmap.mmap(fd, size, prot=mmap.PROT_READ) as mapped:
            seconds, found = timed(lambda: [mapped[start : start + 8] for start in range(0, size, PAGE)])
    finally:
        os.close(fd)
    _expect_pages(found, range(size // PAGE))
    return seconds / view.sizes.large


def append(view: View) -> float:
    """Append one byte to the large file of the lower, so that it is copied up; return the seconds."""

    def write() -> None:
        with (view.path / "large").open("ab", buffering=0) as file:
            file.write(b"!")

    seconds, _ = timed(write)
    size = view.sizes.large * MIB
    with (view.upper / "large").open("rb") as file:
        expect("size", os.fstat(file.fileno()).st_size, size + 1)
        numbers = range(0, size // PAGE, MIB // PAGE)
        _expect_pages([os.pread(file.fileno(), 8, number * PAGE) for number in numbers], numbers)
        expect("last byte", os.pread(file.fileno(), 2, size), b"!")
    return seconds
