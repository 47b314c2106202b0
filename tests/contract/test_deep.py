"""May directories be nested deeper than a path can name, and than Python's calls?"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.conftest import Mount
from tests.contract.marks import only
from tests.contract.subjects import Mounted, in_child

DEPTH = 1500
NAME = "directory"

mounts = only(["kernel-front", "kernel"], "libfuse 2 names files by paths; the engine is behind the kernel front")


@pytest.fixture(autouse=True)
def _removed(tmp_path: Path) -> Iterator[None]:
    """What pytest's own cleaning up would be too shallow for; after the view is unmounted."""
    yield
    subprocess.run(["rm", "-rf", "--one-file-system", *tmp_path.iterdir()], check=True)


def descend(start: Path | bytes, depth: int, *, make: bool) -> None:
    """Go down step by step, which is the only way that far."""
    os.chdir(start)
    for _ in range(depth):
        if make:
            os.mkdir(NAME)
        os.chdir(NAME)


def deep_lower(view: Mounted) -> None:
    def make() -> None:
        descend(view.layers.lowers[0], DEPTH, make=True)
        Path("file").write_text("low")

    in_child(make)


def inside(view: Mounted) -> bytes:
    """The view, from where relative paths count."""
    return os.path.abspath(view.prefix)


@mounts
def test_directories_are_made_and_removed_very_deep(mounted: Mount) -> None:
    view = mounted({})

    def session() -> None:
        descend(inside(view), DEPTH, make=True)
        Path("file").write_text("1")
        Path("file").rename("renamed")
        assert Path("renamed").read_text() == "1"
        assert os.listdir() == ["renamed"]
        Path("renamed").unlink()
        for _ in range(DEPTH):
            os.chdir("..")
            Path(NAME).rmdir()

    in_child(session)
    assert view.names() == []


@mounts
def test_a_very_deep_lower_file_is_copied_up(mounted: Mount) -> None:
    view = mounted({"x": "1"})
    deep_lower(view)
    view.remount()

    def write() -> None:
        descend(inside(view), DEPTH, make=False)
        with Path("file").open("a") as file:
            file.write(" and more")
        Path("../new").mkdir()
        assert sorted(os.listdir("..")) == [NAME, "new"]

    def read() -> None:
        descend(inside(view), DEPTH, make=False)
        assert Path("file").read_text() == "low and more"

    in_child(write)
    view.remount()
    in_child(read)


@mounts
def test_a_very_deep_directory_is_renamed(mounted: Mount) -> None:
    view = mounted({"x": "1"})
    deep_lower(view)
    view.remount()

    def rename() -> None:
        descend(inside(view), DEPTH - 1, make=False)
        Path(NAME).rename("moved")

    def look() -> None:
        descend(inside(view), DEPTH - 1, make=False)
        assert os.listdir() == ["moved"]
        assert Path("moved/file").read_text() == "low"

    in_child(rename)
    in_child(look)
