"""What if the index, or the origin of a copy, says something else than the layers?"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from overlayfs_demo.errors import MountError
from tests import builders
from tests.builders import hardlink
from tests.contract.conftest import Mount
from tests.contract.marks import differs, only
from tests.contract.subjects import Subject
from tests.places import run

OURS = ["engine", "kernel-front", "fusepy-front"]
ORIGIN, NLINK = "trusted.overlay.origin", "trusted.overlay.nlink"
# Two pairs of names: a is one file with b, c with d.
PAIRS = {"a": "old", "b": hardlink("a"), "c": "old", "d": hardlink("c")}


@pytest.fixture
def indexed(mounted: Mount) -> Subject:
    """Both pairs were changed by one of their names; then the view was unmounted."""
    view: Subject = mounted(PAIRS)
    view.append("a", b"+a")
    view.append("c", b"+c")
    view.stop()
    return view


def in_upper(view: Subject, *names: str) -> str:
    """The one of these names that the upper has: FUSE asks about files, so it need not be the one that was used."""
    (name,) = [name for name in names if view.upper(name).exists()]
    return name


def entry(view: Subject, *names: str) -> Path:
    """The copy in the index that these names are one with; a and b, if not said otherwise."""
    assert view.layers.work
    return view.layers.work / "index" / os.getxattr(view.upper(in_upper(view, *names or "ab")), ORIGIN).hex()


def copies(view: Subject) -> list[str]:
    """What the index holds, without the whiteout that the kernel keeps there."""
    assert view.layers.work
    return [name for name in os.listdir(view.layers.work / "index") if not name.startswith("#")]


def are_refused(view: Subject) -> None:
    with pytest.raises((OSError, MountError)) as caught:
        view.start()
    error = caught.value
    assert isinstance(error, MountError) or (isinstance(error, OSError) and error.errno == errno.ESTALE)


# --- which upper, which lowers ------------------------------------------------------------------------


def test_index_is_refused_to_another_upper(indexed: Subject) -> None:
    upper, index = indexed.upper(), entry(indexed).parent
    shutil.rmtree(upper)
    builders.directories(upper.parent, upper.name)
    are_refused(indexed)
    shutil.rmtree(index)
    indexed.start()
    assert [indexed.read(name) for name in "abcd"] == [b"old"] * 4


def test_other_upper_is_shown_without_the_index(indexed: Subject) -> None:
    upper = indexed.upper()
    shutil.rmtree(upper)
    builders.directories(upper.parent, upper.name)
    indexed.layers = replace(indexed.layers, index=False)
    indexed.start()
    assert [indexed.read(name) for name in "abcd"] == [b"old"] * 4


def test_index_is_refused_over_another_topmost_lower(indexed: Subject) -> None:
    lowers = indexed.layers.lowers
    (other,) = builders.layers(lowers[0].parent / "other", {})
    indexed.layers = replace(indexed.layers, lowers=[*lowers, other])
    are_refused(indexed)
    indexed.layers = replace(indexed.layers, lowers=lowers)
    indexed.start()
    assert (indexed.read("a"), indexed.read("b")) == (b"old+a", b"old+a")


@differs("kernel", "refuses an empty index, too")
def test_empty_index_goes_with_any_upper(mounted: Mount) -> None:
    view = mounted(PAIRS)
    view.append("a", b"+")
    index = entry(view).parent
    view.stop()
    shutil.rmtree(view.upper())
    builders.directories(view.upper().parent, view.upper().name)
    for one in index.iterdir():
        one.unlink()
    if view.differs:
        are_refused(view)
        index.rmdir()
    view.start()
    assert view.read("a") == b"old"
    view.append("b", b"+")
    view.remount()
    assert view.read("a") == b"old+"


# --- entries that are broken ----------------------------------------------------------------------------


def make_whiteout(path: Path) -> None:
    os.mknod(path, stat.S_IFCHR, 0)


BREAK: dict[str, Callable[[Path], None]] = {"whiteout": make_whiteout, "directory": Path.mkdir}


@pytest.mark.parametrize("kind_of_entry", BREAK)
def test_entry_of_another_kind_fails_under_its_names_alone(indexed: Subject, kind_of_entry: str) -> None:
    broken = entry(indexed)
    broken.unlink()
    BREAK[kind_of_entry](broken)
    check_that_pair_fails(indexed)


@only(OURS, "the kernel refuses the mount, or removes the entry")
@pytest.mark.parametrize("fault", ["fifo", "no origin", "another's origin", "garbage"])
def test_entry_that_is_not_the_files_copy_fails_under_its_names_alone(indexed: Subject, fault: str) -> None:
    broken = entry(indexed)
    if fault == "fifo":
        origin = os.getxattr(broken, ORIGIN)
        broken.unlink()
        os.mkfifo(broken)
        os.setxattr(broken, ORIGIN, origin)
    elif fault == "no origin":
        os.removexattr(broken, ORIGIN)
    else:
        os.setxattr(broken, ORIGIN, b"garbage" if fault == "garbage" else os.getxattr(entry(indexed, "c", "d"), ORIGIN))
    check_that_pair_fails(indexed)


def check_that_pair_fails(view: Subject) -> None:
    """Of a and b the one that only the lower has fails, for it led to the copy, and perhaps the other, too."""
    fails = ({"a", "b"} - {in_upper(view, "a", "b")}).pop()
    view.start()
    assert {fails.encode(), b"c", b"d"} <= set(view.names())
    with pytest.raises(OSError) as caught:
        view.read(fails)
    assert caught.value.errno == errno.EIO
    assert (view.read("c"), view.read("d")) == (b"old+c", b"old+c")
    view.append("d", b"+")
    assert view.read("c") == b"old+c+"


@only(OURS, "the kernel refuses the mount")
def test_other_names_in_the_index_do_not_matter(indexed: Subject) -> None:
    index = entry(indexed).parent
    (index / "foreign").write_text("x")
    (index / ("00fb" * 20)).mkdir()
    indexed.start()
    assert [indexed.read(name) for name in "abcd"] == [b"old+a", b"old+a", b"old+c", b"old+c"]
    assert (index / "foreign").exists()


@pytest.mark.parametrize("value", [b"", b"x", b"U", b"U-99999", b"L-99999", b"L+99999", b"U+99999999999", b"U+1\0\0x"])
def test_bad_count_of_names_loses_no_name(indexed: Subject, value: bytes) -> None:
    os.setxattr(entry(indexed), NLINK, value)
    indexed.start()
    for _ in range(2):
        assert [indexed.read(name) for name in "abcd"] == [b"old+a", b"old+a", b"old+c", b"old+c"]
        assert indexed.stat("a").nlink > 0
        indexed.remount()
    indexed.unlink("b")
    indexed.remount()
    assert indexed.read("a") == b"old+a"


# --- what is cleaned up at mount ------------------------------------------------------------------------


def test_entry_whose_lower_file_is_gone_is_removed(mounted: Mount) -> None:
    view = mounted(PAIRS)
    view.unlink("a")
    view.unlink("c")
    view.stop()
    assert len(copies(view)) == 2
    for name in "ab":
        (view.layers.lowers[0] / name).unlink()
    view.start()
    assert len(copies(view)) == 1
    assert (view.names(), view.read("d"), view.stat("d").nlink) == ([b"d"], b"old", 1)


def test_leftover_of_an_entry_is_removed(indexed: Subject) -> None:
    index = entry(indexed).parent
    (index / "#1f").write_text("x")
    indexed.start()
    assert not (index / "#1f").exists()
    assert [indexed.read(name) for name in "ab"] == [b"old+a"] * 2


def test_count_may_be_relative_to_the_lower_file(indexed: Subject) -> None:
    """As it is while a name comes up."""
    indexed.start()
    indexed.rename("b", "e")
    indexed.stop()
    os.setxattr(entry(indexed, "e"), NLINK, b"L+0")
    indexed.start()
    assert {indexed.stat(name).nlink for name in "ae"} == {2}
    indexed.unlink("a")
    assert indexed.stat("e").nlink == 1
    indexed.remount()
    assert indexed.stat("e").nlink == 1


# --- origins --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["empty", "garbage", "cut", "long", "longest", "magic", "inode", "directory"])
def test_bad_origin_is_none(mounted: Mount, fault: str) -> None:
    view = mounted({"f": "old", "d/": None, "e": "e"})
    view.write("f", b"new")
    view.chmod("d", 0o700)
    view.stop()
    origin = os.getxattr(view.upper("f"), ORIGIN)
    tail = bytes([0xFF]) * 8
    os.setxattr(
        view.upper("f"),
        ORIGIN,
        {
            "empty": b"",
            "garbage": b"nonsense",
            "cut": origin[:-1],
            "long": origin + tail,
            # Its length says so as well: more than any handle has, and as much as fits in the byte that tells it.
            "longest": origin[:2] + b"\xff" + origin[3:] + bytes(0xFF - len(origin)),
            "magic": b"\0\0" + origin[2:],
            "inode": origin[:-8] + tail,
            "directory": os.getxattr(view.upper("d"), ORIGIN),
        }[fault],
    )
    view.start()
    assert view.names() == [b"d", b"e", b"f"]
    assert view.read("f") == b"new"
    inos = [view.stat(name).ino for name in ("f", "d", "e")]
    assert len(set(inos)) == 3
    assert dict(view.listing())[b"f"] == inos[0]


def test_copy_without_index_is_not_one_with_the_links_its_lower_file_got(mounted: Mount) -> None:
    view = mounted({"f": "old"}, index=False)
    view.write("f", b"new")
    view.stop()
    lower = view.layers.lowers[0]
    for name in ("g", "h"):
        (lower / name).hardlink_to(lower / "f")
    for index in (True, False):
        view.layers = replace(view.layers, index=index)
        view.start()
        assert view.stat("f").ino != view.stat("g").ino == view.stat("h").ino
        assert dict(view.listing())[b"f"] == view.stat("f").ino
        assert (view.read("f"), view.read("g")) == (b"new", b"old")
        view.stop()
    view.layers = replace(view.layers, index=True)
    view.start()
    view.append("g", b"+")
    assert (view.read("f"), view.read("h")) == (b"new", b"old+")
    assert view.stat("f").ino != view.stat("g").ino == view.stat("h").ino


@differs("kernel", "shows the first that it meets, and fails for the other with ESTALE")
def test_copies_of_a_copy_made_in_the_upper_have_numbers_of_their_own(mounted: Mount) -> None:
    view = mounted({"f": "old", "d/x": "1"})
    view.write("f", b"new")
    view.rename("d", "e")
    view.stop()
    for name, copy in (("f", "f2"), ("e", "e2")):
        assert run("cp", "-a", view.upper(name), view.upper(copy)).returncode == 0
    view.upper("f2").write_text("copy")
    view.start()
    if view.differs:
        assert (view.exists("f"), view.exists("e")) == (True, True)
        with pytest.raises(OSError):
            view.stat("f2")
        return
    inos = {name: view.stat(name).ino for name in ("f", "f2", "e", "e2")}
    assert len(set(inos.values())) == 4
    assert {name.decode(): ino for name, ino in view.listing()} == inos
    assert (view.read("f"), view.read("f2"), view.names("e2")) == (b"new", b"copy", [b"x"])


def test_copied_up_file_keeps_its_number_from_a_copy_of_it(mounted: Mount) -> None:
    view = mounted({"f": "old", "d/": None})
    view.write("f", b"new")
    ino = view.stat("f").ino
    assert run("cp", "-a", view.upper("f"), view.upper("f2")).returncode == 0
    try:
        assert view.stat("f2").ino != ino
    except OSError as error:
        assert view.kind == "kernel" and error.errno == errno.ESTALE
    assert view.stat("f").ino == ino
