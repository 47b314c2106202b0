"""Is a file whole whose metadata stands in one layer, and its data in another?"""

from __future__ import annotations

import errno
import os
from typing import Any

import pytest

from overlayfs_demo.linux import xattr
from overlayfs_demo.linux.syscalls import RENAME_EXCHANGE
from tests import builders
from tests.builders import WHITEOUT, Metacopy, hardlink, metacopy
from tests.contract.conftest import Mount
from tests.contract.marks import differs, kernel_since, only
from tests.contract.subjects import Subject

METACOPY = "trusted.overlay.metacopy"
REDIRECT = "trusted.overlay.redirect"
DATA = "data of the lower"


def is_metacopy(view: Subject, path: str) -> bool:
    return xattr.get(os.fsencode(view.upper(path)), METACOPY) is not None


@pytest.fixture
def changed(mounted: Mount) -> Subject:
    """A lower file whose metadata alone was changed, with metacopy=on."""
    view: Subject = mounted({"a": DATA, "d/": None}, metacopy=True)
    view.chmod("a", 0o600)
    assert is_metacopy(view, "a")
    assert view.upper("a").stat().st_blocks <= 8  # of attributes, at most
    return view


def test_change_of_metadata_copies_no_data(changed: Subject) -> None:
    for _ in range(2):
        assert changed.read("a") == DATA.encode()
        assert changed.stat("a").size == len(DATA)
        assert changed.stat("a").mode & 0o777 == 0o600
        changed.remount()


def test_write_brings_the_data_up(changed: Subject) -> None:
    reader = changed.open("a")
    opened = changed.open("a", os.O_RDWR)
    assert not is_metacopy(changed, "a")
    opened.write(b"+", len(DATA))
    opened.close()
    assert reader.read() == DATA.encode() + b"+"
    reader.close()
    changed.remount()
    assert changed.read("a") == DATA.encode() + b"+"


@differs("kernel", "opening for writing changes the time of modification")
def test_opening_a_metacopy_for_writing_changes_no_time(changed: Subject) -> None:
    changed.open("a", os.O_RDWR).close()
    assert (changed.stat("a").mtime_ns == builders.MTIME) != changed.differs


def test_data_that_comes_up_changes_no_number(changed: Subject) -> None:
    ino = changed.stat("a").ino
    changed.truncate("a", 4)
    for _ in range(2):
        assert changed.stat("a").ino == ino
        assert dict(changed.listing())[b"a"] == ino
        changed.remount()


def test_truncate_copies_what_is_left(changed: Subject) -> None:
    changed.truncate("a", 4)
    changed.remount()
    assert changed.read("a") == DATA[:4].encode()


def test_attributes_are_the_upper_ones(changed: Subject) -> None:
    changed.set_xattr("a", "user.k", b"v")
    changed.chown("a", 3, 4)
    changed.remount()
    assert is_metacopy(changed, "a")
    assert changed.xattrs("a") == ["user.k"]
    assert (changed.stat("a").uid, changed.read("a")) == (3, DATA.encode())


def test_metacopy_of_several_layers_is_followed_to_the_data(mounted: Mount) -> None:
    view = mounted({"a": DATA}, {"a": metacopy(len(DATA))}, upper={"a": metacopy(len(DATA), mode=0o640)}, metacopy=True)
    assert view.read("a") == DATA.encode()
    assert view.stat("a").mode & 0o777 == 0o640


def test_redirect_leads_to_the_data(mounted: Mount) -> None:
    view = mounted({"d/old": DATA}, upper={"new": metacopy(len(DATA), "/d/old"), "d/old": WHITEOUT}, metacopy=True)
    assert view.read("new") == DATA.encode()
    assert not view.exists("d/old")


@kernel_since(6, 5, "data-only layers")
def test_data_only_layer_gives_data_and_no_names(mounted: Mount) -> None:
    view = mounted(
        {"other": "1"}, {"a": metacopy(len(DATA), "/blobs/xy", mode=0o755)}, data_only={"blobs/xy": DATA}, metacopy=True
    )
    assert view.names() == [b"a", b"other"]
    assert view.read("a") == DATA.encode()
    view.append("a", b"+")
    view.remount()
    assert view.read("a") == DATA.encode() + b"+"


