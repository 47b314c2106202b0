"""A Markdown document on a terminal, as rich shows it, except that no cell of a table is cut."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from rich.console import Console, ConsoleOptions, RenderResult
from rich.markdown import Markdown, MarkdownElement, TableElement
from rich.measure import Measurement
from rich.table import Table

# What rich puts between two columns, in columns of the terminal, and at both ends together.
_GAP, _ENDS = 2, 2


class _WholeWords(TableElement):
    """A table whose columns have room for their longest word. rich would end such a word with an ellipsis."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for shown in super().__rich_console__(console, options):
            if isinstance(shown, Table):
                _widen(shown, console, options)
            yield shown


def _widen(table: Table, console: Console, options: ConsoleOptions) -> None:
    needs = [
        Measurement(*map(max, zip(*(Measurement.get(console, options, cell) for cell in cells), strict=True)))
        for column in table.columns
        if (cells := [column.header, *column.cells])
    ]
    room = options.max_width - _GAP * (len(needs) - 1) - _ENDS
    for column, width in zip(table.columns, _widths(needs, room), strict=True):
        column.width = width
        column.overflow = "fold"


def _widths(needs: Sequence[Measurement], room: int) -> list[int]:
    """Return a width for each column. The widest shrinks first, and breaks a word only if not all of them fit."""
    widths = [need.maximum for need in needs]
    least = [need.minimum for need in needs]
    if sum(least) > room:
        least = [min(need.minimum, max(room // len(needs), 1)) for need in needs]
    while sum(widths) > room and (wider := [index for index, width in enumerate(widths) if width > least[index]]):
        widths[max(wider, key=widths.__getitem__)] -= 1
    return widths


class Document(Markdown):
    """A document of Markdown, which a console of rich prints."""

    elements: ClassVar[dict[str, type[MarkdownElement]]] = {**Markdown.elements, "table_open": _WholeWords}
