"""Do files belong to whom the options say, in the view and on disk?

The meaning is fuse-overlayfs's, except that it stores the overflow id for what has no mapping.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable

import pytest

from overlayfs_demo.mounts.options import MountOptions, parse
from overlayfs_demo.overlay.stack import Stack
from tests.builders import file
from tests.contract.conftest import Mount
from tests.contract.marks import only
from tests.contract.subjects import Fronted, Subject

fronts = only(["kernel-front", "fusepy-front"], "the options are ours")
Owners = Callable[..., Subject]
LAYER = {"low": file("1", uid=100000, gid=100000), "other": file("2", uid=5, gid=6)}


@pytest.fixture
def owned(mounted: Mount, monkeypatch: pytest.MonkeyPatch) -> Owners:
    """`owned("squash_to_root")`: a view with these options over `LAYER`."""

    def mount(options: str) -> Subject:
        ids = parse(["lowerdir=x", options]).stack.ids

        def with_ids(self: Fronted, stack: Stack) -> MountOptions:
            return MountOptions(Stack(stack.lowers, stack.upper, stack.work, ids=ids), self.front)

        monkeypatch.setattr(Fronted, "options", with_ids)
        view = mounted(LAYER)
        assert isinstance(view, Subject)
        return view

    return mount


def owner(view: Subject, path: str) -> tuple[int, int]:
    status = view.stat(path)
    return status.uid, status.gid


def on_disk(view: Subject, path: str) -> tuple[int, int]:
    status = os.lstat(view.upper(path))
    return status.st_uid, status.st_gid


@fronts
@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ("squash_to_root", (0, 0)),
        ("squash_to_uid=33,squash_to_gid=34", (33, 34)),
        ("squash_to_gid=34,squash_to_root", (0, 34)),
        ("squash_to_root,squash_to_uid=33", (33, 0)),
    ],
)
def test_squashed_ids_are_for_show(owned: Owners, options: str, shown: tuple[int, int]) -> None:
    view = owned(options)
    view.chmod("", 0o777)
    view.run_as(7, 0o022, lambda: view.write("seven", b"x"))
    view.chown("other", 9, 10)
    assert {owner(view, path) for path in ("low", "other", "seven")} == {shown}
    assert {name for name, _ in view.listing()} == {b"low", b"other", b"seven"}
    assert (on_disk(view, "seven"), on_disk(view, "other")) == ((7, 7), (9, 10))
    view.append("low", b"2")
    assert on_disk(view, "low") == (100000, 100000)


@fronts
def test_mapped_ids_are_translated_both_ways(owned: Owners) -> None:
    view = owned("uidmapping=100000:0:1000:5:2000:1,gidmapping=100000:0:1000")
    assert (owner(view, "low"), owner(view, "other")) == ((0, 0), (2000, 65534))
    view.write("new", b"by root")
    view.mkdir("dir")
    view.symlink("x", "link")
    assert {on_disk(view, path) for path in ("new", "dir", "link")} == {(100000, 100000)}
    assert {owner(view, path) for path in ("new", "dir", "link")} == {(0, 0)}
    view.chown("new", 17, 18)
    assert (on_disk(view, "new"), owner(view, "new")) == ((100017, 100018), (17, 18))
    view.chown("other", -1, 3)
    assert (on_disk(view, "other"), owner(view, "other")) == ((5, 100003), (2000, 3))
    view.remount()
    assert owner(view, "new") == (17, 18)


@fronts
def test_what_has_no_mapping_cannot_be_given(owned: Owners) -> None:
    view = owned("uidmapping=100000:0:1000,gidmapping=100000:0:1000")
    for uid, gid in ((1000, -1), (-1, 5000)):
        with pytest.raises(OSError) as caught:
            view.chown("low", uid, gid)
        assert caught.value.errno == errno.EINVAL
    view.mkdir("open")
    view.chmod("open", 0o777)

    def make() -> None:
        with pytest.raises(OSError) as caught:
            view.write("open/x", b"")
        assert caught.value.errno == errno.EOVERFLOW

    view.run_as(5000, 0o022, make)


@fronts
def test_lists_of_access_rights_are_translated(owned: Owners) -> None:
    view = owned("uidmapping=100000:0:1000,gidmapping=200000:0:1000")

    def acl(user: int, group: int) -> bytes:
        entries = [(1, 6, -1), (2, 4, user), (4, 4, -1), (8, 4, group), (16, 4, -1), (32, 0, -1)]
        return struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)

    view.set_xattr("low", "system.posix_acl_access", acl(7, 8))
    assert os.getxattr(view.upper("low"), "system.posix_acl_access") == acl(100007, 200008)
    assert view.xattr("low", "system.posix_acl_access") == acl(7, 8)
