"""What a view costs besides time: memory, requests and system calls, and the time to start."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.faults import LeftOutError, WrongResultError, expect
from benchmarks.operations import Operation
from benchmarks.view import View, timed

COUNTED = 100  # operations
_PATIENCE = 10.0  # seconds

# --- start ------------------------------------------------------------------------------------------


def mount_time(view: View) -> float:
    return view.mount_time


def help_time(view: View) -> float:
    """Run the program with --help, which imports what every start imports."""
    if not view.peer.name.startswith("ours-"):
        raise LeftOutError("is not a Python program")
    seconds, said = timed(lambda: view.run(view.peer.command[0], "--help"))
    expect("help", "usage:" in said, True)
    return seconds


# --- memory -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Memory:
    """The daemon's resident memory before and after so many names were seen, in bytes."""

    before: int
    after: int
    names: int


# By input and peer: two rows read what one walk has found, because a million names take minutes.
_seen: dict[tuple[Path, str], _Memory] = {}


def _walk(directory: str | Path) -> int:
    """Look at every name below a directory, and return how many there are."""
    count = 0
    with os.scandir(directory) as entries:
        for entry in entries:
            entry.stat()
            count += 1 + (_walk(entry.path) if entry.is_dir() else 0)
    return count


def _memory(view: View) -> _Memory:
    key = (view.input.place, view.peer.name)
    if key not in _seen:
        before = view.resident()
        names = _walk(view.path)
        _seen[key] = _Memory(before, view.resident(), names)
    return _seen[key]


def resident(view: View) -> float:
    """Return the daemon's resident memory, in bytes, after every name was seen."""
    return _memory(view).after


def bytes_a_name(view: View) -> float:
    """Return how much resident memory grows for each name that is seen, in bytes."""
    found = _memory(view)
    return (found.after - found.before) / found.names


def resident_after_removal(view: View) -> float:
    """Return the daemon's resident memory, in bytes, after every name was seen and removed."""
    view.daemons()
    _walk(view.path)
    view.run("rm", "-rf", *view.path.iterdir())
    expect("names left", os.listdir(view.path), [])
    return view.resident()


# --- processor time ---------------------------------------------------------------------------------


def processor_time(operation: Operation) -> Callable[[View], float]:
    """Return the row that measures how long a daemon's threads run for each operation, in seconds."""

    def measure(view: View) -> float:
        def around(work: Callable[[], object]) -> float:
            before = view.processor_time()
            work()
            return view.processor_time() - before

        return operation.run(view, view.sizes.operations, around)

    return measure


def idle(view: View) -> float:
    """Return how long a daemon's threads run in a second in which nothing happens, in seconds."""
    before = view.processor_time()
    time.sleep(1)
    return view.processor_time() - before


# --- requests ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def _traced(view: View) -> Iterator[Path]:
    """Let the kernel note each request of the view's connection, and return the file with the notes."""
    tracing = view.path.parent / "tracing"
    tracing.mkdir()
    try:
        subprocess.run(["mount", "-t", "tracefs", "tracefs", tracing], check=True, capture_output=True)
    except subprocess.CalledProcessError as error:
        raise LeftOutError("cannot be counted: mounting tracefs needs root") from error
    instance = tracing / "instances" / view.mark
    try:
        instance.mkdir()
        event = instance / "events/fuse/fuse_request_send"
        if not event.exists():
            raise LeftOutError("cannot be counted: Linux has the trace event fuse_request_send since 6.11")
        (event / "filter").write_text(f"connection == {os.minor(os.stat(view.path).st_dev)}")
        (event / "enable").write_text("1")
        yield instance / "trace"
    finally:
        if instance.exists():
            instance.rmdir()
        subprocess.run(["umount", tracing], check=True)


def requests(operation: Operation) -> Callable[[View], float]:
    """Return the row that counts the requests to a FUSE daemon for each operation."""

    def count(view: View) -> float:
        view.daemons()
        with _traced(view) as notes:

            def around(work: Callable[[], object]) -> float:
                before = notes.read_text().count(" req ")
                work()
                return notes.read_text().count(" req ") - before

            return operation.run(view, COUNTED, around)

    return count


# --- system calls -----------------------------------------------------------------------------------


def _wait_until_traced(pids: list[int]) -> None:
    deadline = time.monotonic() + _PATIENCE
    while True:
        states = [path.read_text() for pid in pids for path in Path(f"/proc/{pid}/task").glob("*/status")]
        if not any("\nTracerPid:\t0\n" in state for state in states):
            return
        if time.monotonic() > deadline:
            raise WrongResultError(f"strace does not trace the daemon within {_PATIENCE:.0f} seconds")
        time.sleep(0.01)


def total_calls(summary: str) -> int:
    """Return the number of system calls that a summary of `strace -c` states."""
    if not summary.strip():
        return 0
    found = re.search(r"^ *[\d.]+ +[\d.]+ +\d+ +(\d+)(?: +\d+)? +total$", summary, re.MULTILINE)
    if found is None:
        raise WrongResultError(f"strace printed no total: {summary[:60]!r}")
    return int(found[1])


def system_calls(operation: Operation) -> Callable[[View], float]:
    """Return the row that counts the system calls of a daemon for each operation."""

    def count(view: View) -> float:
        if shutil.which("strace") is None:
            raise LeftOutError("cannot be counted: strace is not installed")
        daemons, summary = view.daemons(), view.path.parent / "strace"

        def around(work: Callable[[], object]) -> float:
            words = ["strace", "-f", "-c", "-o", str(summary)]
            words += [word for pid in daemons for word in ("-p", str(pid))]
            with subprocess.Popen(words, stderr=subprocess.DEVNULL) as tracer:
                try:
                    _wait_until_traced(daemons)
                    work()
                finally:
                    tracer.send_signal(signal.SIGINT)
            return total_calls(summary.read_text())

        return operation.run(view, COUNTED, around)

    return count
