"""What can be done through an open file while its name is changed or removed?"""

from __future__ import annotations

import os
import stat

import pytest

from tests.builders import file
from tests.contract.conftest import Mount
from tests.contract.marks import also_cached, differs

pytestmark = also_cached


@pytest.mark.parametrize("where", ["lower", "upper"])
def test_unlinked_open_file_is_read_and_written(mounted: Mount, where: str) -> None:
    view = mounted({"lower": "data"}, upper={"upper": "data"})
    handle = view.open(where, os.O_RDWR)
    view.unlink(where)
    assert handle.read() == b"data"
    handle.write(b" and more", 4)
    assert handle.read() == b"data and more"
    assert handle.stat().size == 13
    handle.close()
    assert not view.exists(where)
    assert view.work_is_empty()


def test_unlinked_reader_of_a_lower_file_still_reads(mounted: Mount) -> None:
    view = mounted({"a": "data"})
    handle = view.open("a")
    view.unlink("a")
    assert handle.read() == b"data"
    handle.close()


@pytest.mark.parametrize("where", ["lower", "upper"])
def test_unlinked_open_file_has_attributes_and_no_names(mounted: Mount, where: str) -> None:
    view = mounted({"lower": "data"}, upper={"upper": "data"})
    handle = view.open(where)
    view.unlink(where)
    status = handle.stat()
    handle.close()
    assert (status.size, stat.S_IMODE(status.mode)) == (4, 0o644)


@differs("kernel", "the file that a reader holds is still the lower one, which has its name")
def test_unlinked_lower_file_has_no_names(mounted: Mount) -> None:
    view = mounted({"a": "data"})
    handle = view.open("a")
    view.unlink("a")
    assert handle.stat().nlink == (1 if view.differs else 0)
    handle.close()


def test_unlinked_open_file_takes_a_new_mode(mounted: Mount) -> None:
    view = mounted({}, upper={"a": "data"})
    handle = view.open("a", os.O_RDWR)
    view.unlink("a")
    handle.chmod(0o600)
    assert stat.S_IMODE(handle.stat().mode) == 0o600
    handle.close()


def test_name_can_be_used_again_while_the_old_file_is_open(mounted: Mount) -> None:
    view = mounted({"a": "old"})
    handle = view.open("a")
    view.unlink("a")
    view.write("a", b"new")
    assert handle.read() == b"old"
    assert view.read("a") == b"new"
    handle.close()
    assert view.read("a") == b"new"


def test_open_file_follows_its_rename(mounted: Mount) -> None:
    view = mounted({"a": "data", "d/": None})
    handle = view.open("a", os.O_RDWR)
    view.rename("a", "d/b")
    handle.write(b"!", 4)
    handle.close()
    assert view.read("d/b") == b"data!"


def test_replaced_open_file_keeps_its_data(mounted: Mount) -> None:
    view = mounted({"a": "new", "b": "old"})
    handle = view.open("b", os.O_RDWR)
    view.rename("a", "b")
    handle.write(b"!", 3)
    assert handle.read() == b"old!"
    handle.close()
    assert view.read("b") == b"new"


@differs("fusepy-front", "libfuse 2 takes two names for two files, so the last name seems gone")
def test_file_that_loses_one_of_two_names_is_reached_by_the_other(mounted: Mount) -> None:
    view = mounted({}, upper={"a": "data"})
    view.link("a", "b")
    handle = view.open("a", os.O_RDWR)
    view.unlink("a")
    handle.write(b"!", 4)
    assert handle.stat().nlink == (0 if view.differs else 1)
    handle.close()
    assert view.read("b") == b"data!"


@differs("fusepy-front", "libfuse 2 asks by path, and a removed directory has none: ENOENT")
def test_removed_directory_that_is_held_is_empty(mounted: Mount) -> None:
    view = mounted({"d/": None})
    held = view.hold("d")
    view.rmdir("d")
    if view.differs:
        with pytest.raises(FileNotFoundError):
            held.names()
    else:
        assert held.names() == []
    with pytest.raises(FileNotFoundError):
        held.create("x", b"")
    held.close()


def test_new_file_is_read_and_written_by_one_handle(mounted: Mount) -> None:
    view = mounted({"d/": None})
    handle = view.open("d/new", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    handle.write(b"data")
    assert handle.read() == b"data"
    assert handle.stat().ino == view.stat("d/new").ino
    handle.close()


def test_file_that_may_not_be_written_is_created_open_for_writing(mounted: Mount) -> None:
    view = mounted({"d/": None})
    handle = view.open("d/new", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400)
    handle.write(b"data")
    handle.close()
    assert view.read("d/new") == b"data"
    assert stat.S_IMODE(view.stat("d/new").mode) == 0o400


def test_many_handles_of_one_file_see_the_same_data(mounted: Mount) -> None:
    view = mounted({"a": file("0" * 10)})
    writers = [view.open("a", os.O_RDWR) for _ in range(10)]
    for number, writer in enumerate(writers):
        writer.write(b"%d" % number, number)
    assert {writer.read() for writer in writers} == {b"0123456789"}
    for writer in writers:
        writer.close()
