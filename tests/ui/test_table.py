"""One rendering of a table, for a pipe and for a terminal."""

from __future__ import annotations

import io
from collections.abc import Sequence

import pytest

from overlayfs_demo.ui import terminal
from overlayfs_demo.ui.table import Table, render_pieces, render_text


def text(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return render_text(Table(header, rows))


def styled(table: Table) -> list[tuple[str, str]]:
    """The pieces that have a style, without the header."""
    _, *pieces = render_pieces(table)
    return [(words, style) for words, style in pieces if style]


# --- text ------------------------------------------------------------------------------------------


def test_column_is_three_wider_than_its_widest_cell_and_ten_at_least() -> None:
    assert text(("A", "B", "C"), [("12345678", "1", "1")]) == "A          B         C\n12345678   1         1\n"


def test_last_cell_is_not_padded() -> None:
    assert text(("A", "B"), [("x", "long")]) == "A         B\nx         long\n"


def test_table_without_rows_is_its_header() -> None:
    assert text(("IMAGE", "CREATED"), []) == "IMAGE     CREATED\n"


def test_newline_in_a_cell_ends_the_line_and_the_columns_begin_anew() -> None:
    rows = [("wider than ten", "x\nalone\ny", "z"), ("a", "b", "c")]
    assert text(("A", "B", "C"), rows) == (
        "A                B         C\nwider than ten   x\nalone\ny         z\na         b         c\n"
    )


def test_tab_in_a_cell_ends_the_cell() -> None:
    assert text(("A", "B"), [("x", "y\tz")]) == "A         B\nx         y         z\n"


def test_what_a_terminal_would_act_on_is_escaped() -> None:
    assert text(("A", "B"), [("\x1b[31m", "\r\u202e")]) == "A          B\n\\x1b[31m   \\r\\u202e\n"


def test_trimmed_lines_have_no_padding_before_empty_cells() -> None:
    table = Table(("LAYER", "SAYS", ""), [("top", "a file", "visible"), ("bottom", "nothing", "")], trim=True)
    assert render_text(table) == ("LAYER     SAYS\ntop       a file    visible\nbottom    nothing\n")


# --- styles ----------------------------------------------------------------------------------------


def test_header_is_bold() -> None:
    assert next(render_pieces(Table(("A", "B"), []))) == ("A         B", "bold")


def test_a_column_has_its_style_and_padding_has_none() -> None:
    table = Table(("WASTED", "FILE"), [("1kB", "/a"), ("22MB", "/b")], {"WASTED": "red"})
    assert styled(table) == [("1kB", "red"), ("22MB", "red")]


def test_some_words_have_a_style_of_their_own_in_every_column() -> None:
    table = Table(("WASTED", "SAYS"), [("0B", "visible"), ("1B", "-")], {"WASTED": "red"})
    assert styled(table) == [("0B", "dim"), ("visible", "green"), ("1B", "red"), ("-", "dim")]


def test_runs_of_blanks_in_a_cell_do_not_end_it() -> None:
    table = Table(("FILE", "SIZE"), [("/a   0   -", "1B"), ("   b", "0B")], {"FILE": "cyan", "SIZE": "red"})
    assert styled(table) == [("/a   0   -", "cyan"), ("1B", "red"), ("   b", "cyan"), ("0B", "dim")]


def test_a_cell_that_begins_where_another_header_does_has_the_style_of_its_own_column() -> None:
    # The newline ends the line, so that "1B" stands at the beginning of the next.
    table = Table(("FILE", "SIZE"), [("/a\nb", "1B")], {"FILE": "cyan", "SIZE": "red"})
    assert styled(table) == [("/a", "cyan"), ("b", "cyan"), ("1B", "red")]


def test_pieces_join_to_the_text() -> None:
    table = Table(("A", "B"), [("x", ""), ("", "0"), ("y\tz\n", "\x1b")], {"A": "red"})
    assert "".join(words for words, _ in render_pieces(table)) == render_text(table)


def test_a_pipe_gets_the_text_of_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written))
    table = Table(("FILE", "SIZE"), [("/a   b", "0B")], {"FILE": "red"})
    terminal.put_table(table)
    assert written.getvalue().decode() == render_text(table)
