"""Overrides of owner and mode, for layers of an ordinary user, who may not change owners.

Each file and directory has its override in an attribute that containers/storage and fuse-overlayfs(1)
("xattr_permissions") also read. A layer that keeps such overrides has one on its root.
Symbolic links and special files cannot have a `user.` attribute (xattr(7)), so they have no override.
"""

from __future__ import annotations

import stat

from overlayfs_demo.linux import xattr
from overlayfs_demo.named_tuple import NamedTuple

NAME = "user.containers.override_stat"


class OverrideStat(NamedTuple):
    """The owner, and the permission, set-id and sticky bits."""

    uid: int
    gid: int
    mode: int

    def encode(self) -> bytes:
        """Return the attribute's value: `UID:GID:MODE`, the mode in octal."""
        return b"%d:%d:0%o" % self

    def on_disk(self, kind: int) -> int:
        """Return the file's real mode: without set-id bits, and accessible to the layer's owner. `kind` is S_IFMT."""
        return self.mode & 0o1777 | needs(kind)


def parse(value: bytes) -> OverrideStat | None:
    """Parse an attribute's value, which may have the file type as a fourth part. Return None if it is not valid."""
    parts = value.split(b":")
    try:
        override = OverrideStat(int(parts[0]), int(parts[1]), int(parts[2], 8))
    except (IndexError, ValueError):
        return None
    valid = 0 <= override.uid < 2**32 - 1 and 0 <= override.gid < 2**32 - 1 and 0 <= override.mode <= 0o7777
    return override if valid else None


def read(place: int | bytes, follow: bool = False) -> OverrideStat | None:
    """Return the override of a file; None if it has no valid one. Raises OSError."""
    value = xattr.get(place, NAME, follow)
    return None if value is None else parse(value)


def kept_by(layer: bytes) -> bool:
    """Return whether the layer in this directory keeps overrides. Raises OSError."""
    return NAME in xattr.names(layer, follow=True)


def can_be_kept(mode: int) -> bool:
    """Return whether a file of this type can have an override."""
    return stat.S_ISREG(mode) or stat.S_ISDIR(mode)


def needs(kind: int) -> int:
    """Return the permissions that the layer's owner needs to work with a file of this kind."""
    return stat.S_IRWXU if stat.S_ISDIR(kind) else stat.S_IRUSR | stat.S_IWUSR
