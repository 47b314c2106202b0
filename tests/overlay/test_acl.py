"""Do new objects inherit a default ACL as acl(5) says?"""

from __future__ import annotations

import stat
import struct

import pytest

from overlayfs_demo.overlay.acl import ACCESS, DEFAULT, inherit

USER_OBJ, USER, GROUP_OBJ, MASK, OTHER = 1, 2, 4, 16, 32
NO_ID = 0xFFFFFFFF


def acl(*entries: tuple[int, int, int]) -> bytes:
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


MINIMAL = acl((USER_OBJ, 7, NO_ID), (GROUP_OBJ, 5, NO_ID), (OTHER, 0, NO_ID))
EXTENDED = acl((USER_OBJ, 6, NO_ID), (USER, 7, 99), (GROUP_OBJ, 5, NO_ID), (MASK, 7, NO_ID), (OTHER, 4, NO_ID))


@pytest.mark.parametrize(("mode", "expected"), [(0o666, 0o640), (0o777, 0o750), (0o600, 0o600), (0o007, 0o000)])
def test_minimal_acl_limits_the_mode_and_leaves_no_attribute(mode: int, expected: int) -> None:
    assert inherit(MINIMAL, stat.S_IFREG | mode) == (stat.S_IFREG | expected, ())


def test_directory_inherits_the_default_acl_itself() -> None:
    mode, xattrs = inherit(MINIMAL, stat.S_IFDIR | 0o777)
    assert mode == stat.S_IFDIR | 0o750
    assert xattrs == ((DEFAULT, MINIMAL),)


def test_mask_takes_the_place_of_the_group() -> None:
    mode, xattrs = inherit(EXTENDED, stat.S_IFREG | 0o646)
    assert mode == stat.S_IFREG | 0o644
    expected = acl((USER_OBJ, 6, NO_ID), (USER, 7, 99), (GROUP_OBJ, 5, NO_ID), (MASK, 4, NO_ID), (OTHER, 4, NO_ID))
    assert xattrs == ((ACCESS, expected),)


def test_set_id_and_sticky_bits_are_kept() -> None:
    assert inherit(MINIMAL, stat.S_IFDIR | 0o3777)[0] == stat.S_IFDIR | 0o3750
