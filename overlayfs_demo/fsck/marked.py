"""One object of an upper, with its marks."""

from __future__ import annotations

import os
from dataclasses import dataclass

from overlayfs_demo.errors import printable
from overlayfs_demo.linux import proc, xattr
from overlayfs_demo.overlay.layer import UpperDir
from overlayfs_demo.overlay.whiteout import PrivateXattrs


@dataclass(frozen=True, slots=True)
class Marked:
    """The object `name` in a directory of the upper; the root is called `.` in itself. Methods raise OSError."""

    parent: UpperDir
    name: bytes
    status: os.stat_result

    @property
    def xattrs(self) -> PrivateXattrs:
        """The names of the marks in this upper."""
        return self.parent.layer.xattrs

    @property
    def shown(self) -> str:
        """Its path, for people."""
        inside = os.path.normpath(os.path.join(self.parent.path(), self.name))
        return printable(os.path.normpath(os.path.join(self.parent.layer.path, inside)))

    def names(self) -> frozenset[str]:
        """Return the names of all its extended attributes."""
        held = self.parent.open()
        return frozenset(xattr.names(proc.path_of(held.fd, self.name)))

    def get(self, attribute: str) -> bytes | None:
        """Return the value of an attribute; None if it has no such attribute."""
        held = self.parent.open()
        return xattr.get(proc.path_of(held.fd, self.name), attribute)

    def set(self, attribute: str, value: bytes) -> None:
        """Set an attribute."""
        held = self.parent.open()
        os.setxattr(proc.path_of(held.fd, self.name), attribute, value, follow_symlinks=False)

    def remove(self, attribute: str) -> None:
        """Remove an attribute."""
        held = self.parent.open()
        os.removexattr(proc.path_of(held.fd, self.name), attribute, follow_symlinks=False)

    def unlink(self) -> None:
        """Remove the name."""
        held = self.parent.open()
        os.unlink(self.name, dir_fd=held.fd)

    def open(self, flags: int) -> int:
        """Open it, if it is a regular file; the caller closes the descriptor. The access time stays."""
        held = self.parent.open()
        flags |= os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            return os.open(self.name, flags | os.O_NOATIME, dir_fd=held.fd)
        except PermissionError:  # Only the owner and root may ask for O_NOATIME: open(2).
            return os.open(self.name, flags, dir_fd=held.fd)
