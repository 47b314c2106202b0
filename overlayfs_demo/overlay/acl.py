"""The access control list that a new file inherits from its directory.

POSIX.1e draft 17 default ACLs, in the xattr format of include/uapi/linux/posix_acl_xattr.h. The rule
is in acl(5), "Object creation and default ACLs": where there is a default ACL, the umask does not apply.
"""

from __future__ import annotations

import stat
import struct

ACCESS = "system.posix_acl_access"
DEFAULT = "system.posix_acl_default"

HEAD = struct.Struct("<I")
ENTRY = struct.Struct("<HHI")
_USER_OBJ, USER, _GROUP_OBJ, GROUP, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20


def inherit(default: bytes, mode: int) -> tuple[int, tuple[tuple[str, bytes], ...]]:
    """Return the mode and ACL attributes of an object created with `mode` in a directory with this default ACL."""
    entries = {index: list(entry) for index, entry in enumerate(ENTRY.iter_unpack(default[HEAD.size :]))}
    by_tag = {entry[0]: entry for entry in entries.values()}
    group_class = by_tag.get(_MASK) or by_tag[_GROUP_OBJ]
    permissions = stat.S_IMODE(mode)
    for entry, shift in ((by_tag[_USER_OBJ], 6), (group_class, 3), (by_tag[_OTHER], 0)):
        entry[1] &= permissions >> shift
        permissions &= ~(0o7 << shift) | entry[1] << shift
    xattrs = []
    if _MASK in by_tag or USER in by_tag or GROUP in by_tag:
        packed = b"".join(ENTRY.pack(*entry) for entry in entries.values())
        xattrs.append((ACCESS, default[: HEAD.size] + packed))
    if stat.S_ISDIR(mode):
        xattrs.append((DEFAULT, default))
    return stat.S_IFMT(mode) | permissions, tuple(xattrs)
