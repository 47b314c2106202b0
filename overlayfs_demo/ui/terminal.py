"""What a terminal shows and a pipe does not: colours, and the progress of long work.

Everything that is styled goes through here. A pipe gets the plain text; a terminal gets it with rich's styles, in
tables and prose that fit its width. rich is imported only for a terminal.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from overlayfs_demo.images.progress import SILENT, Progress
from overlayfs_demo.ui.console import columns, put
from overlayfs_demo.ui.table import Table, render_pieces
from overlayfs_demo.ui.text import filled

if TYPE_CHECKING:
    from rich import progress as rich_progress

# Columns of a document: longer lines are hard to read.
_PAGE = 80
_KINDS = {"A": "green", "C": "yellow", "D": "red"}


def width() -> int | None:
    """The columns of the terminal that stdout is; None if it is none, where nothing is cut."""
    return columns() if sys.stdout.isatty() else None


def put_table(table: Table) -> None:
    """Print a table; on a terminal with its styles, and no wider than that."""
    put_styled(list(render_pieces(table, width())))


def put_prose(text: str) -> None:
    """Print lines of prose, each ending with a newline; on a terminal they wrap at words."""
    most = width()
    if most is not None:
        text = "".join(f"{filled(line, most)}\n" for line in text.splitlines())
    put(text)


def put_changes(rows: Sequence[tuple[str, str]]) -> None:
    """Print lines of `diff`: each A, C or D, and what was added, changed or deleted."""
    put_styled([piece for kind, rest in rows for piece in ((kind, _KINDS[kind]), (f" {rest}\n", ""))])


def put_styled(pieces: Sequence[tuple[str, str]]) -> None:
    """Print text, each piece with a style of rich's ("": none)."""
    if not sys.stdout.isatty():
        put("".join(text for text, _ in pieces))
        return
    from rich.console import Console
    from rich.segment import Segment, Segments
    from rich.style import Style

    console = Console(file=sys.stdout)
    # Segments are taken as they are: no markup, no wrapping, no tab stops. `put` writes them in any locale.
    with console.capture() as capture:
        console.print(Segments([Segment(text, Style.parse(style)) for text, style in pieces]), end="", crop=False)
    put(capture.get())


def put_markdown(text: str) -> None:
    """Print a document: formatted for a terminal, but no wider than a page, and as it is to a pipe."""
    if not sys.stdout.isatty():
        put(text)
        return
    from rich.console import Console

    from overlayfs_demo.ui.document import Document

    console = Console(file=sys.stdout, width=min(width() or _PAGE, _PAGE))
    with console.capture() as capture:
        console.print(Document(text, hyperlinks=False))
    put(capture.get())


class _Bar(Progress):
    """One line, which is about the present step."""

    def __init__(self, bars: rich_progress.Progress) -> None:
        self._bars = bars
        self._task: rich_progress.TaskID | None = None

    def step(self, title: str, size: int | None = None) -> None:
        if self._task is not None:
            self._bars.remove_task(self._task)
        self._task = self._bars.add_task(title, total=size)

    def advance(self, count: int) -> None:
        if self._task is not None:
            self._bars.advance(self._task, count)


class _OneOfSeveral(Progress):
    """One line among several."""

    def __init__(self, bars: rich_progress.Progress, task: rich_progress.TaskID) -> None:
        self._bars = bars
        self._task = task

    def advance(self, count: int) -> None:
        self._bars.advance(self._task, count)


class Bars:
    """A line of progress for each of several things at once, and above them lines that stay, on stdout.

    Several threads may use it. Without a terminal, only the lines that stay are printed.
    """

    def __init__(self, bars: rich_progress.Progress | None) -> None:
        self._bars = bars
        self._tasks: dict[str, rich_progress.TaskID] = {}
        self._lock = threading.Lock()

    def bar(self, name: str, action: str, size: int | None) -> Progress:
        """Begin a line, `name: action`, which replaces the line of the same name."""
        if self._bars is None:
            return SILENT
        with self._lock:
            self._remove(name)
            self._tasks[name] = self._bars.add_task(f"{name}: {action}", total=size)
            return _OneOfSeveral(self._bars, self._tasks[name])

    def put(self, line: str, name: str = "") -> None:
        """Print a line; the progress of `name` is over."""
        with self._lock:
            if self._bars is None:
                put(f"{line}\n")
                return
            self._remove(name)
            # Both streams may be this terminal, so the bars are taken away meanwhile.
            self._bars.stop()
            put(f"{line}\n")
            self._bars.start()

    def _remove(self, name: str) -> None:
        if self._bars is not None and name in self._tasks:
            self._bars.remove_task(self._tasks.pop(name))


@contextmanager
def progress() -> Iterator[Progress]:
    """Show on stderr, while inside, how far the work is, and then take that away; nothing if it is no terminal."""
    with _bars() as bars:
        yield SILENT if bars is None else _Bar(bars)


@contextmanager
def several() -> Iterator[Bars]:
    """Show on stderr, while inside, how far several things are; see `progress`."""
    with _bars() as bars:
        yield Bars(bars)


@contextmanager
def _bars() -> Iterator[rich_progress.Progress | None]:
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn
    from rich.progress import Progress as RichProgress
    from rich.table import Column

    console = Console(stderr=True)
    if not console.is_interactive:
        yield None
        return

    # A narrow terminal cuts cells: were they wrapped, the line would become two.
    columns = (
        TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
        BarColumn(),
        DownloadColumn(table_column=Column(no_wrap=True)),
        TransferSpeedColumn(table_column=Column(no_wrap=True)),
    )
    # An archive may go to stdout meanwhile: its bytes must not pass through rich.
    with RichProgress(*columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False) as bars:
        yield bars
