"""How is "this name is deleted" and "nothing below shows through" written on disk?

Three dialects exist. The kernel's is what we write (Linux Documentation/filesystems/overlayfs.rst,
"whiteouts and opaque directories"); the image dialect comes from AUFS and is fixed by the OCI image
specification, layer.md, "Whiteouts"; fuse-overlayfs adds an xattr of its own for opaque directories.
"""

from __future__ import annotations

import errno
import os
import stat

IMAGE_WHITEOUT_PREFIX = b".wh."
IMAGE_OPAQUE = b".wh..wh..opq"

FUSE_OVERLAYFS_OPAQUE = "user.fuseoverlayfs.opaque"
# How the attributes begin that the view has and no layer, see `provenance`.
VIRTUAL = "user.overlayfs_demo."


class PrivateXattrs:
    """The names of the overlay's own extended attributes under one namespace prefix.

    `trusted.` is the default and needs CAP_SYS_ADMIN; `user.` is for mounts with `userxattr`
    (overlayfs.rst, "User xattr"). `escape` is where a user's own attribute of such a name is kept
    (overlayfs.rst, "Nesting overlayfs mounts").
    """

    __slots__ = (
        "escape", "impure", "lower_nlink", "lowers", "metacopy", "nlink", "opaque", "origin", "prefix", "protattr",
        "redirect", "upper", "whiteout",
    )

    def __init__(self, namespace: str) -> None:
        self.prefix = f"{namespace}.overlay."
        self.escape = f"{self.prefix}overlay."
        self.opaque = f"{self.prefix}opaque"
        self.redirect = f"{self.prefix}redirect"
        self.metacopy = f"{self.prefix}metacopy"
        self.origin = f"{self.prefix}origin"
        self.impure = f"{self.prefix}impure"
        self.protattr = f"{self.prefix}protattr"
        # Not the kernel's, but private like its own: see `lineage` and `index`.
        self.lowers = f"{self.prefix}demo-lowers"
        self.lower_nlink = f"{self.prefix}demo-lower-nlink"
        self.nlink = f"{self.prefix}nlink"
        self.upper = f"{self.prefix}upper"
        self.whiteout = f"{self.prefix}whiteout"

    def shown(self, stored: str) -> str | None:
        """The name that the view shows for a stored attribute; None for the overlay's own."""
        if stored.startswith(self.escape):
            return self.prefix + stored[len(self.escape) :]
        if stored.startswith((self.prefix, VIRTUAL)) or stored == FUSE_OVERLAYFS_OPAQUE:
            return None
        return stored

    def stored(self, shown: str) -> str:
        """The name under which an attribute of the view is stored. EPERM for one that is never stored for a user."""
        if shown.startswith(self.prefix):
            return self.escape + shown[len(self.prefix) :]
        if shown.startswith(VIRTUAL) or shown == FUSE_OVERLAYFS_OPAQUE:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        return shown


TRUSTED = PrivateXattrs("trusted")
USER = PrivateXattrs("user")


def is_whiteout(status: os.stat_result) -> bool:
    """True for the kernel's whiteout: a character device with device number 0/0."""
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def make_whiteout(dir_fd: int, name: bytes) -> None:
    """Create a whiteout for `name`; no privilege is needed since Linux 5.8. Raises OSError."""
    os.mknod(name, stat.S_IFCHR, 0, dir_fd=dir_fd)
