"""May a name be anything that POSIX allows: any byte but `/` and NUL, up to 255 of them?"""

from __future__ import annotations

import errno
import os
import stat

import pytest

from tests.contract.conftest import Mount, why_unavailable
from tests.contract.marks import only
from tests.contract.subjects import Kernel

LONGEST = b"n" * 255
EVERY_BYTE = [bytes([n, n ^ 1]) for n in range(2, 256) if b"/" not in bytes([n, n ^ 1])]


@pytest.mark.parametrize("name", [LONGEST, b"\xff" * 255, "ü".encode() * 127], ids=["ascii", "bytes", "utf-8"])
def test_longest_names_are_made_changed_and_deleted(mounted: Mount, name: bytes) -> None:
    view = mounted({"d": {name: "low"}, name: "low"})
    view.append(name, b"+")
    assert view.read(name) == b"low+"
    view.unlink(name)
    assert (view.exists(name), view.is_whiteout(name), view.names()) == (False, True, [b"d"])
    view.write(name, b"new")
    assert view.read(name) == b"new"
    below = b"d/" + name
    view.rename(below, b"d/short")
    view.rename(b"d/short", b"d/" + name[:-1] + b"x")
    assert view.names("d") == [name[:-1] + b"x"]
    view.unlink(b"d/" + name[:-1] + b"x")
    assert view.names("d") == []
    view.remount()
    assert (view.names(), view.names("d"), view.is_whiteout(below)) == (sorted([b"d", name]), [], True)


@pytest.mark.parametrize("kind_of", ["file", "directory"])
def test_longest_directory_names_move(mounted: Mount, kind_of: str) -> None:
    view = mounted({LONGEST: {"inner": "1"}} if kind_of == "directory" else {LONGEST: "1"})
    other = b"m" * 255
    view.rename(LONGEST, other)
    view.remount()
    assert view.names() == [other]
    assert view.read(other + b"/inner" if kind_of == "directory" else other) == b"1"


def test_a_longer_name_is_refused(mounted: Mount) -> None:
    view = mounted({})
    for action in (view.mkdir, view.stat, view.unlink):
        with pytest.raises(OSError) as caught:
            action(b"n" * 256)
        assert caught.value.errno == errno.ENAMETOOLONG


def test_every_byte_is_part_of_a_name(mounted: Mount) -> None:
    view = mounted({name: "low" for name in EVERY_BYTE[::2]})
    for name in EVERY_BYTE[1::2]:
        view.write(name, name)
    assert view.names() == sorted(EVERY_BYTE)
    for name in EVERY_BYTE[1::2]:
        assert view.read(name) == name
    for name in EVERY_BYTE[::4]:
        view.unlink(name)
    for name in EVERY_BYTE[2::4]:
        view.rename(name, name + b"\n\t \\")
    left = sorted([*EVERY_BYTE[1::2], *(name + b"\n\t \\" for name in EVERY_BYTE[2::4])])
    assert view.names() == left
    view.remount()
    assert view.names() == left


WH_NAMES = [b".wh.", b".wh.file", b".wh..wh..opq", b".wh..wh..plnk", b".wh." + b"x" * 251]


@pytest.mark.parametrize("name", WH_NAMES)
def test_names_of_image_marks_are_ordinary_in_the_view(mounted: Mount, name: bytes) -> None:
    view = mounted({"file": "low", "d": {"file": "low"}})
    for path in (name, b"d/" + name):
        view.write(path, b"")
        assert view.stat(path).size == 0
    assert view.names() == sorted([b"d", b"file", name])
    assert view.names("d") == sorted([b"file", name])
    assert view.read("file") == view.read("d/file") == b"low"
    view.remount()
    assert view.names() == sorted([b"d", b"file", name])
    assert view.read("d/file") == b"low"
    view.rename(b"d/" + name, b"d/other")
    view.unlink(name)
    view.mkdir(name)
    assert (view.names(), view.names("d")) == (sorted([b"d", b"file", name]), [b"file", b"other"])
    view.rmdir(name)
    view.remount()
    assert (view.names(), view.names("d")) == ([b"d", b"file"], [b"file", b"other"])


@only(["kernel-front", "fusepy-front"], "what the kernel then mounts is our upper")
def test_the_kernel_shows_such_names_too(mounted: Mount) -> None:
    if problem := why_unavailable("kernel"):
        pytest.skip(problem)
    view = mounted({"file": "low", LONGEST: "low", "d": {"x": "1"}})
    for name in WH_NAMES:
        view.write(name, b"")
        view.write(b"d/" + name, b"data")
    view.unlink(LONGEST)
    shown = {path: view.names(path) for path in ("", "d")}
    view.stop()
    kernel = Kernel(view.layers)
    kernel.start()
    assert {path: kernel.names(path) for path in ("", "d")} == shown
    assert kernel.read("file") == b"low"
    kernel.stop()
    view.start()


def test_links_point_anywhere(mounted: Mount) -> None:
    view = mounted({})
    for number, target in enumerate([b"\xff\n /..", b"x" * 4095, b"/" * 300]):
        view.symlink(target, f"link{number}")
        assert view.readlink(f"link{number}") == target
        assert stat.S_ISLNK(view.stat(f"link{number}").mode)
    view.remount()
    assert view.readlink("link1") == b"x" * 4095
    assert os.lstat(view.upper("link1")).st_size == 4095
