"""Numbers as people read them, and text cut to a width."""

from __future__ import annotations

import pytest

from overlayfs_demo.ui.text import cut_end, cut_middle, filled


@pytest.mark.parametrize(
    ("text", "shortened"),
    [
        ("", ""),
        ("x" * 5, "xxxxx"),
        ("x" * 6, "xxxx…"),
        ("é" * 5, "ééééé"),
        ("é" * 6, "éééé…"),
        ("宽宽", "宽宽"),
        ("宽宽宽", "宽宽…"),
        ("a宽宽宽", "a宽…"),
    ],
)
def test_long_text_ends_in_an_ellipsis_within_the_width(text: str, shortened: str) -> None:
    assert cut_end(text, 5) == shortened


@pytest.mark.parametrize(("path", "shortened"), [("", ""), ("/a/b/cd", "/a/b/cd"), ("/a/b/c/d/e", "/a…/d/e")])
def test_long_path_loses_its_middle(path: str, shortened: str) -> None:
    assert cut_middle(path, 7) == shortened


@pytest.mark.parametrize(
    ("line", "width", "lines"),
    [
        ("a line of words", 80, ["a line of words"]),
        ("a line of words", 7, ["a line", "  of", "  words"]),
        ("long-option --and/a/path", 5, ["long-option", "  --and/a/path"]),
        ("  kept", 80, ["  kept"]),
        ("", 5, [""]),
        ("宽宽 宽宽 a", 5, ["宽宽", "  宽宽", "  a"]),
    ],
)
def test_prose_breaks_at_blanks_and_counts_columns(line: str, width: int, lines: list[str]) -> None:
    assert filled(line, width, "  ").split("\n") == lines
