"""What becomes of a lower file when it is changed?

Data is appended wherever it matters: a copy-up that copies nothing would pass a test that overwrites.
"""

from __future__ import annotations

import os
import stat
import threading
from typing import Any

import pytest

from tests import builders
from tests.builders import MTIME, directory, fifo, file, symlink
from tests.contract.conftest import Mount
from tests.contract.subjects import Subject

PAST = 1_500_000_000_987_654_321


def on_disk(view: Subject, path: str) -> os.stat_result:
    return os.lstat(view.upper(path))


def test_append_keeps_the_lower_data(mounted: Mount) -> None:
    view = mounted({"a": "lower "})
    view.append("a", b"and more")
    assert view.read("a") == b"lower and more"
    assert view.upper("a").read_bytes() == b"lower and more"
    assert (view.layers.lowers[0] / "a").read_bytes() == b"lower "
    view.remount()
    assert view.read("a") == b"lower and more"


def test_write_in_the_middle_keeps_the_rest(mounted: Mount) -> None:
    data = bytes(range(256)) * 1000
    view = mounted({"a": data})
    view.write("a", b"XYZ", flags=0, offset=100_000)
    assert view.read("a") == data[:100_000] + b"XYZ" + data[100_003:]


def test_file_of_several_megabytes_is_copied_whole(mounted: Mount) -> None:
    data = os.urandom(5 << 20)
    view = mounted({"a": data})
    view.append("a", b"end")
    assert view.upper("a").read_bytes() == data + b"end"


def test_opening_for_writing_alone_copies_up(mounted: Mount) -> None:
    view = mounted({"a": "1"})
    view.open("a", os.O_RDWR).close()
    assert view.upper("a").read_bytes() == b"1"


def test_attributes_are_the_copys_as_soon_as_it_is_there(mounted: Mount) -> None:
    """Even if the call that copies up fails in the end, as does replacing an attribute that is not there."""
    view = mounted({"a": "1", "d/b": "2"})
    for path in ("a", "d", "d/b"):
        view.stat(path)
    view.open("a", os.O_RDWR).close()
    with pytest.raises(OSError, match="No data"):
        view.set_xattr("d/b", "user.none", b"", os.XATTR_REPLACE)
    for path in ("a", "d", "d/b"):
        assert view.stat(path).ctime_ns == on_disk(view, path).st_ctime_ns


def test_reading_copies_nothing_up(mounted: Mount) -> None:
    view = mounted({"d": {"a": "1", "l": symlink("a")}})
    view.read("d/a")
    view.names("d")
    view.readlink("d/l")
    view.xattrs("d/a")
    assert view.upper_names() == []


def test_truncating_open_copies_no_data(mounted: Mount) -> None:
    view = mounted({"a": "1" * 100_000})
    opened = view.open("a", os.O_WRONLY | os.O_TRUNC)
    assert (on_disk(view, "a").st_size, on_disk(view, "a").st_blocks) == (0, 0)
    opened.write(b"new")
    opened.close()
    assert view.read("a") == b"new"


@pytest.mark.parametrize(("size", "expected"), [(0, b""), (3, b"dat"), (4, b"data"), (6, b"data\0\0")])
def test_truncate_keeps_what_is_left(mounted: Mount, size: int, expected: bytes) -> None:
    view = mounted({"a": "data"})
    view.truncate("a", size)
    assert view.read("a") == expected
    assert view.upper("a").read_bytes() == expected


