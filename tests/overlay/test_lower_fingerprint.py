"""Is it noticed when an upper returns over other lowers?"""

from __future__ import annotations

import os
import subprocess

import pytest

from tests.contract.conftest import why_unavailable
from tests.mounts.test_many_layers import many
from tests.places import Place, run


@pytest.fixture
def place(place: Place) -> Place:
    """With one more directory to use as a layer."""
    (place / "other").mkdir()
    return place


def used(place: Place, *lowers: str) -> subprocess.CompletedProcess[str]:
    """Mount over these, change something, unmount: what the mount said."""
    stack = ":".join(str(place / name) for name in lowers)
    done = place.mount(options=f"lowerdir={stack},upperdir={place / 'upper'},workdir={place / 'work'}")
    assert done.returncode == 0
    (place.view / "changed").touch()
    assert place.umount().returncode == 0
    return done


def test_the_same_stack_is_no_news(place: Place) -> None:
    assert [used(place, "top", "bottom").stderr for _ in range(3)] == [""] * 3


@pytest.mark.parametrize("now", [("other", "bottom"), ("bottom", "top"), ("top",), ("top", "bottom", "other")])
def test_another_stack_is_warned_of_once_naming_both(place: Place, now: tuple[str, ...]) -> None:
    used(place, "top", "bottom")
    told = used(place, *now).stderr
    assert told.count("\n") == 1
    for words in (str(place / "upper"), f"{place / 'top'}:{place / 'bottom'}", ":".join(str(place / n) for n in now)):
        assert words in told
    assert used(place, *now).stderr == ""


def test_layers_that_were_moved_or_replaced_by_copies_are_the_same(place: Place) -> None:
    used(place, "top", "bottom")
    (place / "top").rename(place / "moved")
    assert used(place, "moved", "bottom").stderr == ""
    assert run("cp", "-a", place / "moved", place / "copy").returncode == 0
    (place / "moved").rename(place / "away")
    (place / "copy").rename(place / "moved")
    assert used(place, "moved", "bottom").stderr == ""


def test_an_empty_upper_goes_with_any_stack(place: Place) -> None:
    used(place, "top", "bottom")
    (place / "upper/changed").unlink()
    assert used(place, "other").stderr == ""


def test_very_many_layers_are_remembered_too(place: Place) -> None:
    many(place, 300, "a-rather-long-name-")
    stack = [f"a-rather-long-name-{number}" for number in range(300)]
    assert used(place, *stack).stderr == ""
    assert used(place, *stack).stderr == ""
    told = used(place, *stack[:-1]).stderr
    assert "(300 layers)" in told and "(299 layers)" in told


def test_the_kernel_neither_minds_nor_shows_the_note(place: Place) -> None:
    if problem := why_unavailable("kernel"):
        pytest.skip(problem)
    used(place, "top", "bottom")
    assert "trusted.overlay.demo-lowers" in os.listxattr(place / "upper")
    for option in ("", ",index=on"):
        assert run("mount", "-t", "overlay", "overlay", place.view, "-o", place.options + option).returncode == 0
        assert os.listxattr(place.view) == []
        assert run("umount", place.view).returncode == 0
    assert used(place, "top", "bottom").stderr == ""
    # As a lower, too.
    options = f"lowerdir={place / 'upper'}:{place / 'bottom'}"
    assert run("mount", "-t", "overlay", "overlay", place.view, "-o", options).returncode == 0
    assert os.listxattr(place.view) == []


def test_somebody_elses_note_is_no_error(place: Place) -> None:
    (place / "upper/x").touch()
    for value in (b"", b"nonsense", b"[]", b"{}"):
        os.setxattr(place / "upper", "trusted.overlay.demo-lowers", value)
        assert used(place, "top").stderr == ""