def redirect(view: Subject, path: str) -> bytes | None:
    return xattr.get(os.fsencode(view.upper(path)), REDIRECT)


def on_disk(view: Subject, path: str) -> tuple[bool, bytes | None]:
    """Is it a metacopy, and where does it say that its data is?"""
    return is_metacopy(view, path), redirect(view, path)


def test_renamed_file_leaves_its_data_below(changed: Subject) -> None:
    changed.rename("a", "d/moved")
    for _ in range(2):
        assert on_disk(changed, "d/moved") == (True, b"/a")
        assert changed.read("d/moved") == DATA.encode()
        assert changed.names() == [b"d"]
        changed.remount()
    changed.append("d/moved", b"+")
    changed.remount()
    assert changed.read("d/moved") == DATA.encode() + b"+"


def test_file_renamed_in_its_directory_says_its_name(mounted: Mount) -> None:
    view = mounted({"d": {"a": DATA}}, metacopy=True)
    view.rename("d/a", "d/b")
    assert on_disk(view, "d/b") == (True, b"a")
    view.rename("d/b", "d/c")
    assert on_disk(view, "d/c") == (True, b"a")
    view.remount()
    assert view.read("d/c") == DATA.encode()
    view.rename("d/c", "c")
    assert on_disk(view, "c") == (True, b"/d/a")
    view.remount()
    assert view.read("c") == DATA.encode()


def test_file_renamed_after_its_directory_says_where_the_lower_has_it(mounted: Mount) -> None:
    view = mounted({"d": {"e": {"a": DATA}}, "x/": None}, metacopy=True)
    view.rename("d", "x/d")
    view.rename("x/d/e", "f")
    view.rename("f/a", "a")
    assert on_disk(view, "a") == (True, b"/d/e/a")
    view.remount()
    assert view.read("a") == DATA.encode()


def test_further_name_of_a_file_leaves_its_data_below(changed: Subject) -> None:
    changed.link("a", "d/b")
    changed.link("d/b", "c")
    for _ in range(2):
        assert on_disk(changed, "a") == on_disk(changed, "d/b") == on_disk(changed, "c") == (True, b"/a")
        assert changed.read("d/b") == changed.read("a") == DATA.encode()
        assert changed.stat("c").nlink == 3
        changed.remount()
    changed.unlink("a")
    changed.append("d/b", b"+")
    changed.remount()
    assert changed.read("c") == DATA.encode() + b"+"


def test_lower_file_is_linked_and_replaced_without_its_data(mounted: Mount) -> None:
    view = mounted({"a": DATA, "b": "other", "c": "third"}, metacopy=True)
    view.link("a", "a2")
    view.rename("b", "c")
    assert on_disk(view, "a2") == (True, b"/a")
    assert on_disk(view, "c") == (True, b"b")
    view.remount()
    assert (view.read("a"), view.read("a2"), view.read("c")) == (DATA.encode(), DATA.encode(), b"other")


@only(["engine", "kernel-front", "kernel"], "libfuse 2 knows no rename flags")
def test_exchanged_files_leave_their_data_below(mounted: Mount) -> None:
    view = mounted({"a": "first", "d": {"b": "second"}}, metacopy=True)
    view.rename("a", "d/b", RENAME_EXCHANGE)
    assert (on_disk(view, "a"), on_disk(view, "d/b")) == ((True, b"/d/b"), (True, b"/a"))
    view.remount()
    assert (view.read("a"), view.read("d/b")) == (b"second", b"first")


@differs("kernel", "refuses with EXDEV")
def test_data_is_copied_where_the_redirect_would_be_too_long(mounted: Mount) -> None:
    deep = "/".join(["x" * 100] * 3)
    view = mounted({deep: {"a": DATA, "b": DATA}}, metacopy=True)
    if view.differs:
        for change in (view.rename, view.link):
            with pytest.raises(OSError) as caught:
                change(f"{deep}/a", "a")
            assert caught.value.errno == errno.EXDEV
        return
    view.rename(f"{deep}/a", "a")
    view.link(f"{deep}/b", "b")
    assert on_disk(view, "a") == on_disk(view, "b") == (False, None)
    view.remount()
    assert view.read("a") == view.read("b") == DATA.encode()


