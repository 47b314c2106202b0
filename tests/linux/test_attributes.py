"""Do owner, mode, extended attributes and times all hold in the end, whatever each of the calls undoes?"""

from __future__ import annotations

import errno
import os
import stat
import struct
from pathlib import Path

import pytest

from overlayfs_demo.linux import attributes, xattr
from overlayfs_demo.linux.attributes import Attributes

OWNER = (4711, 4712)
# struct vfs_cap_data (capabilities(7)) that gives CAP_NET_RAW.
CAPABILITY = struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0)
# A POSIX ACL (linux/posix_acl_xattr.h) that gives owner, group and others rw-.
ACL = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", tag, 0o6, 0xFFFFFFFF) for tag in (0x01, 0x04, 0x20))

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: owners, capabilities")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "f"
    path.write_bytes(b"data")
    return path


@pytest.mark.parametrize("by_descriptor", [True, False])
def test_set_id_bits_capability_and_times_all_hold(file: Path, by_descriptor: bool) -> None:
    wanted = Attributes(OWNER, 0o6755, [("security.capability", CAPABILITY), (b"user.k", b"v")], (5, 6))
    place = os.open(file, os.O_RDONLY) if by_descriptor else os.fsencode(file)
    try:
        attributes.apply(wanted, place)
    finally:
        if isinstance(place, int):
            os.close(place)
    status = file.stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (*OWNER, 0o6755)
    assert (status.st_mtime_ns, status.st_atime_ns) == (6, 5)
    assert os.getxattr(file, "security.capability") == CAPABILITY
    assert os.getxattr(file, "user.k") == b"v"


def test_mode_holds_beside_an_access_list_that_says_something_else(file: Path) -> None:
    try:
        attributes.apply(Attributes(mode=0o640, xattrs=[("system.posix_acl_access", ACL)]), os.fsencode(file))
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        pytest.skip("this filesystem has no ACLs")
    assert stat.S_IMODE(file.stat().st_mode) == 0o640


def test_ordinary_owner_can_set_attributes_of_a_file_that_becomes_read_only(file: Path) -> None:
    os.chown(file, *OWNER)
    fd = os.open(file, os.O_RDONLY)
    os.seteuid(OWNER[0])
    try:
        attributes.apply(Attributes(mode=0o444, xattrs=[("user.k", b"v")]), fd)
    finally:
        os.seteuid(0)
        os.close(fd)
    assert os.getxattr(file, "user.k") == b"v"
    assert stat.S_IMODE(file.stat().st_mode) == 0o444


def test_symbolic_link_gets_owner_and_times_and_its_target_nothing(file: Path) -> None:
    before = file.stat()
    like, link = file.with_name("like"), file.with_name("link")
    for name in (like, link):
        name.symlink_to(file)
    os.chown(like, *OWNER, follow_symlinks=False)
    os.utime(like, ns=(5, 6), follow_symlinks=False)
    attributes.apply(Attributes.of(like.lstat()), os.fsencode(link))
    status = link.lstat()
    assert (status.st_uid, status.st_gid, status.st_mtime_ns) == (*OWNER, 6)
    assert file.stat() == before


def test_attribute_that_cannot_be_set_is_lost_only_where_the_caller_allows_it(file: Path) -> None:
    wanted = Attributes(mode=0o600, xattrs=[("nonsense.k", b"1"), ("user.k", b"2")])
    with pytest.raises(OSError) as failed:
        attributes.apply(wanted, os.fsencode(file))
    assert failed.value.errno == errno.EOPNOTSUPP
    asked = []

    def may_lose(name: str | bytes, error: OSError) -> bool:
        asked.append((name, error.errno))
        return True

    attributes.apply(wanted, os.fsencode(file), may_lose)
    assert asked == [("nonsense.k", errno.EOPNOTSUPP)]
    assert xattr.names(os.fsencode(file)) == ["user.k"]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
