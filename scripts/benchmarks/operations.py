"""Small operations, each done on many names in turn, by one client or by several."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks import clients
from benchmarks.faults import WrongResultError, expect
from benchmarks.inputs import SMALL
from benchmarks.view import View, timed


@dataclass(frozen=True, slots=True)
class Operation:
    """What is done to each of the names d/NAME0, d/NAME1, …, and how to see that it worked.

    `prepare` runs on each path before. `is_right` is given the path in the view, the path in the upper, and what `do`
    returned.
    """

    do: Callable[[str], object]
    is_right: Callable[[str, str, object], bool]
    name: str = "f"
    prepare: Callable[[str], object] | None = None

    def run(self, view: View, count: int, around: Callable[[Callable[[], object]], float]) -> float:
        """Do it on `count` names within `around`, whose result is divided by their number. Raises WrongResultError."""
        names = [f"d/{self.name}{number}" for number in range(count)]
        paths = [f"{view.path}/{name}" for name in names]
        if self.prepare:
            for path in paths:
                self.prepare(path)
        answers: list[object] = []

        def do_all() -> None:
            answers.extend(map(self.do, paths))

        measured = around(do_all)
        for name, path, answer in zip(names, paths, answers, strict=True):
            if not self.is_right(path, f"{view.upper}/{name}", answer):
                raise WrongResultError(f"wrong result for {name}")
        return measured / count

    def time(self, view: View) -> float:
        """Return the seconds that one takes."""
        return self.run(view, view.sizes.operations, lambda work: timed(work)[0])


def is_missing(path: str) -> bool:
    """Return whether stat(2) says that there is nothing."""
    try:
        os.stat(path)
    except FileNotFoundError:
        return True
    return False


def chmod(path: str) -> None:
    os.chmod(path, 0o600)


def move(path: str) -> None:
    os.rename(path, f"{path}-moved")


def unlink(path: str) -> None:
    os.unlink(path)


def _is_copied_up(path: str, upper: str, _: object) -> bool:
    changed = os.stat(path).st_mode & 0o777 == os.stat(upper).st_mode & 0o777 == 0o600
    return changed and clients.read(path) == clients.read(upper) == SMALL


STAT = Operation(lambda path: os.stat(path).st_size, lambda path, upper, size: size == len(SMALL))
OPEN_READ = Operation(clients.read, lambda path, upper, data: data == SMALL)
MISS = Operation(is_missing, lambda path, upper, missing: missing is True, "x")
CREATE = Operation(clients.create, lambda path, upper, _: clients.read(upper) == SMALL, "n")
RENAME = Operation(
    move, lambda path, upper, _: is_missing(path) and clients.read(f"{upper}-moved") == SMALL, "n", clients.create
)
UNLINK_UPPER = Operation(unlink, lambda path, upper, _: is_missing(path) and is_missing(upper), "n", clients.create)
COPY_UP = Operation(chmod, _is_copied_up)
UNLINK_LOWER = Operation(unlink, lambda path, upper, _: is_missing(path))


def several_clients(view: View, count: int) -> float:
    """Let several processes read and create files at the same time; return the seconds for one of each."""
    share = view.sizes.operations // count
    processes = []
    for number in range(count):
        words = [sys.executable, clients.__file__, str(view.path / "d"), str(number * share), str(share)]
        processes.append(subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
    try:
        expect("clients", [_line(process) for process in processes], [b"ready\n"] * count)

        def work() -> list[bytes]:
            for process in processes:
                assert process.stdin
                process.stdin.close()
            return [_line(process) for process in processes]

        seconds, said = timed(work)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    expect("clients", said, [b"done\n"] * count)
    made = [clients.read(f"{view.upper}/d/new{number}") for number in range(share * count)]
    expect("files", made, [SMALL] * len(made))
    return seconds / len(made)


def _line(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout
    return process.stdout.readline()


def with_clients(count: int) -> Callable[[View], float]:
    return lambda view: several_clients(view, count)