CHANGES = {
    "chmod": lambda view, path: view.chmod(path, 0o600),
    "chown": lambda view, path: view.chown(path, 33, 44),
    "utime": lambda view, path: view.utime(path, PAST, PAST + 1),
    "setxattr": lambda view, path: view.set_xattr(path, "trusted.k", b"v"),
    "link": lambda view, path: view.link(path, "d/further"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_change_of_attributes_keeps_the_data(mounted: Mount, change: str) -> None:
    view = mounted({"d/a": file("data", mode=0o640)})
    CHANGES[change](view, "d/a")
    assert view.read("d/a") == b"data"
    assert view.upper("d/a").read_bytes() == b"data"


def test_copy_keeps_owner_mode_times_and_attributes(mounted: Mount) -> None:
    xattrs = {
        "user.one": b"1",
        "trusted.two": b"\0\xff",
        "security.capability": bytes.fromhex("0100000200040000000000000000000000000000"),
    }
    view = mounted({"a": file("data", mode=0o640, uid=11, gid=22, mtime_ns=PAST, xattrs=xattrs)})
    view.link("a", "b")
    status = view.stat("a")
    assert (status.mode, status.uid, status.gid) == (stat.S_IFREG | 0o640, 11, 22)
    assert status.mtime_ns == PAST
    assert {name: view.xattr("a", name) for name in view.xattrs("a")} == xattrs
    real = on_disk(view, "a")
    assert (real.st_mode, real.st_uid, real.st_gid, real.st_mtime_ns) == (stat.S_IFREG | 0o640, 11, 22, PAST)


@pytest.mark.parametrize("mode", [0o4755, 0o2755, 0o6711, 0o1644, 0o000])
def test_copy_keeps_set_id_bits(mounted: Mount, mode: int) -> None:
    view = mounted({"a": file("data", mode=mode, uid=11, gid=22)})
    view.utime("a", PAST, PAST)
    assert stat.S_IMODE(view.stat("a").mode) == mode
    assert stat.S_IMODE(on_disk(view, "a").st_mode) == mode


def special(kind: str) -> Any:
    return {
        "symlink": symlink("some/target", uid=11, gid=22),
        "fifo": fifo(mode=0o620, uid=11, gid=22),
        "device": builders.device(1, 3, mode=0o620, uid=11, gid=22),
        "socket": builders.Special(0o620, 11, 22, kind=stat.S_IFSOCK),
    }[kind]


@pytest.mark.parametrize("kind", ["symlink", "fifo", "device", "socket"])
def test_special_files_are_copied_up_as_they_are(mounted: Mount, kind: str) -> None:
    view = mounted({"x": special(kind)})
    before = view.stat("x")
    view.rename("x", "y")
    after = view.stat("y")
    assert after._replace(ctime_ns=0, atime_ns=0) == before._replace(ctime_ns=0, atime_ns=0)
    real = on_disk(view, "y")
    assert (real.st_mode, real.st_uid, real.st_gid, real.st_rdev, real.st_mtime_ns) == (
        before.mode,
        11,
        22,
        before.rdev,
        MTIME,
    )
    if kind == "symlink":
        assert view.readlink("y") == b"some/target"


def test_directories_above_are_copied_up_with_their_attributes(mounted: Mount) -> None:
    acl = {"user.k": b"v"}
    view = mounted({"d": directory({"e": directory({"a": "1"}, mode=0o1777)}, mode=0o2750, uid=3, gid=4, xattrs=acl)})
    view.append("d/e/a", b"2")
    real = on_disk(view, "d")
    assert (stat.S_IMODE(real.st_mode), real.st_uid, real.st_gid) == (0o2750, 3, 4)
    assert os.getxattr(view.upper("d"), "user.k") == b"v"
    assert stat.S_IMODE(on_disk(view, "d/e").st_mode) == 0o1777


def test_copy_up_leaves_the_directorys_times_alone(mounted: Mount) -> None:
    view = mounted({"d/e": {"a": "1", "b": "2"}})
    view.append("d/e/a", b"x")
    for path in ("", "d", "d/e"):
        assert view.stat(path).mtime_ns == MTIME, path
        assert on_disk(view, path).st_mtime_ns == MTIME, path
    view.chmod("d/e/b", 0o600)
    assert view.stat("d/e").mtime_ns == MTIME


def make_sparse(mounted: Mount) -> Subject:
    view: Subject = mounted({"holes": "", "other": ""})
    path = view.layers.lowers[0] / "holes"
    view.stop()
    with path.open("r+b") as real:
        real.seek(3 << 20)
        real.write(b"middle")
        real.truncate(8 << 20)
    view.start()
    return view


def test_copy_keeps_holes(mounted: Mount) -> None:
    view = make_sparse(mounted)
    view.append("holes", b"end")
    assert on_disk(view, "holes").st_size == (8 << 20) + 3
    # The kernel copies in pieces of one megabyte, holes inside a piece included.
    assert on_disk(view, "holes").st_blocks * 512 < 2 << 20
    data = view.upper("holes").read_bytes()
    assert data[3 << 20 : (3 << 20) + 6] == b"middle"
    assert data.strip(b"\0") == b"middle" + bytes((5 << 20) - 6) + b"end"


def test_reader_from_before_sees_the_data_written_after(mounted: Mount) -> None:
    view = mounted({"a": "old"})
    reader = view.open("a")
    assert reader.read() == b"old"
    view.append("a", b" and new")
    seen = reader.read()
    reader.close()
    # The kernel's overlayfs learned this in Linux 6.13; before, a reader kept the lower file.
    assert seen == b"old and new" or (view.kind == "kernel" and seen == b"old")


def test_copied_up_file_is_the_same_file(mounted: Mount) -> None:
    view = mounted({"a": "1", "d/b": "2"})
    before = view.stat("a").ino, view.stat("d/b").ino, view.stat("d").ino
    view.append("a", b"x")
    view.append("d/b", b"x")
    assert (view.stat("a").ino, view.stat("d/b").ino, view.stat("d").ino) == before
    view.remount()
    assert (view.stat("a").ino, view.stat("d/b").ino, view.stat("d").ino) == before


def test_inode_number_survives_rename_and_remount(mounted: Mount) -> None:
    view = mounted({"a": "1", "d/b": "2", "e/": None})
    before = view.stat("a").ino, view.stat("d").ino
    view.rename("a", "e/a")
    view.rename("d", "e/d")
    assert (view.stat("e/a").ino, view.stat("e/d").ino) == before
    assert dict(view.listing("e")) == {b"a": before[0], b"d": before[1]}
    view.remount()
    assert (view.stat("e/a").ino, view.stat("e/d").ino) == before
    assert dict(view.listing("e")) == {b"a": before[0], b"d": before[1]}


def test_inode_number_survives_link_and_remount(mounted: Mount) -> None:
    view = mounted({"a": "1", "e/": None})
    before = view.stat("a").ino
    view.link("a", "e/b")
    assert view.stat("e/b").ino == before
    view.remount()
    assert (view.stat("a").ino, view.stat("e/b").ino) == (before, before)
    assert dict(view.listing("e")) == {b"b": before}


def test_links_made_in_the_view_are_one_file(mounted: Mount) -> None:
    view = mounted({"a": "1", "d/": None})
    view.link("a", "b")
    view.link("b", "d/c")
    view.append("d/c", b"2")
    view.chmod("b", 0o600)
    for path in ("a", "b", "d/c"):
        assert view.read(path) == b"12"
        assert view.stat(path).mode == stat.S_IFREG | 0o600
        assert view.stat(path).nlink == 3
    view.unlink("a")
    assert view.stat("b").nlink == 2
    view.remount()
    view.append("b", b"3")
    assert view.read("d/c") == b"123"


def test_two_writers_at_once_share_one_copy(mounted: Mount) -> None:
    view = mounted({"a": b"x" * 1_000_000})
    start = threading.Barrier(4)

    def write(number: int) -> None:
        start.wait()
        view.write("a", b"%d" % number, flags=0, offset=number)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert view.read("a") == b"0123" + b"x" * 999_996
    assert view.work_is_empty()


def test_attributes_of_the_overlay_in_a_lower_are_not_copied(mounted: Mount) -> None:
    view = mounted({"d/x": ""}, {"d": builders.OPAQUE({"a": "1"})})
    view.append("d/a", b"2")
    assert not view.is_opaque("d")
    assert view.names("d") == [b"a"]


@pytest.mark.parametrize("where", ["lower", "upper"])
@pytest.mark.parametrize("data", ["", "data"])
def test_truncate_to_the_present_size_does_to_the_time_what_the_uppers_filesystem_does(
    mounted: Mount, data: str, where: str
) -> None:
    view = mounted({"a": data} if where == "lower" else {}, upper={"a": data} if where == "upper" else {})
    assert view.layers.work is not None
    beside = view.layers.work / "beside"
    beside.write_text(data)
    os.utime(beside, ns=(MTIME, MTIME))
    os.truncate(beside, len(data))
    kept = beside.stat().st_mtime_ns == MTIME
    beside.unlink()
    view.truncate("a", len(data))
    assert (view.stat("a").mtime_ns == MTIME) == kept
