"""Which names does the view have, and what is behind them?"""

from __future__ import annotations

import os
import stat

import pytest

from overlayfs_demo.linux import mounting
from tests import builders
from tests.builders import (
    FUSE_OVERLAYFS_OPAQUE,
    IMAGE_OPAQUE,
    IMAGE_WHITEOUT,
    MTIME,
    OPAQUE,
    WHITEOUT,
    XATTR_WHITEOUT,
    directory,
    fifo,
    file,
    hardlink,
    symlink,
)
from tests.contract.conftest import Mount
from tests.contract.marks import differs, kernel_since

only_ours = "the kernel knows neither the image format's marks nor fuse-overlayfs's"


def test_topmost_of_three_files_wins(mounted: Mount) -> None:
    view = mounted({"a": "1"}, {"a": "22"}, {"a": "333"})
    assert view.read("a") == b"333"
    assert view.stat("a").size == 3
    assert view.names() == [b"a"]


def test_upper_file_wins(mounted: Mount) -> None:
    view = mounted({"a": "lower"}, upper={"a": "upper"})
    assert view.read("a") == b"upper"


def test_directories_merge_over_all_layers(mounted: Mount) -> None:
    view = mounted({"d/a": "1"}, {"d/b": "2"}, {"d/a": "3"}, upper={"d/c": "4"})
    assert view.names("d") == [b"a", b"b", b"c"]
    assert [view.read(f"d/{name}") for name in "abc"] == [b"3", b"2", b"4"]


def test_merged_directory_has_attributes_of_the_topmost(mounted: Mount) -> None:
    view = mounted({"d": directory(mode=0o700, uid=1)}, {"d": directory({"x": ""}, mode=0o751, uid=2, gid=3)})
    status = view.stat("d")
    assert (stat.S_IMODE(status.mode), status.uid, status.gid) == (0o751, 2, 3)


def test_file_over_directory_hides_it(mounted: Mount) -> None:
    view = mounted({"a/x": "1"}, {"a": "file"})
    assert view.read("a") == b"file"
    assert not view.exists("a/x")


def test_directory_over_file_hides_it(mounted: Mount) -> None:
    view = mounted({"a": "file"}, {"a/x": "1"})
    assert view.names("a") == [b"x"]


def test_file_in_the_middle_ends_the_merge(mounted: Mount) -> None:
    view = mounted({"d/low": "1"}, {"d": "file"}, {"d/high": "2"})
    assert view.names("d") == [b"high"]
    assert not view.exists("d/low")


def test_whiteout_in_the_middle_hides_what_is_below_only(mounted: Mount) -> None:
    view = mounted({"a": "1", "b": "1"}, {"a": WHITEOUT, "b": WHITEOUT}, {"a": "3"})
    assert view.read("a") == b"3"
    assert view.names() == [b"a"]


def test_whiteout_of_a_directory_in_the_middle_ends_the_merge(mounted: Mount) -> None:
    view = mounted({"d/low": "1"}, {"d": WHITEOUT}, {"d/high": "2"})
    assert view.names("d") == [b"high"]


def test_opaque_directory_in_the_middle_hides_what_is_below(mounted: Mount) -> None:
    view = mounted({"d/low": "1"}, {"d": OPAQUE({"mid": "2"})}, {"d/high": "3"})
    assert view.names("d") == [b"high", b"mid"]
    assert not view.exists("d/low")


def test_opaque_upper_directory_hides_all_lowers(mounted: Mount) -> None:
    view = mounted({"d/low": "1"}, {"d/mid": "2"}, upper={"d": OPAQUE({"own": "3"})})
    assert view.names("d") == [b"own"]


def test_whiteouts_are_never_listed(mounted: Mount) -> None:
    view = mounted({"d/a": "1"}, {"d": {"a": WHITEOUT, "stray": WHITEOUT}}, upper={"d/other": WHITEOUT})
    assert view.names("d") == []
    assert not view.exists("d/a")
    assert not view.exists("d/stray")


@differs("kernel", "lists a whiteout of a directory that merges with nothing, as a name that is not there")
def test_whiteout_in_an_unmerged_directory_is_not_listed(mounted: Mount) -> None:
    view = mounted({}, upper={"d": {"stray": WHITEOUT, "a": "1"}})
    assert view.names("d") == ([b"a", b"stray"] if view.differs else [b"a"])
    assert not view.exists("d/stray")


def test_other_character_devices_are_no_whiteouts(mounted: Mount) -> None:
    view = mounted({"null": builders.device(1, 3)}, {"null2": builders.device(1, 3)})
    assert view.names() == [b"null", b"null2"]
    assert view.stat("null").rdev == os.makedev(1, 3)


@kernel_since(6, 7, "xattr whiteouts")
def test_xattr_whiteout_hides_what_is_below(mounted: Mount) -> None:
    view = mounted({"d": {"a": "1", "b": "2"}}, {"d": {"a": XATTR_WHITEOUT, "c": "3"}})
    assert view.names("d") == [b"b", b"c"]
    assert not view.exists("d/a")


@kernel_since(6, 7, "xattr whiteouts")
def test_empty_file_without_the_attribute_is_no_xattr_whiteout(mounted: Mount) -> None:
    view = mounted({"d": {"a": "1", "b": "2"}}, {"d": {"a": XATTR_WHITEOUT, "b": ""}})
    assert view.names("d") == [b"b"]
    assert view.read("d/b") == b""


