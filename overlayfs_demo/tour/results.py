"""The results of labs in files of JSON lines, and what they say about a class."""

from __future__ import annotations

import errno
import json
import os
import stat
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from overlayfs_demo.errors import ImageError, OverlayError, printable
from overlayfs_demo.images.model import Document, parse_json
from overlayfs_demo.images.record_file import read_file
from overlayfs_demo.ui.table import Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """How one learner did one lab: `attempts` and `hints` are counts, `seconds` is the time from start to end."""

    lab: str
    student: str
    passed: bool
    attempts: int
    seconds: int
    hints: int


def append(path: Path, result: Result) -> None:
    """Append a result to a file, which may not exist yet. Raises OSError, and OverlayError for what is not a file.

    One write(2) appends the line, so that a class can share the file.
    """
    line = (json.dumps(asdict(result)) + "\n").encode()
    with _opened(path) as fd:
        if os.write(fd, line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def check_writable(path: Path) -> None:
    """Make the file if it does not exist, and raise what `append` would raise."""
    with _opened(path):
        pass


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """Open a file to append to. In a directory that a class shares, somebody may have put a link in its place."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    not_a_file = OverlayError(f"{printable(str(path))} is not a regular file", "name one, or a file to be made")
    try:
        fd = os.open(path, flags, 0o666)
    except OSError as error:
        # ENXIO: a FIFO without a reader, or a socket.
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise not_a_file from None
        raise
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise not_a_file
        yield fd
    finally:
        os.close(fd)


def read(paths: Iterable[Path]) -> list[Result]:
    """Return the results in these files. Raises OverlayError, which names the line that is not one, and OSError."""
    return [
        _parsed(line, f"{printable(str(path))}, line {number}")
        for path in paths
        for number, line in enumerate(_contents(path).splitlines(), 1)
        if line.strip()
    ]


def _contents(path: Path) -> bytes:
    try:
        return read_file(path)
    except ImageError as error:
        raise OverlayError(error.problem, "name files that 'lab --report' wrote") from None


def _parsed(line: bytes, where: str) -> Result:
    try:
        row = Document(parse_json(line, where), where)
        return Result(
            lab=row.text("lab"),
            student=row.text("student"),
            passed=row.flag("passed"),
            attempts=row.size("attempts"),
            seconds=row.size("seconds"),
            hints=row.size("hints"),
        )
    except ImageError as error:
        raise OverlayError(
            f"not the result of a lab: {error.problem}", "'lab --report' writes such files; remove that line"
        ) from None


# --- a class ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Sum:
    """What one learner needed for one lab, in however many sessions."""

    passed: bool
    attempts: int
    seconds: int
    hints: int

    @staticmethod
    def of(results: Sequence[Result]) -> _Sum:
        return _Sum(
            any(result.passed for result in results),
            sum(result.attempts for result in results),
            sum(result.seconds for result in results),
            sum(result.hints for result in results),
        )


def per_lab(results: Sequence[Result]) -> Table:
    """Return a table with a line for each lab: attempts and hints are the average of its students, time the median."""
    rows = []
    for lab in _values(results, lambda result: result.lab):
        mine = [result for result in results if result.lab == lab]
        sums = _sums(mine, lambda result: result.student)
        rows.append(
            (
                printable(lab),
                f"{sum(done.passed for done in sums)} of {len(sums)}",
                f"{statistics.mean(done.attempts for done in sums):.1f}",
                _minutes(statistics.median(done.seconds for done in sums)),
                f"{statistics.mean(done.hints for done in sums):.1f}",
            )
        )
    return Table(("LAB", "PASSED", "ATTEMPTS", "TIME", "HINTS"), rows)


def per_student(results: Sequence[Result]) -> Table:
    """Return a table with a line for each student: attempts, time and hints are sums."""
    rows = []
    for student in sorted(_values(results, lambda result: result.student)):
        mine = [result for result in results if result.student == student]
        sums = _sums(mine, lambda result: result.lab)
        rows.append(
            (
                printable(student),
                f"{sum(done.passed for done in sums)} of {len(sums)}",
                str(sum(done.attempts for done in sums)),
                _minutes(sum(done.seconds for done in sums)),
                str(sum(done.hints for done in sums)),
            )
        )
    return Table(("STUDENT", "PASSED", "ATTEMPTS", "TIME", "HINTS"), rows)


def _values(results: Iterable[Result], of: Callable[[Result], str]) -> list[str]:
    """Return the different values in the order in which they first appear."""
    return list(dict.fromkeys(of(result) for result in results))


def _sums(results: Sequence[Result], of: Callable[[Result], str]) -> list[_Sum]:
    return [_Sum.of([result for result in results if of(result) == value]) for value in _values(results, of)]


def _minutes(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02}"
