"""Whose are new files, and who may do what?"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Callable
from typing import Any

import pytest

from tests.builders import directory, file, hardlink
from tests.contract.conftest import Mount
from tests.contract.marks import differs, only
from tests.contract.subjects import USER, Subject

mount_points = only(
    ["kernel-front", "fusepy-front", "kernel"], "permissions are checked by the kernel, before it asks the engine"
)

READ, WRITE, EXECUTE = 4, 2, 1
USER_OBJ, NAMED_USER, GROUP_OBJ, MASK, OTHER = 1, 2, 4, 16, 32
NOBODY_ID = 0xFFFFFFFF


def acl(*entries: tuple[int, int] | tuple[int, int, int]) -> bytes:
    packed = [struct.pack("<HHI", *entry[:2], entry[2] if len(entry) == 3 else NOBODY_ID) for entry in entries]
    return struct.pack("<I", 2) + b"".join(packed)


def make_all(view: Subject, above: str) -> None:
    view.write(f"{above}/file", b"", os.O_CREAT | os.O_EXCL)
    view.mkdir(f"{above}/dir", 0o777)
    view.mknod(f"{above}/fifo", stat.S_IFIFO | 0o666)
    view.symlink("x", f"{above}/symlink")


NEW = ("file", "dir", "fifo", "symlink")


@pytest.mark.parametrize("uid", [0, USER])
def test_new_files_belong_to_who_made_them(mounted: Mount, uid: int) -> None:
    view = mounted({"d": directory(mode=0o777)})
    view.run_as(uid, 0o022, lambda: make_all(view, "d"))
    for name in NEW:
        status = view.stat(f"d/{name}")
        assert (status.uid, status.gid) == (uid, uid), name
        real = os.lstat(view.upper(f"d/{name}"))
        assert (real.st_uid, real.st_gid) == (uid, uid), name


@pytest.mark.parametrize("uid", [0, USER])
@pytest.mark.parametrize("umask", [0o000, 0o027, 0o077])
def test_umask_applies_to_new_files(mounted: Mount, umask: int, uid: int) -> None:
    view = mounted({"d": directory(mode=0o777)})
    view.run_as(uid, umask, lambda: make_all(view, "d"))
    assert stat.S_IMODE(view.stat("d/file").mode) == 0o644 & ~umask
    assert stat.S_IMODE(view.stat("d/dir").mode) == 0o777 & ~umask
    assert stat.S_IMODE(view.stat("d/fifo").mode) == 0o666 & ~umask
    assert stat.S_IMODE(view.stat("d/symlink").mode) == 0o777


@pytest.mark.parametrize("uid", [0, USER])
def test_files_in_a_setgid_directory_get_its_group(mounted: Mount, uid: int) -> None:
    view = mounted({"d": directory(mode=0o2777, gid=77)})
    view.run_as(uid, 0o022, lambda: make_all(view, "d"))
    for name in NEW:
        assert (view.stat(f"d/{name}").uid, view.stat(f"d/{name}").gid) == (uid, 77), name
    assert view.stat("d/dir").mode & stat.S_ISGID
    assert not view.stat("d/file").mode & stat.S_ISGID


@differs("fusepy-front", "the kernel applies the umask before it asks libfuse 2")
@pytest.mark.parametrize("uid", [0, USER])
def test_default_acl_takes_the_place_of_the_umask(mounted: Mount, uid: int) -> None:
    view = mounted({"d": directory(mode=0o777)})
    view.set_default_acl("d", acl((USER_OBJ, 7), (GROUP_OBJ, 6), (OTHER, 0)))
    view.run_as(uid, 0o077, lambda: make_all(view, "d"))
    assert stat.S_IMODE(view.stat("d/file").mode) == (0o600 if view.differs else 0o640)
    assert stat.S_IMODE(view.stat("d/dir").mode) == (0o700 if view.differs else 0o760)
    assert "system.posix_acl_default" in view.xattrs("d/dir")
    assert "system.posix_acl_access" not in view.xattrs("d/file")


def test_default_acl_with_named_users_is_inherited(mounted: Mount) -> None:
    view = mounted({"d": directory(mode=0o777)})
    given = acl((USER_OBJ, 7), (NAMED_USER, 7, 99), (GROUP_OBJ, 5), (MASK, 7), (OTHER, 5))
    view.set_default_acl("d", given)
    view.run_as(0, 0o022, lambda: make_all(view, "d"))
    expected = acl((USER_OBJ, 6), (NAMED_USER, 7, 99), (GROUP_OBJ, 5), (MASK, 4), (OTHER, 4))
    assert view.xattr("d/file", "system.posix_acl_access") == expected
    assert stat.S_IMODE(view.stat("d/file").mode) == 0o644
    assert view.xattr("d/dir", "system.posix_acl_default") == given


def test_new_files_in_place_of_whiteouts_belong_to_who_made_them(mounted: Mount) -> None:
    view = mounted({"d": directory(dict.fromkeys(NEW, ""), mode=0o2777, gid=77)})
    for name in NEW:
        view.unlink(f"d/{name}")
    view.run_as(USER, 0o027, lambda: make_all(view, "d"))
    for name in NEW:
        assert (view.stat(f"d/{name}").uid, view.stat(f"d/{name}").gid) == (USER, 77), name
    assert stat.S_IMODE(view.stat("d/file").mode) == 0o640
    assert stat.S_IMODE(view.stat("d/dir").mode) == 0o2750


@mount_points
def test_others_files_are_protected(mounted: Mount) -> None:
    view = mounted({"secret": file("1", mode=0o600), "d/": None, "tmp": directory({"roots": ""}, mode=0o1777)})
    refused: list[Callable[[], Any]] = [
        lambda: view.read("secret"),
        lambda: view.append("secret", b"x"),
        lambda: view.write("d/new", b""),
        lambda: view.mkdir("d/new"),
        lambda: view.rename("d", "tmp/d"),
        lambda: view.unlink("tmp/roots"),
        lambda: view.chmod("d", 0o777),
        lambda: view.chown("d", USER, USER),
        lambda: view.set_xattr("d", "user.k", b"v"),
        lambda: view.set_xattr("d", "trusted.k", b"v"),
        lambda: view.utime("secret", 1, 1),
        lambda: view.link("secret", "tmp/secret"),
    ]

    def check() -> None:
        for number, call in enumerate(refused):
            with pytest.raises(PermissionError):
                call()
                pytest.fail(f"call {number} was allowed")

    view.run_as(USER, 0o022, check)
    assert view.upper_names() == []


def test_a_users_own_lower_file_can_be_changed_by_its_owner(mounted: Mount) -> None:
    view = mounted({"d": directory({"mine": file("1", mode=0o600, uid=USER, gid=USER)}, uid=USER, gid=USER)})

    def change() -> None:
        view.append("d/mine", b"2")
        view.chmod("d/mine", 0o640)
        view.rename("d/mine", "d/still")

    view.run_as(USER, 0o022, change)
    status = view.stat("d/still")
    assert (status.uid, status.gid, stat.S_IMODE(status.mode)) == (USER, USER, 0o640)
    assert view.read("d/still") == b"12"


@mount_points
def test_write_by_a_user_drops_set_id_bits(mounted: Mount) -> None:
    view = mounted({"a": file("1", mode=0o6777), "b": file("1", mode=0o6777), "c": file("1", mode=0o6777)})

    def change() -> None:
        view.append("a", b"2")
        view.truncate("b", 0)

    view.run_as(USER, 0o022, change)
    view.append("c", b"2")
    assert stat.S_IMODE(view.stat("a").mode) == 0o777
    assert stat.S_IMODE(view.stat("b").mode) == 0o777
    assert stat.S_IMODE(view.stat("c").mode) == 0o6777


@mount_points
def test_write_drops_file_capabilities(mounted: Mount) -> None:
    capability = bytes.fromhex("0100000200040000000000000000000000000000")
    view = mounted({"a": file("1", mode=0o777, xattrs={"security.capability": capability})})
    view.append("a", b"2")
    assert view.xattrs("a") == []


@mount_points
def test_chown_drops_set_id_bits(mounted: Mount) -> None:
    view = mounted({"a": file("1", mode=0o6755)})
    view.chown("a", 5, 6)
    assert stat.S_IMODE(view.stat("a").mode) == 0o755


@differs("fusepy-front", "the kernel checks the mode alone when it asks libfuse 2")
@mount_points
def test_access_acl_admits_the_user_it_names(mounted: Mount) -> None:
    view = mounted({"a": file("1", mode=0o600)})
    view.set_xattr(
        "a",
        "system.posix_acl_access",
        acl((USER_OBJ, 6), (NAMED_USER, READ, USER), (GROUP_OBJ, 0), (MASK, READ), (OTHER, 0)),
    )
    assert stat.S_IMODE(view.stat("a").mode) == 0o640

    def check() -> None:
        if view.differs:
            with pytest.raises(PermissionError):
                view.read("a")
        else:
            assert view.read("a") == b"1"
        with pytest.raises(PermissionError):
            view.append("a", b"2")

    view.run_as(USER, 0o022, check)


@pytest.mark.parametrize("name", ["system.posix_acl_access", "system.posix_acl_default"])
def test_removing_a_list_that_is_not_there_succeeds_in_the_upper(mounted: Mount, name: str) -> None:
    view = mounted({}, upper={"d/": None})
    view.remove_xattr("d", name)
    assert view.xattrs("d") == []


@only(["kernel-front", "kernel"], "libfuse 2 is told the new mode, by an older rule; the engine is told to drop bits")
@pytest.mark.parametrize(("group", "kept"), [(USER, True), (0, False)])
def test_set_gid_without_execution_is_kept_for_members_only(mounted: Mount, group: int, kept: bool) -> None:
    view = mounted({}, upper={"a": file("1", mode=0o2666, gid=group)})
    view.run_as(USER, 0, lambda: view.write("a", b"2", flags=0))
    assert bool(view.stat("a").mode & stat.S_ISGID) == kept


@pytest.mark.parametrize(("mode", "after"), [(0o2644, 0o2644), (0o2755, 0o755), (0o4755, 0o755)])
def test_chown_by_root_keeps_the_set_gid_bit_only_without_execution(mounted: Mount, mode: int, after: int) -> None:
    view = mounted({}, upper={"a": file("1", mode=mode)})
    view.chown("a", 0, 777)
    assert stat.S_IMODE(view.stat("a").mode) == after


@only(["kernel-front", "kernel"], "libfuse 2 knows no such flag, and the engine is only told to set the list")
@pytest.mark.parametrize(("name", "kept"), [("system.posix_acl_default", True), ("system.posix_acl_access", False)])
def test_list_set_by_a_non_member_drops_the_set_gid_bit_if_it_is_the_access_list(
    mounted: Mount, name: str, kept: bool
) -> None:
    view = mounted({}, upper={"d": directory(mode=0o2775, uid=USER)})
    rights = acl((USER_OBJ, 7), (GROUP_OBJ, 7), (OTHER, 5))
    view.run_as(USER, 0, lambda: view.set_xattr("d", name, rights))
    assert bool(view.stat("d").mode & stat.S_ISGID) == kept


def test_acl_of_the_workdir_reaches_nothing_in_the_view(mounted: Mount) -> None:
    view = mounted({"d": directory({"file": file("1", mode=0o640)}, mode=0o750), "gone": "1", "deep/er/er": "1"})
    given = acl((USER_OBJ, 7), (NAMED_USER, 7, 99), (GROUP_OBJ, 7), (MASK, 7), (OTHER, 7))
    view.stop()
    for path in (view.layers.work, view.layers.work / "work"):
        os.setxattr(path, "system.posix_acl_default", given)
        path.chmod(0o2777)
    view.start()
    view.append("d/file", b"+")
    view.chmod("deep/er", 0o700)
    view.unlink("gone")
    view.write("gone", b"", os.O_CREAT | os.O_EXCL)
    assert view.xattrs("d") == view.xattrs("d/file") == view.xattrs("deep") == view.xattrs("gone") == []
    assert [view.stat(path).mode & 0o7777 for path in ("d", "d/file", "deep", "gone")] == [0o750, 0o640, 0o755, 0o644]
    assert [view.stat(path).gid for path in ("d", "gone")] == [0, 0]


def test_acl_of_the_directory_above_the_workdir_reaches_nothing_in_the_view(mounted: Mount) -> None:
    view = mounted({"d": directory({"file": "1"}, mode=0o750), "l1": "1", "l2": hardlink("l1")})
    view.stop()
    view.layers.work.joinpath("work").rmdir()
    given = acl((USER_OBJ, 7), (NAMED_USER, 7, 99), (GROUP_OBJ, 7), (MASK, 7), (OTHER, 7))
    os.setxattr(view.layers.work, "system.posix_acl_default", given)
    view.start()
    view.append("d/file", b"+")
    view.append("l2", b"+")
    assert view.xattrs("d") == view.xattrs("d/file") == view.xattrs("l1") == view.xattrs("l2") == []
