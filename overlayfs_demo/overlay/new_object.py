"""The description of an object that is to be created in the upper."""

from __future__ import annotations

import os
import stat

from overlayfs_demo.linux.attributes import Attributes
from overlayfs_demo.named_tuple import NamedTuple


class NewObject(NamedTuple):
    """A file, directory, symbolic link or device to create. `mode` is complete: S_IFMT and permission bits.

    `inherits_gid`: the group comes from the directory, by its set-group-ID bit. `xattrs` are set before
    the object becomes visible. `target` is a symbolic link's.
    """

    mode: int
    uid: int
    gid: int
    rdev: int = 0
    target: bytes = b""
    inherits_gid: bool = False
    xattrs: tuple[tuple[str, bytes], ...] = ()

    def make(self, dir_fd: int, name: bytes) -> None:
        """Create the object, without owner and xattrs. EEXIST if the name is taken."""
        kind = stat.S_IFMT(self.mode)
        if kind == stat.S_IFDIR:
            os.mkdir(name, stat.S_IMODE(self.mode), dir_fd=dir_fd)
        elif kind == stat.S_IFLNK:
            os.symlink(self.target, name, dir_fd=dir_fd)
        else:
            os.mknod(name, self.mode, self.rdev, dir_fd=dir_fd)

    def is_born_right(self, uid: int, gid: int) -> bool:
        """Whether a process of `uid` and `gid` creates it with the right owner, group and attributes at once."""
        return not self.xattrs and self.uid == uid and (self.inherits_gid or self.gid == gid)

    @property
    def attributes(self) -> Attributes:
        """The owner, mode and extended attributes that the object gets."""
        mode = None if stat.S_ISLNK(self.mode) else stat.S_IMODE(self.mode)
        return Attributes((self.uid, self.gid), mode, self.xattrs)
