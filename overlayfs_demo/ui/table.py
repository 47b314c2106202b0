"""A table as a value, and its one rendering, for a pipe and for a terminal.

The columns follow Go's text/tabwriter, by which Docker prints tables: formatter.Context makes it with
tabwriter.NewWriter(output, 10, 1, 3, ' ', 0). All cells are aligned to the left. On a terminal that is too narrow for
that, the columns stand closer and give way, see `fitting`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from operator import itemgetter

from overlayfs_demo.errors import printable
from overlayfs_demo.ui.fitting import BY_TITLE, OTHER, PADDING, Fit, fitted_widths
from overlayfs_demo.ui.text import columns, cut_end

_MIN_WIDTH = 10
_PADDING = 3

# What ends a cell in Docker's layout is a blank in ours.
_BREAKS = dict.fromkeys(map(ord, "\t\n"), " ")

_HEADER_STYLE = "bold"
# Cells that look the same in every column.
_WORD_STYLES = {
    **dict.fromkeys(("<missing>", "<none>", "metadata only", "nothing", "Stopped", "-", "0", "0B"), "dim"),
    "visible": "green",
}


@dataclass(frozen=True, slots=True)
class Table:
    """A header, rows of cells, and styles (rich's, for a terminal) by the header of their column.

    Rendering escapes the cells. A newline in a cell ends the line and a tab ends the cell, so pass a file's name
    through `printable` first. With `trim`, a line does not end with padding before empty cells. `fits` says how columns
    give way on a narrow terminal, by their header; where `whole`, they do not, and lines run on. `longest` is how many
    columns a cell may take where there is no terminal to fit, by the header.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    styles: Mapping[str, str] = field(default_factory=dict)
    trim: bool = False
    fits: Mapping[str, Fit] = field(default_factory=lambda: BY_TITLE)
    whole: bool = False
    longest: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Cell:
    """One cell of a line, escaped, with its style ("": none)."""

    text: str
    style: str


def render_text(table: Table) -> str:
    """The table as text: lines of columns, each with a newline."""
    return "".join(text for text, _ in render_pieces(table))


def render_pieces(table: Table, width: int | None = None) -> Iterator[tuple[str, str]]:
    """The same text in pieces, each with its style ("": none); padding between cells has none.

    `width` is that of the terminal, in columns: no line is longer, unless the table is `whole`. None cuts nothing.
    """
    lines = list(_lines(_shortened(table) if width is None else table))
    padding = _widths(lines)
    longest = max(map(_length, lines, padding))
    if width is not None and longest > width and not table.whole:
        lines, padding = _fitted(table, width)
    for number, (line, padded) in enumerate(zip(lines, padding, strict=True)):
        pieces = list(_line_pieces(line, padded, trim=table.trim))
        # The header is one piece, so that its style is written once.
        yield from pieces if number else [("".join(text for text, _ in pieces), _HEADER_STYLE)]
        yield "\n", ""


def _shortened(table: Table) -> Table:
    """The table with its cells cut where they are longer than they may be."""
    if not table.longest:
        return table
    most = [table.longest.get(title) for title in table.header]
    rows = [
        [text if width is None else cut_end(text, width) for text, width in zip(row, most, strict=True)]
        for row in table.rows
    ]
    return replace(table, rows=rows)


def _lines(table: Table) -> Iterator[list[_Cell]]:
    """The lines of the table; as in tabwriter, a newline in a cell ends the line, and a tab ends the cell."""
    column_styles = [table.styles.get(title, "") for title in table.header]
    for row in (table.header, *table.rows):
        line: list[_Cell] = []
        for cell, column_style in zip(row, column_styles, strict=True):
            first, *rest = (list(_cells(part, column_style)) for part in cell.split("\n"))
            line += first
            for following in rest:
                yield line
                line = following
        yield line


def _length(line: Sequence[_Cell], padding: Sequence[int]) -> int:
    """The columns that a line takes on a terminal."""
    pairs = zip(line, padding, strict=True)
    return sum(columns(cell.text) + max(width - len(cell.text), 0) for cell, width in pairs)


def _fitted(table: Table, width: int) -> tuple[list[list[_Cell]], list[list[int]]]:
    """The lines of the table, and the width of each cell with its padding, so that no line is longer than `width`.

    A row is one line here, whatever its cells hold. A column in which no row says anything is left out.
    """
    table = _without_empty_columns(table)
    rows = [[printable(cell.translate(_BREAKS)) for cell in row] for row in (table.header, *table.rows)]
    fits = [table.fits.get(title, OTHER) for title in table.header]
    naturals = [max(map(columns, column)) for column in zip(*rows, strict=True)]
    kept = fitted_widths(table.header, naturals, fits, width)
    last = max(kept)
    lines, padding = [], []
    for row in rows:
        cells = [_Cell(fits[at].cell(row[at], most), _style(table, at, row[at])) for at, most in kept.items()]
        lines.append(cells)
        # `_line_pieces` counts characters, the terminal counts columns.
        padding.append(
            [
                0 if at == last else most + PADDING - columns(cell.text) + len(cell.text)
                for cell, (at, most) in zip(cells, kept.items(), strict=True)
            ]
        )
    return lines, padding


def _without_empty_columns(table: Table) -> Table:
    said = [at for at in range(len(table.header)) if not table.rows or any(row[at] for row in table.rows)]
    rows = [[row[at] for at in said] for row in table.rows]
    return replace(table, header=[table.header[at] for at in said], rows=rows)


def _style(table: Table, column: int, text: str) -> str:
    return _WORD_STYLES.get(text, table.styles.get(table.header[column], ""))


def _cells(text: str, column_style: str) -> Iterable[_Cell]:
    return (_Cell(printable(part), _WORD_STYLES.get(part, column_style)) for part in text.split("\t"))


def _widths(lines: Sequence[Sequence[_Cell]]) -> list[list[int]]:
    """The width of each cell of each line, with its padding; 0 for the last of a line, which is not padded.

    As in tabwriter, a column is as wide as the widest cell of adjacent lines that have one there. A line without such
    a cell ends the column, and the next line begins a new one.
    """
    widths = [[0] * len(line) for line in lines]
    for column in range(max(map(len, lines)) - 1):
        marked = [(column < len(line) - 1, number) for number, line in enumerate(lines)]
        for has_cell, block in groupby(marked, itemgetter(0)):
            if has_cell:
                numbers = [number for _, number in block]
                widest = max(len(lines[number][column].text) for number in numbers)
                for number in numbers:
                    widths[number][column] = max(_MIN_WIDTH, widest + _PADDING)
    return widths


def _line_pieces(line: Sequence[_Cell], widths: Sequence[int], *, trim: bool) -> Iterator[tuple[str, str]]:
    last = max((at for at, cell in enumerate(line) if cell.text), default=-1) if trim else len(line)
    for at, (cell, width) in enumerate(zip(line, widths, strict=True)):
        if cell.text:
            yield cell.text, cell.style
        if at < last and width > len(cell.text):
            yield " " * (width - len(cell.text)), ""
