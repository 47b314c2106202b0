"""Who owns a file, and what is its mode, where its layer's owner may give no file away?

An ordinary user's layers say so beside each file and directory, in the attribute that containers/storage and
fuse-overlayfs(1) ("xattr_permissions") read, too. A layer that keeps such records has one on its root.
Symbolic links and special files can carry no `user.` attribute (xattr(7)), so they have no record.
"""

from __future__ import annotations

import stat
from typing import NamedTuple

from overlayfs_demo.linux import syscalls

NAME = "user.containers.override_stat"


class StatRecord(NamedTuple):
    """The owner, and the permission, set-id and sticky bits."""

    uid: int
    gid: int
    mode: int

    def encode(self) -> bytes:
        """The attribute's value: `UID:GID:MODE`, the mode in octal."""
        return b"%d:%d:0%o" % self

    def on_disk(self, kind: int) -> int:
        """The mode that the file itself has: no set-id bits, and never shut to the layer's owner. `kind`: S_IFMT."""
        return self.mode & 0o1777 | needs(kind)


def parse(value: bytes) -> StatRecord | None:
    """Read an attribute's value, of which a type may be the fourth part; None if it is none."""
    parts = value.split(b":")
    try:
        record = StatRecord(int(parts[0]), int(parts[1]), int(parts[2], 8))
    except (IndexError, ValueError):
        return None
    valid = 0 <= record.uid < 2**32 - 1 and 0 <= record.gid < 2**32 - 1 and 0 <= record.mode <= 0o7777
    return record if valid else None


def read(place: int | bytes, follow: bool = False) -> StatRecord | None:
    """The record of a file; None where there is none. Raises OSError."""
    value = syscalls.get_xattr(place, NAME, follow)
    return None if value is None else parse(value)


def kept_by(layer: bytes) -> bool:
    """Does the layer in this directory keep records? Raises OSError."""
    return NAME in syscalls.list_xattrs(layer, follow=True)


def can_be_kept(mode: int) -> bool:
    """Can a file of this type have a record?"""
    return stat.S_ISREG(mode) or stat.S_ISDIR(mode)


def needs(kind: int) -> int:
    """The permissions without which the layer's owner could not work with such a file."""
    return stat.S_IRWXU if stat.S_ISDIR(kind) else stat.S_IRUSR | stat.S_IWUSR
