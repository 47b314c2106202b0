"""A table on a terminal: no line is longer than that, and the columns that matter are there."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence

import pytest

from overlayfs_demo.images.describe import Changes, HistoryRow, ImageRow, LayerNames
from overlayfs_demo.images.model import Digest
from overlayfs_demo.ui import docker_tables
from overlayfs_demo.ui.fitting import BY_TITLE, Fit, fitted_widths
from overlayfs_demo.ui.table import Table, render_pieces, render_text
from overlayfs_demo.ui.text import columns, cut_end, cut_middle

DIGEST = Digest.of(b"layer")
NOW = 1_700_000_000.0


def shown(table: Table, width: int) -> list[str]:
    """The lines of a table on a terminal of this width."""
    return "".join(text for text, _ in render_pieces(table, width)).splitlines()


def titles(lines: Sequence[str]) -> list[str]:
    return re.split(r"  +", lines[0].strip())


def step(command: str) -> HistoryRow:
    layer = LayerNames(DIGEST, DIGEST, Changes(1000, 20, 3, 4))
    return HistoryRow(str(DIGEST), int(NOW) - 3600, command, 123_456_789, "buildkit.dockerfile.v0", layer)


def extended() -> Table:
    return docker_tables.extended_history_table([step("/bin/sh -c " + "apt-get install " * 9)] * 3, NOW)


def names(length: int) -> Table:
    return Table(("FILE", "SIZE", "LAYER"), [("/" + "x" * length, "1kB", "layer 1 (RUN " + "y" * length + ")")] * 3)


WIDE = Table(("NAME", "LAYER"), [("宽" * 60, "层" * 50), ("a", "b")])
BROKEN = Table(("NAME", "SIZE", "COMMENT"), [("a\nb" * 40, "1B", "c\td"), ("\x1b[31m" * 30, "2B", "")])
UNKNOWN = Table(tuple("ABCDEFGH"), [tuple(letter * 30 for letter in "abcdefgh")] * 2)
EMPTY = Table(("REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"), [])


@pytest.mark.parametrize("width", range(40, 201))
@pytest.mark.parametrize("table", [extended(), names(300), WIDE, BROKEN, UNKNOWN, EMPTY], ids=repr)
def test_no_line_is_longer_than_the_terminal(table: Table, width: int) -> None:
    lines = shown(table, width)
    assert len(lines) == len(table.rows) + 1 or width >= max(map(columns, render_text(table).splitlines()))
    assert max(map(columns, lines)) <= width


def test_random_tables_fit_random_terminals_and_keep_their_first_column() -> None:
    chance = random.Random(4711)
    for _ in range(300):
        header = tuple(chance.sample(sorted(BY_TITLE), chance.randint(1, 10)))
        rows = [tuple(chance.choice("a宽 /é") * chance.randint(0, 90) for _ in header) for _ in range(3)]
        width = chance.randint(21, 200)
        lines = shown(Table(header, rows), width)
        assert max(map(columns, lines)) <= width
        # The most important of them, and of several the leftmost.
        assert max(header, key=lambda title: BY_TITLE[title].importance) in lines[0]


@pytest.mark.parametrize("width", range(80, 201))
def test_history_with_layers_always_says_what_each_step_made_and_changed(width: int) -> None:
    wanted = {"CREATED BY", "SIZE", "DIFF ID", "ADDED", "CHANGED", "DELETED", "WHITEOUTS"}
    assert wanted <= set(titles(shown(extended(), width)))


def test_history_with_layers_cuts_what_the_builder_wraps_around_a_step_first() -> None:
    assert shown(extended(), 80)[1].startswith("RUN apt-get")


@pytest.mark.parametrize("width", [44, 80, 120])
def test_images_keep_name_tag_and_id(width: int) -> None:
    row = ImageRow("registry.example.com/" + "team/" * 20 + "app", "1.0", str(DIGEST), int(NOW) - 60, 1)
    lines = shown(docker_tables.images_table([row], NOW), width)
    assert {"REPOSITORY", "TAG", "IMAGE ID", "SIZE"} <= set(titles(lines))
    assert re.match(r"regi\S*…\S*app +1\.0 ", lines[1])


def test_a_table_that_fits_is_dockers_to_the_byte() -> None:
    table = Table(("NAME", "SIZE"), [("a", "1B"), ("longer than ten", "2B")])
    widest = max(map(len, render_text(table).splitlines()))
    assert shown(table, widest) == render_text(table).splitlines()
    assert shown(table, widest - 1) != render_text(table).splitlines()


def test_a_pipe_gets_everything() -> None:
    assert "x" * 300 in render_text(names(300))


def test_who_asks_for_everything_gets_it_on_a_terminal_too() -> None:
    table = docker_tables.images_table([ImageRow("a" * 100, "1", str(DIGEST), 0, 1)], NOW, trunc=False)
    assert "".join(text for text, _ in render_pieces(table, 40)) == render_text(table)


def test_the_style_of_a_cut_cell_is_its_columns() -> None:
    table = Table(("WASTED", "FILE"), [("1kB", "/" + "x" * 99)], {"WASTED": "red", "FILE": "cyan"})
    assert [style for text, style in render_pieces(table, 40) if text.strip()] == ["bold", "red", "cyan"]


# --- the rule --------------------------------------------------------------------------------------


def test_the_least_important_column_goes_first() -> None:
    fits = [Fit(1), Fit(3), Fit(2)]
    assert fitted_widths("abc", [10, 10, 10], fits, 34) == {0: 10, 1: 10, 2: 10}
    assert fitted_widths("abc", [10, 10, 10], fits, 33) == {1: 10, 2: 10}
    assert fitted_widths("abc", [10, 10, 10], fits, 21) == {1: 10}


def test_cells_that_may_be_cut_share_the_room() -> None:
    fits = [Fit(1, cut_end, 5), Fit(1), Fit(1, cut_end, 5)]
    assert fitted_widths("abc", [50, 10, 20], fits, 54) == {0: 20, 1: 10, 2: 20}
    assert fitted_widths("abc", [50, 10, 8], fits, 54) == {0: 32, 1: 10, 2: 8}


@pytest.mark.parametrize("width", range(1, 12))
@pytest.mark.parametrize("cut", [cut_end, cut_middle])
def test_what_is_cut_has_at_most_so_many_columns_and_an_ellipsis(width: int, cut: Callable[[str, int], str]) -> None:
    for text in ("abcdefghijklmnop", "宽宽宽宽宽宽宽", "a宽b宽c宽d宽"):
        short = cut(text, width)
        assert columns(short) <= width and "…" in short


def history(command: str, comment: str = "") -> Table:
    rows = [HistoryRow(str(DIGEST), int(NOW) - 3600, command, 10, comment, None)] * 2
    return docker_tables.history_table(rows, NOW)


def test_a_step_is_cut_as_docker_does_in_a_pipe_and_to_the_width_of_a_terminal() -> None:
    table = history("RUN " + "x" * 100)
    assert "RUN " + "x" * 40 + "…" in render_text(table)
    assert "RUN " + "x" * 100 in shown(table, 200)[1]
    assert max(map(columns, shown(table, 80))) <= 80


def test_the_size_of_a_step_is_worth_more_than_the_image_s_id_and_an_empty_column() -> None:
    assert titles(shown(history("RUN " + "x" * 100), 39)) == ["CREATED BY", "SIZE"]


def test_a_narrow_list_of_containers_has_their_states() -> None:
    row = ("c" * 30, "an/image:1.0" * 3, "Up 13 seconds", "123", "0B", "/a/mount/point")
    table = Table(("NAME", "IMAGE", "STATUS", "PID", "UPPER", "MOUNTPOINT"), [row])
    assert titles(shown(table, 39)) == ["NAME", "IMAGE", "STATUS"]
