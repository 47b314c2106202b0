"""Do the names of one file stay one file, also when it comes from a lower?"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable

import pytest

from overlayfs_demo.linux.syscalls import RENAME_EXCHANGE
from tests.builders import fifo, file, hardlink, symlink
from tests.contract.conftest import Mount
from tests.contract.marks import differs
from tests.contract.subjects import Subject

THREE = {"a": "1", "b": hardlink("a"), "d/": None, "c": hardlink("a")}


def are_one(view: Subject, data: bytes, *names: str, links: int | None = None) -> None:
    """These names are one file with this data and, if not said otherwise, no other name."""
    for name in names:
        assert view.read(name) == data, name
        assert view.stat(name).nlink == (len(names) if links is None else links), name
    assert len({view.stat(name).ino for name in names}) == 1


def settled(view: Subject, data: bytes, *names: str, links: int | None = None) -> None:
    """The same, now and after a remount."""
    are_one(view, data, *names, links=links)
    view.remount()
    are_one(view, data, *names, links=links)
    assert view.work_is_empty()


def index_names(view: Subject) -> list[str]:
    assert view.layers.work
    index = view.layers.work / "index"
    return os.listdir(index) if index.exists() else []


def test_lower_names_stay_one_file_after_a_write(mounted: Mount) -> None:
    view = mounted(THREE)
    ino = view.stat("a").ino
    view.append("a", b"2")
    settled(view, b"12", "a", "b", "c")
    view.append("c", b"3")
    settled(view, b"123", "a", "b", "c")
    assert view.stat("b").ino == ino


CHANGES: dict[str, Callable[[Subject], object]] = {
    "truncate": lambda view: view.truncate("a", 0),
    "chmod": lambda view: view.chmod("a", 0o600),
    "chown": lambda view: view.chown("a", 5, 6),
    "utime": lambda view: view.utime("a", 7, 8),
    "setxattr": lambda view: view.set_xattr("a", "user.k", b"v"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_name_shows_the_change(mounted: Mount, change: str) -> None:
    view = mounted(THREE)
    before = view.stat("b")
    CHANGES[change](view)
    for _ in range(2):
        assert view.stat("a") == view.stat("b") == view.stat("c")
        assert view.xattrs("b") == view.xattrs("a")
        assert view.stat("b").ino == before.ino
        view.remount()


def test_open_file_is_one_with_its_other_name(mounted: Mount) -> None:
    view = mounted(THREE)
    reader = view.open("b")
    assert reader.read() == b"1"
    view.append("a", b"2")
    assert reader.read() == b"12"
    assert reader.stat().nlink == 3
    reader.close()


@pytest.mark.parametrize("written", [False, True])
@pytest.mark.parametrize("gone", ["a", "b"])
def test_removed_name_is_counted(mounted: Mount, gone: str, written: bool) -> None:
    view = mounted(THREE)
    if written:
        view.append("a", b"2")
    view.unlink(gone)
    assert not view.exists(gone)
    rest = sorted({"a", "b", "c"} - {gone})
    settled(view, b"12" if written else b"1", *rest)
    view.append(rest[1], b"3")
    settled(view, b"123" if written else b"13", *rest)


@differs("fusepy-front", "libfuse 2 takes two names for two files, so the last name seems gone")
def test_copy_goes_with_its_last_name(mounted: Mount) -> None:
    view = mounted(THREE)
    view.append("b", b"2")
    handle = view.open("a")
    for left, name in ((2, "b"), (1, "a"), (0, "c")):
        view.unlink(name)
        if not (left and view.differs):
            assert handle.stat().nlink == left
    assert handle.read() == b"12"
    handle.close()
    view.remount()
    assert view.names() == [b"d"]
    assert index_names(view) == []


def test_further_names_are_made_of_a_lower_file(mounted: Mount) -> None:
    view = mounted(THREE)
    view.link("c", "d/e")
    are_one(view, b"1", "a", "b", "c", "d/e")
    view.append("d/e", b"2")
    settled(view, b"12", "a", "b", "c", "d/e")
    view.unlink("a")
    settled(view, b"12", "b", "c", "d/e")


def test_link_to_the_other_name_is_refused(mounted: Mount) -> None:
    view = mounted(THREE)
    with pytest.raises(FileExistsError):
        view.link("a", "b")
    settled(view, b"1", "a", "b", "c")


def test_renamed_name_stays_linked(mounted: Mount) -> None:
    view = mounted(THREE)
    view.rename("b", "d/moved")
    assert not view.exists("b")
    settled(view, b"1", "a", "c", "d/moved")
    view.append("a", b"2")
    view.rename("d/moved", "again")
    settled(view, b"12", "a", "c", "again")


def test_rename_onto_the_other_name_does_nothing(mounted: Mount) -> None:
    view = mounted(THREE)
    view.rename("a", "b")
    settled(view, b"1", "a", "b", "c")
    view.append("c", b"2")
    view.rename("c", "b")
    settled(view, b"12", "a", "b", "c")


@pytest.mark.parametrize("written", [False, True])
def test_replaced_name_is_counted(mounted: Mount, written: bool) -> None:
    view = mounted({**THREE, "other": "o"})
    if written:
        view.append("a", b"2")
    view.rename("other", "b")
    assert view.read("b") == b"o"
    settled(view, b"12" if written else b"1", "a", "c")
    assert view.read("b") == b"o"


def test_exchanged_name_stays_linked(mounted: Mount) -> None:
    view = mounted({**THREE, "other": "o"})
    try:
        view.rename("a", "other", RENAME_EXCHANGE)
    except OSError as error:
        assert view.kind == "fusepy-front" and error.errno == errno.EINVAL
        return
    assert view.read("a") == b"o"
    settled(view, b"1", "other", "b", "c")


@pytest.mark.parametrize("what", [symlink("x"), fifo()], ids=["symlink", "fifo"])
def test_names_of_other_kinds_stay_one_as_well(mounted: Mount, what: object) -> None:
    view = mounted({"a": what, "b": hardlink("a")})
    view.chown("a", 3, 4)
    for _ in range(2):
        assert view.stat("a") == view.stat("b")
        assert (view.stat("b").uid, view.stat("b").nlink) == (3, 2)
        view.remount()
    view.unlink("a")
    assert view.stat("b").nlink == 1


def test_name_that_another_layer_hides_is_its_own_file(mounted: Mount) -> None:
    view = mounted({"a": "1", "b": hardlink("a")}, {"b": "own"})
    view.append("a", b"2")
    assert view.read("b") == b"own"
    assert view.stat("b").nlink == 1
    assert view.read("a") == b"12"


def test_names_in_different_directories_stay_one_file(mounted: Mount) -> None:
    view = mounted({"a": "1", "d/e/": None})
    (view.layers.lowers[0] / "d/e/b").hardlink_to(view.layers.lowers[0] / "a")
    view.remount()
    view.append("d/e/b", b"2")
    settled(view, b"12", "a", "d/e/b")
    view.rename("d", "moved")
    settled(view, b"12", "a", "moved/e/b")


def test_set_id_bits_and_owner_are_copied_once_for_all(mounted: Mount) -> None:
    view = mounted({"a": file("x", mode=0o4755, uid=7, gid=8), "b": hardlink("a")})
    view.utime("b", 1, 2)
    status = view.stat("a")
    assert (stat.S_IMODE(status.mode), status.uid, status.gid, status.mtime_ns) == (0o4755, 7, 8, 2)


def add_names(view: Subject, *names: str) -> None:
    """Give the lower file more names, behind the view."""
    lower = view.layers.lowers[0]
    for name in names:
        (lower / name).hardlink_to(lower / "a")


@differs("kernel", "does not count names that a lower got, so the copy goes before its last name")
def test_names_that_the_lower_got_can_be_removed_again(mounted: Mount) -> None:
    view = mounted(THREE)
    view.append("a", b"2")
    add_names(view, "x", "y", "z")
    for name in "xyz":
        assert view.read(name) == b"12"
    for name in "xyz":
        view.unlink(name)
    for _ in range(2):
        assert [view.read(name) for name in "abc"] == [b"12"] * 3
        view.remount()
    if not view.differs:
        are_one(view, b"12", "a", "b", "c")
    view.unlink("a")
    view.unlink("b")
    view.remount()
    assert view.read("c") == (b"1" if view.differs else b"12")


def test_names_that_the_lower_got_while_unmounted_can_be_removed_again(mounted: Mount) -> None:
    view = mounted(THREE)
    view.append("a", b"2")
    view.stop()
    add_names(view, "x", "y", "z")
    view.start()
    for name in "xyz":
        view.unlink(name)
    for _ in range(2):
        assert [view.read(name) for name in "abc"] == [b"12"] * 3
        assert view.stat("a").nlink > 0
        view.remount()
