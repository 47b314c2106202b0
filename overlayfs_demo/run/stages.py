"""The report of the new process to its parent: how far it came, and what failed there.

It is a pipe. A process that is about to become the command writes READY. If something fails, then or before, it
writes an object [stage, errno, problem].
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NoReturn

READY = b"\n"


@dataclass(frozen=True, slots=True)
class Failure:
    """What failed: the stage, the errno (0 if none), and the problem in words."""

    stage: str
    code: int
    problem: str


class _StageError(Exception):
    """Carries a Failure."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure)
        self.failure = failure


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Do a part of the work: its errors are reported under this name."""
    try:
        yield
    except OSError as error:
        raise _StageError(Failure(name, error.errno or 0, error.strerror or str(error))) from error
    except LookupError as error:
        raise _StageError(Failure(name, 0, str(error.args[0]))) from error


def reporting(report: int, act: Callable[[], int]) -> NoReturn:
    """End this process with the status that `act` returns; if it fails, write that to the pipe `report`."""
    status = 1
    try:
        status = act()
    except _StageError as error:
        _write(report, error.failure)
    except BaseException as error:  # noqa: BLE001 - a child must not go on as its parent, whatever happens
        _write(report, Failure("start", 0, str(error) or type(error).__name__))
    os._exit(status)


def _write(report: int, failure: Failure) -> None:
    os.write(report, json.dumps([failure.stage, failure.code, failure.problem]).encode())


def read_report(said: bytes) -> Failure | None:
    """Return what failed, by all that was written to the pipe; None if nothing did."""
    text = said.removeprefix(READY)
    if text:
        return Failure(*json.loads(text))
    return None if said else Failure("start", 0, "the process ended before it could run the command")
