"""What does a reader of a directory see while its names come and go, and when it goes back?"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.builders import IMAGE_WHITEOUT, WHITEOUT, XATTR_WHITEOUT
from tests.contract.conftest import Mount
from tests.contract.marks import differs, kernel_since, only
from tests.contract.raw import Entry, all_entries, getdents, meanwhile
from tests.contract.subjects import Fronted, Subject

mounts = only(["kernel-front", "fusepy-front", "kernel"], "the engine lists a directory at once, as a whole")

DT_CHR = 2


@contextmanager
def reading(view: Subject, path: str) -> Iterator[int]:
    """The descriptor of an open directory."""
    fd = os.open(os.path.join(os.fsencode(view.layers.mountpoint), os.fsencode(path)), os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


def names_of(entries: list[Entry]) -> list[bytes]:
    return sorted(entry.name for entry in entries)


# --- under change -------------------------------------------------------------------------------------


def merged(mounted: Mount, stable: list[str], passing: list[str]) -> Subject:
    """A directory merged from two lowers and an upper, each with some of the names."""
    parts: list[dict[str, str]] = [dict.fromkeys(stable[part::3] + passing[part::3], "") for part in range(3)]
    view: Subject = mounted({"d": parts[0]}, {"d": parts[1]}, upper={"d": parts[2]})
    return view


def check(names: list[bytes], stable: list[str]) -> None:
    """Is each name there at most once, and those of `stable` exactly once?"""
    assert len(names) == len(set(names))
    assert sorted(name for name in names if name.startswith(b"stable")) == [os.fsencode(name) for name in stable]


@pytest.mark.parametrize("where", ["merged", "lower", "new"])
def test_names_that_stay_are_listed_once_while_others_come_and_go(mounted: Mount, where: str) -> None:
    stable, passing = [f"stable{number:03}" for number in range(300)], [f"passing{number:03}" for number in range(100)]
    if where == "merged":
        view = merged(mounted, stable, passing)
    elif where == "lower":
        view = mounted({"d": dict.fromkeys(stable + passing, "")})
    else:
        view = mounted({})
        view.mkdir("d")
        for name in stable + passing:
            view.write(f"d/{name}", b"")

    def change(number: int) -> None:
        name = passing[number % len(passing)]
        if number % 3 == 0:
            view.rename(f"d/{name}", f"d/moved{number}")
            view.unlink(f"d/moved{number}")
        else:
            view.unlink(f"d/{name}")
        view.write(f"d/new{number}", b"")
        view.unlink(f"d/new{number}")
        view.write(f"d/{name}", b"")

    with meanwhile(view, change):
        for _ in range(6):
            check([name for name, _ in view.listing("d")], stable)
            if view.kind != "engine":
                # In small portions, so that much happens in between.
                with reading(view, "d") as fd:
                    check([entry.name for entry in all_entries(fd)], stable)


@mounts
def test_two_readers_do_not_disturb_each_other(mounted: Mount) -> None:
    stable = [f"stable{number:03}" for number in range(200)]
    view = mounted({"d": dict.fromkeys(stable, "")})
    with reading(view, "d") as first, reading(view, "d") as second:
        seen = getdents(first)
        view.write("d/new", b"")
        check([entry.name for entry in all_entries(second)], stable)
        view.unlink("d/new")
        os.lseek(second, 0, os.SEEK_SET)
        check([entry.name for entry in all_entries(second)], stable)
        check([entry.name for entry in seen + all_entries(first)], stable)


@mounts
def test_names_are_removed_portion_by_portion(mounted: Mount) -> None:
    names = [f"{number:03}" for number in range(500)]
    view = mounted({"d": dict.fromkeys(names[::2], "")}, upper={"d": dict.fromkeys(names[1::2], "")})
    with reading(view, "d") as fd:
        while portion := getdents(fd):
            for entry in portion:
                if entry.name not in (b".", b".."):
                    os.unlink(entry.name, dir_fd=fd)
    assert view.names("d") == []
    view.rmdir("d")


# --- going back ---------------------------------------------------------------------------------------


def test_reader_that_begins_anew_sees_the_changes(mounted: Mount) -> None:
    view = mounted({"d": {"a": "", "b": ""}}, {"d": {"c": ""}})
    held = view.hold("d")
    assert held.names() == [b"a", b"b", b"c"]
    view.unlink("d/a")
    view.write("d/x", b"")
    assert held.names() == [b"b", b"c", b"x"]
    view.rename("d/b", "d/y")
    view.mkdir("d/a")
    assert held.names() == [b"a", b"c", b"x", b"y"]
    view.rename("d", "e")
    view.unlink("e/c")
    assert held.names() == [b"a", b"x", b"y"]
    held.close()


@mounts
@pytest.mark.parametrize("where", ["lower", "merged", "new"])
def test_reader_returns_to_where_it_was(mounted: Mount, where: str) -> None:
    names = [f"{number:03}" for number in range(100)]
    lower, upper = {"lower": (names, []), "merged": (names[::2], names[1::2]), "new": ([], names)}[where]
    view = mounted({"d": dict.fromkeys(lower, "")} if lower else {}, upper={"d": dict.fromkeys(upper, "")})
    with reading(view, "d") as fd:
        entries = []
        while portion := getdents(fd):
            entries += portion
        for index in (97, 3, 50, 0):
            os.lseek(fd, entries[index].offset, os.SEEK_SET)
            following = []
            while portion := getdents(fd):
                following += portion
            assert [entry.name for entry in following] == [entry.name for entry in entries[index + 1 :]]


@mounts
def test_place_stays_good_while_names_go(mounted: Mount) -> None:
    names = [f"{number:03}" for number in range(100)]
    view = mounted({"d": dict.fromkeys(names[::2], "")}, upper={"d": dict.fromkeys(names[1::2], "")})
    with reading(view, "d") as fd:
        entries = [entry for entry in all_entries(fd, size=1 << 16) if entry.name not in (b".", b"..")]
        place = entries[49]
        # Some before and some after the place, and the one that it is named by.
        gone = {entry.name for entry in (*entries[40:60:3], place)}
        for name in gone:
            os.unlink(name, dir_fd=fd)
        with reading(view, "d") as other:
            assert names_of(all_entries(other)) == sorted({os.fsencode(name) for name in names} - gone)
        os.lseek(fd, place.offset, os.SEEK_SET)
        following = [entry.name for entry in all_entries(fd)]
        expected = [entry.name for entry in entries[50:]]
        assert len(following) == len(set(following))
        assert [name for name in following if name not in gone] == [name for name in expected if name not in gone]


@only(["kernel-front", "fusepy-front"], "the kernel's overlayfs says that layers must not be edited while mounted")
@pytest.mark.parametrize("where", ["lower", "upper"])
def test_edited_layers_show_at_once_without_a_timeout(mounted: Mount, where: str) -> None:
    view = mounted({"d": {"a": "old", "b": ""}}, upper={"d": {"c": "old"}})
    view.stop()
    assert isinstance(view, Fronted)
    view.timeout = 0.0
    view.start()
    layer = view.layers.lowers[0] if where == "lower" else view.upper()
    name = "a" if where == "lower" else "c"
    assert (view.names("d"), view.read(f"d/{name}")) == ([b"a", b"b", b"c"], b"old")
    (layer / "d/x").write_text("")
    # As long as before, so that the size does not betray it.
    (layer / "d" / name).write_text("new")
    assert (view.names("d"), view.read(f"d/{name}")) == ([b"a", b"b", b"c", b"x"], b"new")
    (layer / "d/x").unlink()
    assert view.names("d") == [b"a", b"b", b"c"]


# --- whiteouts ----------------------------------------------------------------------------------------


@mounts
@differs("kernel", "image whiteouts are ordinary files to it")
@kernel_since(6, 7, "xattr whiteouts")
def test_no_whiteout_is_ever_listed(mounted: Mount) -> None:
    every = {"kernel": WHITEOUT, "xattr": XATTR_WHITEOUT}
    view = mounted({"d": dict.fromkeys([*every, "image", "a", "b", "c"], "")}, {"d": every | {"image": IMAGE_WHITEOUT}})
    hidden = [b".wh.image", b"image"] if view.differs else []
    with reading(view, "d") as fd:
        assert names_of(all_entries(fd)) == sorted([b"a", b"b", b"c", *hidden])
        view.unlink("d/a")
        view.rename("d/b", "d/moved")
        os.lseek(fd, 0, os.SEEK_SET)
        entries = all_entries(fd)
    assert names_of(entries) == sorted([b"c", b"moved", *hidden])
    assert DT_CHR not in {entry.kind for entry in entries}
    for name in (b"c", b"moved", *hidden):
        view.unlink(b"d/" + name)
    assert view.names("d") == []
    view.remount()
    assert view.names("d") == []


# --- size ---------------------------------------------------------------------------------------------

MANY = 100_000


@only(["kernel-front"], "making the names is slow enough once; smaller directories are listed on all subjects")
def test_large_directory_is_listed_whole(mounted: Mount) -> None:
    view = mounted({"d": {"first": ""}})
    lower = view.layers.lowers[0] / "d"
    view.stop()
    with many_names(lower):
        view.start()
        began = time.monotonic()
        with reading(view, "d") as fd:
            names = {entry.name for entry in all_entries(fd, size=1 << 16)}
            assert len(names) == MANY + 1
            view.unlink("d/0")
            view.write("d/new", b"")
            os.lseek(fd, 0, os.SEEK_SET)
            again = all_entries(fd, size=1 << 16)
        assert len(again) == MANY + 1
        assert {entry.name for entry in again} == names - {b"0"} | {b"new"}
        assert time.monotonic() - began < 120


@contextmanager
def many_names(where: Path) -> Iterator[None]:
    """`MANY` files in a directory meanwhile; pytest would keep them for three runs."""
    fd = os.open(where, os.O_RDONLY)
    try:
        for number in range(MANY):
            os.mknod(b"%d" % number, 0o100644, dir_fd=fd)
        yield
    finally:
        for number in range(MANY):
            os.unlink(b"%d" % number, dir_fd=fd)
        os.close(fd)
