"""What do chmod, chown, utimensat and the extended attributes do through the view?"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from typing import Any

import pytest

from overlayfs_demo.linux import xattr
from tests.builders import directory, file, symlink
from tests.contract.conftest import Mount
from tests.contract.marks import kernel_since

NS = 1_500_000_000_123_456_789

escaping = kernel_since(6, 7, "escaping of the overlay's attributes")


@pytest.mark.parametrize("path", ["lower", "upper", "lowdir", "updir"])
def test_mode_owner_and_times_are_set_and_kept(mounted: Mount, path: str) -> None:
    view = mounted({"lower": "1", "lowdir/x": ""}, upper={"upper": "1", "updir/x": ""})
    view.chown(path, 123, 456)
    view.chmod(path, 0o2751)
    view.utime(path, NS, NS + 1)
    for _ in range(2):
        status = view.stat(path)
        assert (stat.S_IMODE(status.mode), status.uid, status.gid) == (0o2751, 123, 456)
        assert (status.atime_ns, status.mtime_ns) == (NS, NS + 1)
        view.remount()


def test_owner_and_times_of_a_lower_symlink(mounted: Mount) -> None:
    view = mounted({"l": symlink("a"), "a": "1"})
    view.chown("l", 5, 6)
    view.utime("l", NS, NS)
    status = view.stat("l")
    assert (status.uid, status.gid, status.mtime_ns) == (5, 6, NS)
    assert view.stat("a").uid == 0
    assert view.upper_names() == ["l"]


def test_times_before_the_epoch(mounted: Mount) -> None:
    view = mounted({"a": "1"})
    view.utime("a", -5_500_000_000, -1)
    assert (view.stat("a").atime_ns, view.stat("a").mtime_ns) == (-5_500_000_000, -1)


SECOND = 1_000_000_000


@pytest.mark.parametrize("seconds", [-1, -(1 << 31) - 1, -(1 << 40), -(1 << 63), 1 << 34, 1 << 40, (1 << 63) - 1])
def test_any_time_becomes_what_the_uppers_filesystem_can_hold(mounted: Mount, seconds: int) -> None:
    view = mounted({"a": "1", "d/": None, "l": symlink("a")}, upper={"other": "2"})
    times = seconds * SECOND + 5, seconds * SECOND + SECOND - 1
    os.utime(view.upper("other"), ns=times)
    held = view.upper("other").stat()
    for path in ("a", "d", "l"):
        view.utime(path, *times)
        status = view.stat(path)
        assert (status.atime_ns, status.mtime_ns) == (held.st_atime_ns, held.st_mtime_ns), path


def test_chown_of_one_id_keeps_the_other(mounted: Mount) -> None:
    view = mounted({"a": file("1", uid=7, gid=8)})
    view.run_as(0, 0o022, lambda: view.set_xattr("a", "user.x", b""))
    status = view.stat("a")
    assert (status.uid, status.gid) == (7, 8)


def test_attributes_of_the_root_can_be_changed(mounted: Mount) -> None:
    view = mounted({"a": "1"})
    view.chmod("", 0o711)
    view.set_xattr("", "user.k", b"v")
    view.remount()
    assert stat.S_IMODE(view.stat("").mode) == 0o711
    assert view.xattr("", "user.k") == b"v"


# --- extended attributes --------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["a", "d"])
def test_xattrs_are_set_listed_read_and_removed(mounted: Mount, path: str) -> None:
    view = mounted({"a": "1", "d/": None})
    view.set_xattr(path, "user.one", b"1")
    view.set_xattr(path, "trusted.two", b"\0" * 300)
    view.set_xattr(path, "user.empty", b"")
    assert view.xattrs(path) == ["trusted.two", "user.empty", "user.one"]
    assert view.xattr(path, "trusted.two") == b"\0" * 300
    view.remove_xattr(path, "user.one")
    view.remount()
    assert view.xattrs(path) == ["trusted.two", "user.empty"]


def test_lower_xattrs_are_shown_and_removing_one_keeps_the_others(mounted: Mount) -> None:
    view = mounted({"a": file("1", xattrs={"user.a": b"1", "user.b": b"2"})})
    assert view.xattrs("a") == ["user.a", "user.b"]
    view.remove_xattr("a", "user.a")
    assert view.xattrs("a") == ["user.b"]
    assert xattr.get(os.fsencode(view.layers.lowers[0] / "a"), "user.a") == b"1"


def test_missing_xattr_is_enodata_and_copies_nothing_up(mounted: Mount) -> None:
    view = mounted({"a": "1"})
    for call in (view.xattr, view.remove_xattr):
        with pytest.raises(OSError, match="No data available"):
            call("a", "user.none")
    assert view.upper_names() == []


def test_create_and_replace_flags_of_setxattr(mounted: Mount) -> None:
    view = mounted({"a": file("1", xattrs={"user.k": b"v"})})
    with pytest.raises(FileExistsError):
        view.set_xattr("a", "user.k", b"w", os.XATTR_CREATE)
    with pytest.raises(OSError, match="No data available"):
        view.set_xattr("a", "user.none", b"w", os.XATTR_REPLACE)
    view.set_xattr("a", "user.k", b"w", os.XATTR_REPLACE)
    assert view.xattr("a", "user.k") == b"w"


@escaping
def test_the_overlays_own_attributes_are_hidden(mounted: Mount) -> None:
    view = mounted({"d/low": "", "moved/x": ""}, upper={"d": directory(xattrs={"trusted.overlay.opaque": b"y"})})
    view.rename("moved", "d/moved")
    view.append("d/moved/x", b"1")
    for path in ("d", "d/moved", "d/moved/x", ""):
        assert view.xattrs(path) == []
        with pytest.raises(OSError, match="No data available"):
            view.xattr(path, "trusted.overlay.opaque")


@escaping
def test_a_users_own_overlay_attribute_is_stored_escaped(mounted: Mount) -> None:
    view = mounted({"d/low": ""})
    view.set_xattr("d", "trusted.overlay.opaque", b"y")
    assert view.xattrs("d") == ["trusted.overlay.opaque"]
    assert view.xattr("d", "trusted.overlay.opaque") == b"y"
    assert not view.is_opaque("d")
    assert xattr.get(os.fsencode(view.upper("d")), "trusted.overlay.overlay.opaque") == b"y"
    view.remount()
    assert view.names("d") == [b"low"]
    view.remove_xattr("d", "trusted.overlay.opaque")
    assert view.xattrs("d") == []


@escaping
def test_escaped_attributes_survive_a_copy_up(mounted: Mount) -> None:
    view = mounted({"a": file("1", xattrs={"trusted.overlay.overlay.metacopy": b"x"})})
    assert view.xattrs("a") == ["trusted.overlay.metacopy"]
    view.append("a", b"2")
    assert view.xattr("a", "trusted.overlay.metacopy") == b"x"


def test_trusted_attributes_are_not_listed_to_users(mounted: Mount) -> None:
    view = mounted({"a": file("1", xattrs={"trusted.k": b"v", "user.k": b"v"})})

    def check() -> None:
        assert view.xattrs("a") == ["user.k"]

    view.run_as(12345, 0o022, check)
    assert view.xattrs("a") == ["trusted.k", "user.k"]


# --- read-only ------------------------------------------------------------------------------------

MUTATIONS: dict[str, Callable[[Any], object]] = {
    "write": lambda view: view.open("a", os.O_WRONLY),
    "truncating open": lambda view: view.open("a", os.O_WRONLY | os.O_TRUNC),
    "create": lambda view: view.open("new", os.O_WRONLY | os.O_CREAT),
    "mkdir": lambda view: view.mkdir("new"),
    "mknod": lambda view: view.mknod("new", stat.S_IFIFO | 0o600),
    "symlink": lambda view: view.symlink("x", "new"),
    "link": lambda view: view.link("a", "new"),
    "unlink": lambda view: view.unlink("a"),
    "rmdir": lambda view: view.rmdir("d"),
    "rename": lambda view: view.rename("a", "b"),
    "rename onto": lambda view: view.rename("a", "c"),
    "truncate": lambda view: view.truncate("a", 0),
    "chmod": lambda view: view.chmod("a", 0o600),
    "chmod of directory": lambda view: view.chmod("d", 0o700),
    "chown": lambda view: view.chown("a", 1, 1),
    "utime": lambda view: view.utime("a", 1, 1),
    "setxattr": lambda view: view.set_xattr("a", "user.k", b"v"),
    "removexattr": lambda view: view.remove_xattr("a", "user.own"),
}


def test_every_change_without_an_upper_is_erofs(mounted: Mount) -> None:
    view = mounted({"a": file("1", xattrs={"user.own": b"1"}), "c": "2", "d/": None}, writable=False)
    for name, mutate in MUTATIONS.items():
        with pytest.raises(OSError, match="Read-only file system"):
            mutate(view)
            pytest.fail(name)
    assert view.names() == [b"a", b"c", b"d"]
    assert view.read("a") == b"1"


def test_view_without_an_upper_merges_and_reads(mounted: Mount) -> None:
    view = mounted({"d/a": "1"}, {"d/b": "2"}, writable=False)
    assert view.names("d") == [b"a", b"b"]
    assert view.read("d/a") == b"1"
    assert view.statvfs().f_blocks > 0
