"""Does `.layers` show each layer, the stack up to it and what it hides, and does it stay out of the way?"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.places import Place, fails, run


@pytest.fixture
def view(front: str, place: Place) -> Path:
    """Three lowers: 1 (bottom) is a small tree, 2 (middle) hides some of it, 3 (top) some more."""
    fill(place, "bottom", {"gone": "bottom", "same": "bottom", "opaque/b": "b", "e/deep/x": "x", "swap/inner": "1"})
    fill(place, "middle", {"same": "middle", "opaque/m": "m", "e/deep/y": "y", "swap": "a file"})
    os.mknod(place / "middle/gone", stat.S_IFCHR, 0)
    os.setxattr(place / "middle/opaque", "trusted.overlay.opaque", b"y")
    fill(place, "top", {"e/top": "t", "e/deep/z": "z"})
    os.mknod(place / "top/e/deep/x", stat.S_IFCHR, 0)
    done = mount(place, "--front", front)
    assert (done.returncode, done.stderr) == (0, "")
    return place.view


def fill(place: Place, layer: str, files: dict[str, str]) -> None:
    for name, text in files.items():
        (place / layer / name).parent.mkdir(parents=True, exist_ok=True)
        (place / layer / name).write_text(text)


def mount(place: Place, *words: str, lowers: str = "top:middle:bottom") -> subprocess.CompletedProcess[str]:
    (place / "middle").mkdir(exist_ok=True)
    lowerdir = ":".join(str(place / name) for name in lowers.split(":"))
    upper = f"upperdir={place / 'upper'},workdir={place / 'work'}"
    return place.mount(*words, options=f"lowerdir={lowerdir},{upper},timemachine")


def tree(directory: Path) -> dict[str, str]:
    """Every file below, with what is in it (a device: its number)."""
    found = {}
    for path in sorted(directory.rglob("*")):
        status = path.lstat()
        if stat.S_ISREG(status.st_mode):
            found[str(path.relative_to(directory))] = path.read_text()
        elif not stat.S_ISDIR(status.st_mode):
            found[str(path.relative_to(directory))] = str(status.st_rdev)
    return found


# --- what it shows --------------------------------------------------------------------------------


def test_each_layer_has_a_directory_and_the_upper_too(view: Path) -> None:
    assert sorted(os.listdir(view / ".layers")) == ["1", "2", "3", "upper"]
    assert sorted(os.listdir(view / ".layers/2")) == ["hidden", "only", "upto"]
    assert sorted(os.listdir(view / ".layers/1")) == ["only", "upto"], "below the bottom there is nothing to hide"
    assert sorted(os.listdir(view / ".layers/upper")) == ["hidden", "only"]


def test_only_is_the_layer_as_it_is_on_disk(view: Path, place: Place) -> None:
    for number, name in (("1", "bottom"), ("2", "middle"), ("3", "top")):
        assert tree(view / ".layers" / number / "only") == tree(place / name)
    assert os.getxattr(view / ".layers/2/only/opaque", "trusted.overlay.opaque") == b"y"


def test_upto_is_the_stack_without_what_lies_above(view: Path) -> None:
    assert tree(view / ".layers/1/upto")["gone"] == "bottom"
    second = tree(view / ".layers/2/upto")
    assert "gone" not in second and second["e/deep/x"] == "x" and second["same"] == "middle"
    assert tree(view / ".layers/3/upto") == tree(view)


def test_hidden_is_what_was_deleted_or_overwritten_as_it_was(view: Path) -> None:
    assert tree(view / ".layers/2/hidden") == {"gone": "bottom", "same": "bottom", "opaque/b": "b", "swap/inner": "1"}
    assert tree(view / ".layers/3/hidden") == {"e/deep/x": "x", "motd": "below\n"}


def test_a_directory_in_which_nothing_is_hidden_is_not_shown(view: Path) -> None:
    assert "e" not in os.listdir(view / ".layers/2/hidden")
    assert not (view / ".layers/2/hidden/e").exists()


def test_the_upper_is_followed_as_it_changes(view: Path) -> None:
    only, hidden = view / ".layers/upper/only", view / ".layers/upper/hidden"
    assert (tree(only), tree(hidden)) == ({}, {})
    assert not (only / "motd").exists()
    (view / "motd").unlink()
    assert tree(only) == {"motd": "0"}
    assert tree(hidden) == {"motd": "hello\n"}
    (view / "motd").write_text("new")
    assert (only / "motd").read_text() == "new"
    with (view / "motd").open("a") as file:
        file.write("er")
    assert (only / "motd").read_text() == "newer"
    shutil.rmtree(view / "e")
    assert tree(hidden) == {"motd": "hello\n", "e/top": "t", "e/deep/y": "y", "e/deep/z": "z"}


def test_what_is_hidden_in_part_and_then_as_a_whole_is_shown_as_a_whole(view: Path) -> None:
    hidden = view / ".layers/upper/hidden"
    (view / "e/deep/y").unlink()
    assert tree(hidden) == {"e/deep/y": "y"}
    shutil.rmtree(view / "e")
    (view / "e/deep").mkdir(parents=True)
    assert tree(hidden) == {"e/deep/y": "y", "e/deep/z": "z", "e/top": "t"}


def test_a_renamed_directory_hides_what_had_its_new_name(view: Path) -> None:
    (view / "swap").unlink()
    (view / "e").rename(view / "swap")
    assert (view / ".layers/upper/hidden/swap").read_text() == "a file"


def test_a_directory_renamed_in_the_upper_hides_the_old_name(view: Path) -> None:
    (view / "e").rename(view / "f")
    assert os.listdir(view / ".layers/upper/hidden") == ["e"]
    assert "e/top" in tree(view / ".layers/upper/hidden")


def test_diff_answers_what_a_layer_changed(view: Path) -> None:
    done = run("diff", "-r", view / ".layers/1/upto", view / ".layers/2/upto")
    assert "Only in" in done.stdout and "gone" in done.stdout


def test_a_deleted_file_is_brought_back_by_cp(view: Path) -> None:
    (view / "motd").unlink()
    assert run("cp", "-a", view / ".layers/3/only/motd", view / "motd").returncode == 0
    assert (view / "motd").read_text() == "hello\n"
    with (view / "motd").open("a") as file:
        file.write("more")
    assert run("cp", "-a", view / ".layers/3/only/motd", view / "motd").returncode == 0, "not the same file"
    assert (view / "motd").read_text() == "hello\n"


def test_which_and_getfattr_speak_of_the_stack_up_to_there(view: Path) -> None:
    told = run("overlayfs-demo", "which", view / ".layers/1/upto/gone").stdout
    assert "Comes from layer 1 (bottom)" in told and "middle" not in told
    assert os.getxattr(view / ".layers/1/upto/gone", "user.overlayfs_demo.layer") == b"layer 1 (bottom)"


# --- and that it is in nobody's way ---------------------------------------------------------------


def test_nobody_lists_it(view: Path) -> None:
    assert ".layers" not in os.listdir(view)
    assert "layers" not in run("find", view).stdout
    assert "layers" not in run("ls", "-A", view).stdout
    assert "layers" not in run("du", "-a", view).stdout


def test_find_walks_it_without_a_loop(view: Path) -> None:
    done = run("find", view / ".layers", "-ls")
    assert (done.returncode, done.stderr) == (0, "")
    walked = [os.stat(path) for path, _, _ in os.walk(view / ".layers")]
    assert len({(one.st_dev, one.st_ino) for one in [*walked, os.stat(view)]}) == len(walked) + 1


ATTEMPTS: tuple[Callable[[Path], object], ...] = (
    lambda past: (past / "new").write_text("x"),
    lambda past: (past / "new").mkdir(),
    lambda past: (past / "new").symlink_to("x"),
    lambda past: os.mkfifo(past / "new"),
    lambda past: (past / "motd").write_text("x"),
    lambda past: (past / "motd").chmod(0o600),
    lambda past: os.utime(past / "motd"),
    lambda past: os.truncate(past / "motd", 0),
    lambda past: (past / "motd").unlink(),
    lambda past: (past / "d").rmdir(),
    lambda past: (past / "motd").rename(past / "other"),
    lambda past: (past / "motd").rename(past.parent.parent.parent / "other"),
    lambda past: (past.parent.parent.parent / "motd").rename(past / "other"),
    lambda past: os.link(past / "motd", past.parent.parent.parent / "other"),
    lambda past: os.link(past.parent.parent.parent / "motd", past / "other"),
    lambda past: os.setxattr(past / "motd", "user.x", b"x"),
    lambda past: os.rename(past.parent.parent.parent / "d", past.parent.parent),
    lambda past: os.rename(past.parent.parent, past.parent.parent.parent / "other"),
    lambda past: past.parent.parent.rmdir(),
    lambda past: past.parent.parent.chmod(0o700),
)


def test_it_is_read_only(view: Path, place: Place) -> None:
    """One mount serves all attempts, for none may change anything."""
    past = view / ".layers/3/upto"
    before = tree(past)
    for number, attempt in enumerate(ATTEMPTS):
        with pytest.raises(OSError) as caught:
            attempt(past)
        assert caught.value.errno in (errno.EROFS, errno.ENOTEMPTY, errno.EBUSY), (number, caught.value)
        assert tree(past) == before, number
        assert list((place / "upper").iterdir()) == [], number


def test_its_name_cannot_be_taken(view: Path) -> None:
    with pytest.raises(FileExistsError):
        (view / ".layers").mkdir()
    with pytest.raises(IsADirectoryError):
        (view / ".layers").write_text("x")
    (view / "new").mkdir()
    with pytest.raises(OSError, match="Read-only"):
        (view / "new").rename(view / ".layers")


def test_rm_rf_removes_all_but_that(view: Path) -> None:
    done = run("rm", "-rf", view / ".layers")
    assert done.returncode == 1 and "Read-only" in done.stderr
    subprocess.run("rm -rf *", shell=True, cwd=view, check=True)
    assert os.listdir(view) == []
    assert tree(view / ".layers/3/upto")["motd"] == "hello\n"


def test_without_the_option_there_is_none(place: Place) -> None:
    assert place.mount().returncode == 0
    assert not (place.view / ".layers").exists()
    (place.view / ".layers").mkdir()


def test_a_layer_that_has_the_name_is_refused(place: Place) -> None:
    (place / "top/.layers").touch()
    fails(mount(place), "top", ".layers", "without that option")


def test_without_an_upper_there_are_the_lowers(place: Place) -> None:
    done = place.mount(options=f"lowerdir={place / 'top'}:{place / 'bottom'},timemachine")
    assert done.returncode == 0
    assert sorted(os.listdir(place.view / ".layers")) == ["1", "2"]
    assert tree(place.view / ".layers/2/hidden") == {"motd": "below\n"}


def test_a_whole_stack_of_layers_is_served(place: Place) -> None:
    for number in range(60):
        fill(place, f"many/{number:02}", {"same": str(number), f"own{number}": ""})
    lowers = ":".join(str(place / f"many/{number:02}") for number in reversed(range(60)))
    assert place.mount(options=f"lowerdir={lowers},timemachine").returncode == 0
    for number in (2, 30, 60):
        slot = place.view / ".layers" / str(number)
        assert (slot / "only/same").read_text() == str(number - 1)
        assert (slot / "hidden/same").read_text() == str(number - 2)
        assert len(os.listdir(slot / "upto")) == number + 1
