"""Do plain tools see where a file comes from, and does nobody copy that?"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.places import Place, run

PREFIX = "user.overlayfs_demo."
TOP, BOTTOM = "layer 2 (top)", "layer 1 (bottom)"


@pytest.fixture
def view(front: str, place: Place) -> Path:
    """A view, by each front: `motd` is in both lowers, `d/deep` in the lower one."""
    if shutil.which("getfattr") is None:
        pytest.skip("needs getfattr (package attr)")
    assert place.mount("--front", front).returncode == 0
    return place.view


def shown(path: Path, *options: str) -> dict[str, str]:
    """What getfattr dumps."""
    done = run("getfattr", "--absolute-names", "-d", *options, path)
    assert done.returncode == 0, done.stderr
    pairs = (line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    return {name.removeprefix(PREFIX): value.strip('"') for name, value in pairs}


def stored(directory: Path) -> set[str]:
    """The names of all attributes below a real directory."""
    return {name for path in [directory, *directory.rglob("*")] for name in os.listxattr(path, follow_symlinks=False)}


def test_getfattr_dumps_layer_why_and_what_is_shadowed(view: Path) -> None:
    assert shown(view / "motd", "-m", "user.overlayfs_demo") == {
        "layer": TOP,
        "shadowed": BOTTOM,
        "why": f"Comes from {TOP}, the topmost layer that has it; the one in {BOTTOM} is hidden.",
    }


def test_a_copy_in_the_upper_names_its_origin(view: Path, place: Place) -> None:
    with (view / "d/deep").open("a") as file:
        file.write("more")
    assert shown(view / "d/deep")["layer"] == "upper"
    assert shown(view / "d/deep")["origin"] == BOTTOM
    assert stored(place / "upper") & {PREFIX + "layer", PREFIX + "origin"} == set()


def test_a_renamed_copy_names_its_origin_with_the_name_it_had(view: Path) -> None:
    (view / "d/deep").rename(view / "moved")
    assert shown(view / "moved")["origin"] == f"{BOTTOM}: /d/deep"


def test_a_file_that_only_the_upper_ever_had_has_no_origin(view: Path) -> None:
    (view / "new").write_text("x")
    assert set(shown(view / "new")) == {"layer", "why"}
    with pytest.raises(OSError, match="No data"):
        os.getxattr(view / "new", PREFIX + "origin")


def test_a_merged_directory_names_all_its_layers(view: Path, place: Place) -> None:
    (view / "d/new").write_text("x")
    assert shown(view / "d")["layer"] == f"upper, {BOTTOM}"
    assert shown(view)["layer"] == f"upper, {TOP}, {BOTTOM}"


def test_any_program_may_ask_by_name_but_only_getfattr_is_told_the_names(view: Path) -> None:
    assert os.getxattr(view / "motd", PREFIX + "layer") == TOP.encode()
    assert os.listxattr(view / "motd") == []


def test_an_open_file_that_was_removed_has_none(view: Path) -> None:
    with (view / "motd").open() as file:
        (view / "motd").unlink()
        with pytest.raises(OSError, match="No data"):
            os.getxattr(file.fileno(), PREFIX + "layer")


@pytest.mark.parametrize("command", [["cp", "-a"], ["cp", "-r", "--preserve=all"], ["rsync", "-aX"], ["mv"]])
def test_copies_do_not_take_them_along(view: Path, place: Place, command: list[str]) -> None:
    if shutil.which(command[0]) is None:
        pytest.skip(f"needs {command[0]}")
    os.setxattr(view / "motd", "user.mine", b"1")
    (place / "copy").mkdir()
    done = run(*command, view / "motd", view / "d", place / "copy")
    assert (done.returncode, done.stderr) == (0, "")
    assert stored(place / "copy") == {"user.mine"}


def test_they_cannot_be_set_or_removed_and_nothing_is_copied_up_for_it(view: Path, place: Place) -> None:
    acts: tuple[Callable[[], None], ...] = (
        lambda: os.setxattr(view / "motd", PREFIX + "layer", b"mine"),
        lambda: os.setxattr(view / "motd", PREFIX + "new", b"mine"),
        lambda: os.removexattr(view / "motd", PREFIX + "layer"),
    )
    for act in acts:
        with pytest.raises(PermissionError):
            act()
    assert list((place / "upper").iterdir()) == []


def test_asking_copies_nothing_up(view: Path, place: Place) -> None:
    shown(view / "motd")
    shown(view / "d")
    assert list((place / "upper").iterdir()) == []


def test_an_attribute_of_such_a_name_in_a_layer_is_not_shown(view: Path, place: Place) -> None:
    os.setxattr(place / "bottom/d/deep", PREFIX + "layer", b"a lie")
    os.setxattr(place / "bottom/d/deep", PREFIX + "other", b"a lie")
    assert shown(view / "d/deep")["layer"] == BOTTOM
    assert "other" not in shown(view / "d/deep")
    with pytest.raises(OSError, match="No data"):
        os.getxattr(view / "d/deep", PREFIX + "other")


def test_odd_names_survive(view: Path, place: Place) -> None:
    name = os.fsencode(view) + b"/\xff\n"
    with open(name, "w"):  # noqa: PTH123 - no text
        pass
    os.rename(name, name + b"x")
    assert os.getxattr(name + b"x", PREFIX + "layer") == b"upper"
