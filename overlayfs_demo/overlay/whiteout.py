"""How is "this name is deleted" and "nothing below shows through" written on disk?

Three dialects exist. The kernel's is what we write (Linux Documentation/filesystems/overlayfs.rst,
"whiteouts and opaque directories"); the image dialect comes from AUFS and is fixed by the OCI image
specification, layer.md, "Whiteouts"; fuse-overlayfs adds an xattr of its own for opaque directories.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat

# In the work directory: the whiteout of which all others are further names. No staged object is called so.
SHARED = b"#whiteout"
# What link(2) says where it never works: no such links, or none between these directories (a project quota).
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.EXDEV)

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
        "escape",
        "impure",
        "lower_nlink",
        "lowers",
        "metacopy",
        "nlink",
        "opaque",
        "origin",
        "prefix",
        "protattr",
        "redirect",
        "upper",
        "whiteout",
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

    @property
    def follows(self) -> bool:
        """May a redirect or a metacopy lead to other files, and so may one be written?

        Not if root mounts with `user.` attributes: whoever owns a file may set those, and would read through the view
        what only root may. The kernel's overlayfs follows none with `userxattr` (fs/overlayfs/params.c,
        ovl_fs_params_verify). An ordinary user's mount reads what that user may read anyway.
        """
        return self is not USER or os.geteuid() != 0

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


class Whiteouts:
    """Makes the whiteouts of one upper, as further names of one that stays in the work directory.

    So they take one inode together, not one each (fs/overlayfs/dir.c, ovl_whiteout). The work directory must be
    private and empty, for what stands there as `SHARED` is trusted. `work_fd` is the caller's.
    """

    __slots__ = ("_links_work", "_shared", "_work_fd")

    def __init__(self, work_fd: int) -> None:
        self._work_fd = work_fd
        self._shared = False
        self._links_work = True

    def make(self, dir_fd: int, name: bytes) -> None:
        """Create a whiteout for `name`, which must be free. Raises OSError."""
        problem = self._link(dir_fd, name) if self._links_work else 0
        if problem is None:
            return
        make_whiteout(dir_fd, name)
        # Only now is it known that the name, and its directory, were not at fault.
        self._links_work = self._links_work and problem not in _NO_LINKS

    def _link(self, dir_fd: int, name: bytes) -> int | None:
        """Give the shared whiteout one more name; what stands in the way, as an errno, or None."""
        try:
            if not self._shared:
                make_whiteout(self._work_fd, SHARED)
                self._shared = True
            os.link(SHARED, name, src_dir_fd=self._work_fd, dst_dir_fd=dir_fd, follow_symlinks=False)
        except OSError as error:
            if error.errno in (errno.EMLINK, errno.ENOENT):
                # It has as many names as the filesystem allows, or somebody removed it: the next ones share another.
                self.drop_shared()
            return error.errno
        return None

    def drop_shared(self) -> None:
        """Take the shared whiteout out of the work directory, which at the latest the next mount does.

        The next `make` makes another.
        """
        if self._shared:
            self._shared = False
            with contextlib.suppress(OSError):
                os.unlink(SHARED, dir_fd=self._work_fd)