@differs("kernel", only_ours)
def test_image_whiteout_hides_what_is_below(mounted: Mount) -> None:
    view = mounted({"a": "1", "d/x": "2"}, {"a": IMAGE_WHITEOUT, "d": IMAGE_WHITEOUT}, {"b": "3"})
    if view.differs:
        assert view.names() == [b".wh.a", b".wh.d", b"a", b"b", b"d"]
    else:
        assert view.names() == [b"b"]
        assert not view.exists("a")
        assert not view.exists("d")
        assert not view.exists(".wh.a")


@differs("kernel", only_ours)
def test_image_whiteout_spares_what_its_own_layer_holds(mounted: Mount) -> None:
    view = mounted({"d/low": "1"}, {"d": IMAGE_WHITEOUT, "d/own": "2"})
    assert view.names("d") == ([b"low", b"own"] if view.differs else [b"own"])


@differs("kernel", only_ours)
def test_image_opaque_mark_hides_what_is_below(mounted: Mount) -> None:
    view = mounted({"d/low": "1"}, {"d": IMAGE_OPAQUE({"own": "2"})}, {"d/high": "3"})
    if view.differs:
        assert view.names("d") == [b".wh..wh..opq", b"high", b"low", b"own"]
    else:
        assert view.names("d") == [b"high", b"own"]
        assert not view.exists("d/low")
        assert not view.exists("d/.wh..wh..opq")


@differs("kernel", only_ours)
def test_fuse_overlayfs_opaque_mark_hides_what_is_below(mounted: Mount) -> None:
    view = mounted({"d/low": "1"}, {"d": FUSE_OVERLAYFS_OPAQUE({"own": "2"})}, {"d/high": "3"})
    assert view.names("d") == ([b"high", b"low", b"own"] if view.differs else [b"high", b"own"])


def test_nonempty_wh_file_is_an_ordinary_file(mounted: Mount) -> None:
    view = mounted({"a": "1"}, {".wh.a": "not empty"})
    assert view.names() == [b".wh.a", b"a"]
    assert view.read(".wh.a") == b"not empty"


def test_wh_names_made_in_the_view_are_ordinary(mounted: Mount) -> None:
    view = mounted({"a": "1"})
    view.write(".wh.a", b"")
    view.write(".wh..wh..opq", b"")
    view.remount()
    assert view.names() == [b".wh..wh..opq", b".wh.a", b"a"]


def test_files_in_whited_out_directory_cannot_be_reached(mounted: Mount) -> None:
    view = mounted({"d/e/f": "1"}, {"d/e": WHITEOUT})
    assert view.names("d") == []
    with pytest.raises(FileNotFoundError):
        view.read("d/e/f")


def test_lower_redirect_leads_to_the_old_place(mounted: Mount) -> None:
    renamed = directory({"new": "2"}, xattrs={"trusted.overlay.redirect": b"/a/old"})
    view = mounted({"a/old/low": "1"}, {"b/moved": renamed, "a/old": WHITEOUT})
    assert view.names("b/moved") == [b"low", b"new"]
    assert view.names("a") == []


def test_lower_relative_redirect_leads_to_the_sibling(mounted: Mount) -> None:
    renamed = directory(xattrs={"trusted.overlay.redirect": b"old"})
    view = mounted({"d/old/low": "1"}, {"d": {"moved": renamed, "old": WHITEOUT}})
    assert view.names("d/moved") == [b"low"]
    assert view.names("d") == [b"moved"]


def test_every_kind_of_file_shows_what_it_is(mounted: Mount) -> None:
    view = mounted(
        {
            "link": symlink("some/target"),
            "pipe": fifo(mode=0o640),
            "dev": builders.device(1, 5),
            "f": file("x", mode=0o4755, uid=7, gid=8),
            "g": hardlink("f"),
        }
    )
    assert view.readlink("link") == b"some/target"
    assert stat.S_ISFIFO(view.stat("pipe").mode)
    assert view.stat("dev").rdev == os.makedev(1, 5)
    status = view.stat("f")
    assert (stat.S_IMODE(status.mode), status.uid, status.gid, status.mtime_ns) == (0o4755, 7, 8, MTIME)
    assert status.nlink == 2


def test_lookup_below_a_file_is_enotdir(mounted: Mount) -> None:
    view = mounted({"a": "1"})
    with pytest.raises(NotADirectoryError):
        view.stat("a/b")


def test_link_in_a_lower_never_leads_out_of_it(mounted: Mount) -> None:
    view = mounted({"d": symlink("/etc")}, {"d/own": "1"})
    assert view.names("d") == [b"own"]


def test_listed_inode_numbers_are_those_of_stat(mounted: Mount) -> None:
    view = mounted({"a": "1", "d/x": "", "both/l": ""}, {"b": "2", "both/h": ""}, upper={"c": "3", "both/u": ""})
    view.append("a", b"more")
    for name, ino in view.listing():
        assert view.stat(name).ino == ino, name


def test_statfs_tells_of_the_uppers_filesystem(mounted: Mount) -> None:
    view = mounted({"a": "1"})
    answer, real = view.statvfs(), os.statvfs(view.upper())
    assert (answer.f_bsize, answer.f_blocks, answer.f_namemax) == (real.f_bsize, real.f_blocks, real.f_namemax)


def test_mount_below_a_layer_is_not_part_of_it(mounted: Mount) -> None:
    view = mounted({"d/under": "1"}, upper={"up/under": "1"})
    for place in (view.layers.lowers[0] / "d", view.upper("up")):
        mounting.mount(b"none", os.fsencode(place), b"tmpfs", 0, b"")
        (place / "over").touch()
    view.remount()
    assert view.names("d") == view.names("up") == [b"under"]
    assert view.read("d/under") == b"1"
