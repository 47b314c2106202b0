"""Do `diff` and `commit` tell the same of a container? What a layer ships is what `diff` calls changed.

`docker commit` decides (20.10, overlay2): it writes whatever the upper holds. `docker diff` there leaves out what has
the same mode, owner, size and time as before.
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from overlayfs_demo.images.upper_diff import Kind
from tests.conftest import unmount_all, why_no_mounts
from tests.images.builders import directory, docker_save, hard_link, layer, symlink
from tests.images.test_layer_tar_writer import Home

IMAGE = layer(
    {
        "d/": directory(),
        "d/a": "1",
        "d/sub/": directory(),
        "d/sub/b": "2",
        "e/": directory(),
        "e/c": "3",
        "f": "text",
        "link": symlink("f"),
        "one": "linked",
        "two": hard_link("one"),
    }
)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    if problem := why_no_mounts():
        pytest.skip(problem)
    yield Home(tmp_path, docker_save([IMAGE]))
    unmount_all(str(tmp_path))


def told_by_diff(home: Home) -> list[str]:
    return [f"{one.kind.value} {os.fsdecode(one.path)}" for one in home.containers.diff(home.container)]


def told_by_layer(home: Home) -> set[str]:
    """What the members of the layer say of the image below it, in the words of `diff`."""
    image = home.image.layers[0].directory
    names = home.names()
    told = set()
    for name in names:
        parent, last = os.path.split(name)
        if last == ".wh..wh..opq":
            gone = {f"{parent}/{one}" for one in os.listdir(image / parent)} - set(names)
            told |= {f"D /{one}" for one in gone}
        elif last.startswith(".wh."):
            told.add(f"D /{os.path.join(parent, last.removeprefix('.wh.'))}")
        else:
            kind = Kind.CHANGED if os.path.lexists(image / name) else Kind.ADDED
            told.add(f"{kind.value} {os.path.normpath(f'/{name}')}")
    return told


def twice(name: str, first: int, second: int) -> Callable[[Path], None]:
    def act(view: Path) -> None:
        (view / name).chmod(first)
        (view / name).chmod(second)

    return act


def owner_and_back(name: str) -> Callable[[Path], None]:
    def act(view: Path) -> None:
        for number in (1, 0):
            os.chown(view / name, number, number, follow_symlinks=False)

    return act


def attribute_and_back(view: Path) -> None:
    for name in ("f", "d"):
        os.setxattr(view / name, "user.note", b"x")
        os.removexattr(view / name, "user.note")


def time_and_back(view: Path) -> None:
    for name in ("f", "link", "d"):
        before = (view / name).lstat()
        os.utime(view / name, ns=(1, 1), follow_symlinks=False)
        os.utime(view / name, ns=(before.st_atime_ns, before.st_mtime_ns), follow_symlinks=False)


def same_bytes(view: Path) -> None:
    before = (view / "f").stat()
    (view / "f").write_text("text")
    os.utime(view / "f", ns=(before.st_atime_ns, before.st_mtime_ns))


def made_anew(view: Path) -> None:
    shutil.rmtree(view / "d")
    (view / "d/sub").mkdir(parents=True)
    (view / "d/sub/b").write_text("2")


def exchanged(view: Path) -> None:
    (view / "d").rename(view / "x")
    (view / "e").rename(view / "d")
    (view / "x").rename(view / "e")


def file_to_directory(view: Path) -> None:
    (view / "f").unlink()
    (view / "f/g").mkdir(parents=True)


def a_name_and_back(view: Path) -> None:
    (view / "f").rename(view / "g")
    (view / "g").rename(view / "f")


def new_socket(name: str) -> Callable[[Path], None]:
    def act(view: Path) -> None:
        (view / name).unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(f"/proc/self/fd/{(at := os.open(view, os.O_PATH))}/{name}")
            os.close(at)

    return act


CASES: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "nothing": (lambda view: None, []),
    "reading": (lambda view: (view / "f").read_bytes(), []),
    "mode of a file and back": (twice("f", 0o600, 0o644), ["C /f"]),
    "mode of a directory and back": (twice("d/sub", 0o700, 0o755), ["C /d", "C /d/sub"]),
    "mode of the root": (lambda view: view.chmod(0o711), ["C /"]),
    "mode of the root and back": (twice("", 0o711, 0o755), []),
    "owner of a file and back": (owner_and_back("f"), ["C /f"]),
    "owner of a symbolic link and back": (owner_and_back("link"), ["C /link"]),
    "attributes and back": (attribute_and_back, ["C /d", "C /f"]),
    "times and back": (time_and_back, ["C /d", "C /f", "C /link"]),
    "a time touched": (lambda view: (view / "f").touch(), ["C /f"]),
    "the same bytes": (same_bytes, ["C /f"]),
    "opened for writing": (lambda view: (view / "d/a").open("a").close(), ["C /d", "C /d/a"]),
    "one name of two": (twice("one", 0o600, 0o644), ["C /one", "C /two"]),
    "a name and back": (a_name_and_back, ["C /f"]),
    "deleted": (lambda view: (view / "d/a").unlink(), ["C /d", "D /d/a"]),
    "a directory deleted": (lambda view: shutil.rmtree(view / "d"), ["D /d"]),
    "a directory made anew": (made_anew, ["C /d", "C /d/sub", "C /d/sub/b", "D /d/a"]),
    "a directory renamed": (
        lambda view: (view / "d").rename(view / "n"),
        ["A /n", "A /n/a", "A /n/sub", "A /n/sub/b", "D /d"],
    ),
    "directories exchanged": (
        exchanged,
        ["C /d", "A /d/c", "D /d/a", "D /d/sub", "C /e", "A /e/a", "A /e/sub", "A /e/sub/b", "D /e/c"],
    ),
    "a file becomes a directory": (file_to_directory, ["C /f", "A /f/g"]),
    "a new socket": (new_socket("s"), []),
    "a file becomes a socket": (new_socket("f"), ["D /f"]),
}


@pytest.mark.parametrize("case", CASES)
def test_diff_and_the_layer_tell_the_same(home: Home, case: str) -> None:
    act, expected = CASES[case]
    act(home.view)
    assert told_by_diff(home) == expected
    assert told_by_layer(home) == set(expected)


def test_a_file_that_became_a_socket_is_not_in_the_new_image(home: Home) -> None:
    """The old one would be seen there otherwise, because no tar has the new one."""
    new_socket("f")(home.view)
    again = home.create("c2", home.commit())
    assert not os.path.lexists(again.mountpoint / "f")
