"""Is a file whole whose metadata stands in one layer, and its data in another?"""

from __future__ import annotations

import errno
import os

import pytest

from overlayfs_demo import syscalls
from tests import builders
from tests.builders import WHITEOUT, Metacopy, metacopy
from tests.contract.conftest import Mount
from tests.contract.marks import differs, kernel_since
from tests.contract.subjects import Subject

METACOPY = "trusted.overlay.metacopy"
DATA = "data of the lower"


def is_metacopy(view: Subject, path: str) -> bool:
    return syscalls.get_xattr(os.fsencode(view.upper(path)), METACOPY) is not None


@pytest.fixture
def changed(mounted: Mount) -> Subject:
    """A lower file whose metadata alone was changed, with metacopy=on."""
    view = mounted({"a": DATA, "d/": None}, metacopy=True)
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


def test_truncate_copies_what_is_left(changed: Subject) -> None:
    changed.truncate("a", 4)
    changed.remount()
    assert changed.read("a") == DATA[:4].encode()


def test_renamed_file_keeps_its_data(changed: Subject) -> None:
    changed.rename("a", "d/moved")
    changed.remount()
    assert changed.read("d/moved") == DATA.encode()
    assert changed.names() == [b"d"]


def test_further_name_has_the_data_too(changed: Subject) -> None:
    changed.link("a", "d/b")
    changed.remount()
    assert changed.read("d/b") == changed.read("a") == DATA.encode()
    assert changed.stat("a").nlink == 2


def test_attributes_are_the_upper_ones(changed: Subject) -> None:
    changed.set_xattr("a", "user.k", b"v")
    changed.chown("a", 3, 4)
    changed.remount()
    assert is_metacopy(changed, "a")
    assert changed.xattrs("a") == ["user.k"]
    assert (changed.stat("a").uid, changed.read("a")) == (3, DATA.encode())


def test_metacopy_of_several_layers_is_followed_to_the_data(mounted: Mount) -> None:
    view = mounted(
        {"a": DATA}, {"a": metacopy(len(DATA))}, upper={"a": metacopy(len(DATA), mode=0o640)}, metacopy=True
    )
    assert view.read("a") == DATA.encode()
    assert view.stat("a").mode & 0o777 == 0o640


def test_redirect_leads_to_the_data(mounted: Mount) -> None:
    view = mounted(
        {"d/old": DATA}, upper={"new": metacopy(len(DATA), "/d/old"), "d/old": WHITEOUT}, metacopy=True
    )
    assert view.read("new") == DATA.encode()
    assert not view.exists("d/old")


@kernel_since(6, 5, "data-only layers")
def test_data_only_layer_gives_data_and_no_names(mounted: Mount) -> None:
    view = mounted(
        {"other": "1"}, {"a": metacopy(len(DATA), "/blobs/xy", mode=0o755)}, data_only={"blobs/xy": DATA},
        metacopy=True,
    )
    assert view.names() == [b"a", b"other"]
    assert view.read("a") == DATA.encode()
    view.append("a", b"+")
    view.remount()
    assert view.read("a") == DATA.encode() + b"+"


def test_missing_data_is_an_error_and_not_a_hole(mounted: Mount) -> None:
    view = mounted({"other": "1"}, upper={"a": metacopy(5)}, metacopy=True)
    with pytest.raises(OSError) as caught:
        view.read("a")
    assert caught.value.errno == errno.EIO


def test_bad_mark_makes_its_own_name_fail_alone(mounted: Mount) -> None:
    bad = Metacopy(size=4, xattrs={METACOPY: b"x"})
    view = mounted({"bad": DATA, "a": DATA}, upper={"b": "", "bad": bad}, metacopy=True)
    with pytest.raises(OSError) as caught:
        view.stat("bad")
    assert caught.value.errno == errno.EIO
    assert (view.read("a"), view.read("b")) == (DATA.encode(), b"")
    assert {b"a", b"b"} <= set(view.names())
