"""The names in a directory get the same statements whether each is asked about alone or all in turn."""

from __future__ import annotations

import pytest

from tests.builders import OPAQUE, WHITEOUT
from tests.overlay.conftest import Make

BOTTOM = {"dir/a": "1", "dir/b": "1", "dir/sub/x": "1", "gone/a": "1", "file/a": "1", "veiled/a": "1"}
MIDDLE = {"dir/b": "22", "dir/c": "2", "gone": WHITEOUT, "file": "a file", "veiled": OPAQUE({"b": "2"})}
TOP = {"dir/a": WHITEOUT, "dir/d": "3", "gone/b": "3", "veiled/c": "3"}
NAMES = (b"a", b"b", b"c", b"d", b"sub", b"missing")


@pytest.mark.parametrize("directory", [b"/", b"/dir", b"/dir/sub", b"/gone", b"/file", b"/veiled", b"/missing/below"])
def test_names_of_a_directory_have_the_statements_of_their_paths(overlaid: Make, directory: bytes) -> None:
    overlay = overlaid(BOTTOM, MIDDLE, TOP, upper={"dir/d": WHITEOUT, "dir/sub": OPAQUE({"y": "4"})}).overlay
    inside = overlay.which_inside(directory)
    for name in (*NAMES, *reversed(NAMES)):
        assert inside(name) == overlay.which(directory.rstrip(b"/") + b"/" + name)


def test_what_one_name_hides_is_not_hidden_for_the_next(overlaid: Make) -> None:
    inside = overlaid(BOTTOM, MIDDLE, TOP).overlay.which_inside(b"/dir")
    assert inside(b"a").hidden
    assert inside(b"sub").hidden == []
    assert inside(b"sub").seen_from != []