def test_change_of_a_hard_linked_file_copies_no_data(mounted: Mount) -> None:
    view = mounted({"a": DATA, "b": hardlink("a"), "d": {"c": hardlink("../a")}}, metacopy=True)
    view.chmod("b", 0o600)
    names = ("a", "b", "d/c")
    for _ in range(2):
        assert is_metacopy(view, "b")
        assert [view.read(name) for name in names] == [DATA.encode()] * 3
        assert {(view.stat(name).mode, view.stat(name).nlink, view.stat(name).ino) for name in names} == {
            (view.stat("b").mode, 3, view.stat("a").ino)
        }
        view.remount()
    view.rename("b", "d/moved")
    assert on_disk(view, "d/moved") == (True, b"/b")
    view.remount()
    view.append("a", b"+")
    view.remount()
    assert view.read("a") == view.read("d/moved") == view.read("d/c") == DATA.encode() + b"+"


def test_removal_of_one_name_of_a_hard_linked_file_copies_no_data(mounted: Mount) -> None:
    view = mounted({"a": DATA, "b": hardlink("a")}, metacopy=True)
    view.unlink("a")
    [copy] = [path for path in (view.layers.work / "index").iterdir() if path.is_file()]
    assert xattr.get(os.fsencode(copy), METACOPY) is not None
    view.remount()
    assert (view.read("b"), view.stat("b").nlink) == (DATA.encode(), 1)


def test_metacopy_with_long_attributes_is_no_hole(mounted: Mount) -> None:
    blob = "/".join(["x" * 60] * 3)
    view = mounted({"other": "1"}, {"a": metacopy(len(DATA), "/" + blob)}, data_only={blob: DATA}, metacopy=True)
    assert view.read("a") == DATA.encode()


@pytest.mark.parametrize("place", ["upper", "lowest"])
def test_metacopy_whose_data_is_nowhere_cannot_be_looked_up(mounted: Mount, place: str) -> None:
    lost = {"a": metacopy(5), "b": metacopy(5, "/nowhere"), "c": metacopy(5, "/dir")}
    layers: tuple[Any, ...] = ({"other": "1", "dir/": None},) if place == "upper" else (lost, {"other": "1"})
    view = mounted(*layers, upper=lost if place == "upper" else {}, metacopy=True)
    for path in ("a", "b", "c"):
        for verb in (view.stat, view.read, view.unlink, lambda path: view.rename("other", path)):
            with pytest.raises(OSError) as caught:
                verb(path)
            assert caught.value.errno == errno.EIO
    assert {b"a", b"b", b"c", b"other"} <= set(view.names())
    assert view.read("other") == b"1"


@kernel_since(6, 5, "data-only layers")
def test_metacopy_whose_data_layer_lacks_the_data_can_be_looked_up_but_not_read(mounted: Mount) -> None:
    view = mounted(
        {"other": "1"}, {"a": metacopy(5, "/blobs/xy"), "b": metacopy(5)}, data_only={"blobs/z": DATA}, metacopy=True
    )
    assert (view.stat("a").size, view.stat("a").blocks) == (5, 8)
    for verb in (
        view.read,
        lambda path: view.chmod(path, 0o600),
        lambda path: view.rename(path, "c"),
        lambda path: view.link(path, "c"),
        lambda path: view.truncate(path, 0),
    ):
        with pytest.raises(OSError) as caught:
            verb("a")
        assert caught.value.errno == errno.ENOENT
    assert view.upper_names() == []
    with pytest.raises(OSError) as caught:
        view.stat("b")
    assert caught.value.errno == errno.EIO
    view.unlink("a")
    assert view.names() == [b"b", b"other"]


def test_bad_mark_makes_its_own_name_fail_alone(mounted: Mount) -> None:
    bad = Metacopy(size=4, xattrs={METACOPY: b"x"})
    view = mounted({"bad": DATA, "a": DATA}, upper={"b": "", "bad": bad}, metacopy=True)
    with pytest.raises(OSError) as caught:
        view.stat("bad")
    assert caught.value.errno == errno.EIO
    assert (view.read("a"), view.read("b")) == (DATA.encode(), b"")
    assert {b"a", b"b"} <= set(view.names())
