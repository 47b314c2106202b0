"""What happens in the view and on disk when names are made and removed?"""

from __future__ import annotations

import os
import stat
import threading

import pytest

from tests.builders import IMAGE_WHITEOUT, MTIME, OPAQUE, WHITEOUT, directory, file, symlink
from tests.contract.conftest import Mount
from tests.contract.marks import only
from tests.contract.subjects import Subject


def make_each_kind(view: Subject, above: str) -> None:
    view.write(f"{above}/file", b"data")
    view.mkdir(f"{above}/dir", 0o750)
    view.mknod(f"{above}/fifo", stat.S_IFIFO | 0o600)
    view.mknod(f"{above}/device", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    view.symlink("target", f"{above}/symlink")
    view.link(f"{above}/file", f"{above}/link")


def check_each_kind(view: Subject, above: str) -> None:
    assert view.names(above) == [b"device", b"dir", b"fifo", b"file", b"link", b"symlink"]
    assert view.read(f"{above}/file") == b"data"
    assert view.stat(f"{above}/dir").mode == stat.S_IFDIR | 0o750
    assert view.stat(f"{above}/fifo").mode == stat.S_IFIFO | 0o600
    assert view.stat(f"{above}/device").rdev == os.makedev(1, 3)
    assert view.readlink(f"{above}/symlink") == b"target"
    assert view.stat(f"{above}/link").ino == view.stat(f"{above}/file").ino
    assert view.stat(f"{above}/link").nlink == 2


# --- making ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["lower", "upper", "both", "opaque"])
def test_every_kind_can_be_made_in_a_directory_of_any_origin(mounted: Mount, place: str) -> None:
    view = mounted(
        {"lower/": None, "both/": None, "opaque/x": ""}, upper={"upper/": None, "both/": None, "opaque": OPAQUE()}
    )
    make_each_kind(view, place)
    check_each_kind(view, place)
    view.remount()
    check_each_kind(view, place)
    assert view.work_is_empty()


def test_every_kind_can_be_made_where_a_whiteout_stands(mounted: Mount) -> None:
    kinds = ["device", "dir", "fifo", "file", "link", "symlink"]
    view = mounted({"d": dict.fromkeys(kinds, "low")}, upper={"d": dict.fromkeys(kinds, WHITEOUT)})
    make_each_kind(view, "d")
    check_each_kind(view, "d")
    view.remount()
    check_each_kind(view, "d")
    assert view.work_is_empty()


def test_name_that_exists_cannot_be_made_again(mounted: Mount) -> None:
    view = mounted({"low": "1"}, upper={"up": "2"})
    for name in ("low", "up"):
        with pytest.raises(FileExistsError):
            view.mkdir(name)
        with pytest.raises(FileExistsError):
            view.symlink("x", name)
        with pytest.raises(FileExistsError):
            view.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        with pytest.raises(FileExistsError):
            view.link("up", name)
    assert view.upper_names() == ["up"]


def test_new_files_are_on_disk_at_once(mounted: Mount) -> None:
    view = mounted({"d/e/": None})
    view.write("d/e/new", b"hello")
    assert view.upper("d/e/new").read_bytes() == b"hello"
    assert stat.S_IMODE(os.lstat(view.upper("d/e/new")).st_mode) == 0o644


def test_making_a_name_changes_the_directorys_time_and_nothing_above_it(mounted: Mount) -> None:
    view = mounted({"a/b/": None})
    view.write("a/b/new", b"")
    assert view.stat("a/b").mtime_ns > MTIME
    assert view.stat("a").mtime_ns == MTIME


def test_whiteout_device_cannot_be_made(mounted: Mount) -> None:
    view = mounted({"a": "1"})
    with pytest.raises(PermissionError):
        view.mknod("w", stat.S_IFCHR | 0o600, 0)


def test_new_directory_over_a_lower_one_is_opaque_on_disk(mounted: Mount) -> None:
    view = mounted({"d/old": "1"})
    view.unlink("d/old")
    view.rmdir("d")
    view.mkdir("d")
    assert view.names("d") == []
    assert view.is_opaque("d")
    view.write("d/new", b"2")
    view.remount()
    assert view.names("d") == [b"new"]


def test_new_directory_over_an_image_whiteout_stays_empty(mounted: Mount) -> None:
    view = mounted({"a": "1"}, {"d/x": ""}, {"b": ""})
    view.unlink("d/x")
    view.rmdir("d")
    view.mkdir("d")
    view.remount()
    assert view.names("d") == []


# --- removing -------------------------------------------------------------------------------------


def test_unlink_of_lower_file_leaves_whiteout(mounted: Mount) -> None:
    view = mounted({"d/a": "1", "d/b": "2"})
    view.unlink("d/a")
    assert view.names("d") == [b"b"]
    assert view.is_whiteout("d/a")
    view.remount()
    assert view.names("d") == [b"b"]


def test_unlink_of_copied_up_file_leaves_whiteout(mounted: Mount) -> None:
    view = mounted({"a": "1"})
    view.append("a", b"2")
    view.unlink("a")
    assert not view.exists("a")
    assert view.upper_names() == ["a"]
    assert view.is_whiteout("a")


def test_unlink_of_upper_only_file_leaves_nothing(mounted: Mount) -> None:
    view = mounted({"d/x": ""})
    view.write("new", b"1")
    view.write("d/new", b"1")
    view.unlink("new")
    view.unlink("d/new")
    assert view.upper_names() == ["d"]


def test_unlink_of_a_lower_symlink_takes_the_link_not_its_target(mounted: Mount) -> None:
    view = mounted({"link": symlink("a"), "a": "1"})
    view.unlink("link")
    assert view.names() == [b"a"]


def test_unlink_in_an_opaque_directory_leaves_no_whiteout(mounted: Mount) -> None:
    view = mounted({"d/a": "1"}, upper={"d": OPAQUE({"a": "2"})})
    view.unlink("d/a")
    assert view.upper_names() == ["d"]


def test_unlink_in_an_upper_only_directory_leaves_no_whiteout(mounted: Mount) -> None:
    view = mounted({"a": "1"})
    view.mkdir("new")
    view.link("a", "new/a")
    view.unlink("new/a")
    assert os.listdir(view.upper("new")) == []


def test_unlink_of_what_is_whited_out_below_leaves_no_second_whiteout(mounted: Mount) -> None:
    view = mounted({"a": "1"}, {"a": WHITEOUT}, upper={"a": "3"})
    view.unlink("a")
    assert view.upper_names() == []
    assert not view.exists("a")


def test_unlink_of_a_directory_is_eisdir(mounted: Mount) -> None:
    view = mounted({"d/": None})
    with pytest.raises(IsADirectoryError):
        view.unlink("d")


def test_rmdir_of_lower_directory_leaves_whiteout(mounted: Mount) -> None:
    view = mounted({"d/": None})
    view.rmdir("d")
    assert view.names() == []
    assert view.is_whiteout("d")


def test_rmdir_of_a_directory_emptied_in_the_view_leaves_one_whiteout(mounted: Mount) -> None:
    view = mounted({"d/a": "1", "d/b": "2"})
    view.unlink("d/a")
    view.unlink("d/b")
    view.rmdir("d")
    assert view.upper_names() == ["d"]
    assert view.is_whiteout("d")
    assert view.work_is_empty()


def test_rmdir_of_upper_only_directory_leaves_nothing(mounted: Mount) -> None:
    view = mounted({"a": ""})
    view.mkdir("d")
    view.rmdir("d")
    assert view.upper_names() == []


def test_rmdir_of_a_full_directory_is_enotempty(mounted: Mount) -> None:
    view = mounted({"low/a": ""}, {"both/": None, "up/": None}, {"both/a": ""}, upper={"up/a": ""})
    for name in ("low", "both", "up"):
        with pytest.raises(OSError, match="not empty"):
            view.rmdir(name)


def test_rmdir_of_a_file_is_enotdir(mounted: Mount) -> None:
    view = mounted({"a": ""})
    with pytest.raises(NotADirectoryError):
        view.rmdir("a")


def test_removal_of_what_is_not_there_is_enoent(mounted: Mount) -> None:
    view = mounted({"d/": None, "gone": ""}, {"gone": WHITEOUT})
    for remove in (view.unlink, view.rmdir):
        for name in ("x", "d/x", "gone"):
            with pytest.raises(FileNotFoundError):
                remove(name)


def remove_all(view: Subject, path: str) -> None:
    for name in view.names(path):
        below = f"{path}/{os.fsdecode(name)}"
        if stat.S_ISDIR(view.stat(below).mode):
            remove_all(view, below)
        else:
            view.unlink(below)
    view.rmdir(path)


def test_removing_a_lower_tree_leaves_exactly_one_whiteout(mounted: Mount) -> None:
    view = mounted({"d": {"a": "1", "e": {"b": "2", "f/c": "3"}, "l": symlink("a")}}, {"d/e/f/d": ""})
    view.append("d/e/b", b"x")
    view.write("d/e/f/new", b"y")
    remove_all(view, "d")
    assert view.upper_names() == ["d"]
    assert view.is_whiteout("d")
    assert view.work_is_empty()


def test_lowers_never_change(mounted: Mount) -> None:
    view = mounted({"d": {"a": "1", "b": "2"}, "e/f": ""})
    lower = view.layers.lowers[0]
    before = sorted((path, os.lstat(path).st_ctime_ns, os.lstat(path).st_atime_ns) for path in lower.rglob("*"))
    view.append("d/a", b"x")
    view.read("d/b")
    view.names("d")
    view.rename("d/b", "e/b")
    remove_all(view, "e")
    view.chmod("d", 0o700)
    after = sorted((path, os.lstat(path).st_ctime_ns, os.lstat(path).st_atime_ns) for path in lower.rglob("*"))
    assert [one[:2] for one in after] == [one[:2] for one in before]
    assert [one[2] for one in after if one[0].is_file()] == [one[2] for one in before if one[0].is_file()]


# --- odd names ------------------------------------------------------------------------------------

ODD = [b"\xff\xfe", b"new\nline", b"back\\slash", b"a:b,c", b" ", b"-rf", b"...", b"\x01", "ünï".encode(), b"'\"`$"]


def test_names_of_any_bytes_survive(mounted: Mount) -> None:
    view = mounted({name: name for name in ODD})
    assert view.names() == sorted(ODD)
    for name in ODD:
        view.append(name, b"!")
        view.rename(name, name + b"2")
    view.remount()
    assert view.names() == sorted(name + b"2" for name in ODD)
    for name in ODD:
        assert view.read(name + b"2") == name + b"!"
        view.unlink(name + b"2")
    assert view.names() == []


def test_longest_names_can_be_made_and_deleted(mounted: Mount) -> None:
    low, new = "l" * 255, "n" * 255
    view = mounted({low: "1", "x" * 252: ""})
    view.write(new, b"2")
    view.unlink(new)
    view.unlink(low)
    view.unlink("x" * 252)
    assert view.names() == []
    with pytest.raises(OSError, match="too long"):
        view.write("n" * 256, b"")


@only(["engine", "kernel-front", "fusepy-front"], "the kernel's overlayfs does not know image whiteouts")
def test_name_hidden_by_an_image_whiteout_can_be_made(mounted: Mount) -> None:
    view = mounted({"a": "1"}, {"a": IMAGE_WHITEOUT})
    view.write("a", b"new")
    view.unlink("a")
    assert view.upper_names() == []
    assert not view.exists("a")


# --- listing under change -------------------------------------------------------------------------


def test_listing_a_large_directory_under_change_shows_stable_names_once(mounted: Mount) -> None:
    stable = [b"stable%04d" % number for number in range(3000)]
    view = mounted({"d": {name: "" for name in stable[::2]}}, {"d": {name: "" for name in stable[1::2]}})
    view.write("d/first", b"")
    done = threading.Event()

    def churn() -> None:
        number = 0
        while not done.is_set():
            view.write(f"d/churn{number}", b"")
            view.unlink(f"d/churn{number}")
            number += 1

    other = threading.Thread(target=churn)
    other.start()
    try:
        for _ in range(3):
            names = [name for name, _ in view.listing("d")]
            assert len(names) == len(set(names))
            assert sorted(name for name in names if name.startswith(b"stable")) == stable
    finally:
        done.set()
        other.join()


def test_names_removed_while_listing_are_all_removed(mounted: Mount) -> None:
    view = mounted({"d": {f"{number:03}": "" for number in range(300)}})
    for name, _ in view.listing("d"):
        view.unlink(b"d/" + name)
    assert view.names("d") == []
    view.rmdir("d")


def test_directory_with_owner_and_mode_is_copied_up_when_something_is_made_in_it(mounted: Mount) -> None:
    view = mounted({"d": directory({"x": file("")}, mode=0o2751, uid=5, gid=6, xattrs={"user.k": b"v"})})
    view.write("d/new", b"")
    status = os.lstat(view.upper("d"))
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o2751, 5, 6)
    assert os.getxattr(view.upper("d"), "user.k") == b"v"


def test_new_directory_in_a_merged_one_does_not_show_another_stack(mounted: Mount) -> None:
    view = mounted({"d/": None})
    view.mkdir("d/new")
    assert view.is_opaque("d/new")
