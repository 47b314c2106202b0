"""The on-disk marks for "this name is deleted" (whiteouts) and "nothing below shows through" (opaque directories).

There are three dialects. We write the kernel's (Linux Documentation/filesystems/overlayfs.rst,
"whiteouts and opaque directories"). The image dialect comes from AUFS and is defined in the OCI image
specification, layer.md, "Whiteouts". fuse-overlayfs adds an xattr of its own for opaque directories.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat

from overlayfs_demo.linux.failure import failure

# The whiteout in the work directory that all others are hard links to. No staged object has this name.
SHARED = b"#whiteout"
# The errors of link(2) where it never works: no hard links, or none between these directories (a project quota).
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.EXDEV)

IMAGE_WHITEOUT_PREFIX = b".wh."
IMAGE_OPAQUE = b".wh..wh..opq"

FUSE_OVERLAYFS_OPAQUE = "user.fuseoverlayfs.opaque"
# The prefix of attributes that the view shows but no layer stores, see `provenance`.
VIRTUAL = "user.overlayfs_demo."


class PrivateXattrs:
    """The names of the overlay's private extended attributes in one namespace.

    `trusted.` is the default and needs CAP_SYS_ADMIN; `user.` is for mounts with `userxattr`
    (overlayfs.rst, "User xattr"). `escape` is the prefix under which a user's own attribute of such a name is
    stored (overlayfs.rst, "Nesting overlayfs mounts").
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
        # The kernel does not use these, but hides them like its own: see `lower_fingerprint` and `index`.
        self.lowers = f"{self.prefix}demo-lowers"
        self.lower_nlink = f"{self.prefix}demo-lower-nlink"
        self.nlink = f"{self.prefix}nlink"
        self.upper = f"{self.prefix}upper"
        self.whiteout = f"{self.prefix}whiteout"

    @property
    def follows(self) -> bool:
        """Whether redirects and metacopies are followed, and so may be written.

        They are not if root mounts with `user.` attributes: any owner of a file may set those, and could read files
        through the view that only root may read. The kernel's overlayfs follows none with `userxattr`
        (fs/overlayfs/params.c, ovl_fs_params_verify). An ordinary user's mount reads only what that user may read
        anyway.
        """
        return self is not USER or os.geteuid() != 0

    def shown(self, stored: str) -> str | None:
        """Return the name that the view shows for a stored attribute; None for the overlay's own."""
        if stored.startswith(self.escape):
            return self.prefix + stored[len(self.escape) :]
        if stored.startswith((self.prefix, VIRTUAL)) or stored == FUSE_OVERLAYFS_OPAQUE:
            return None
        return stored

    def stored(self, shown: str) -> str:
        """Return the name under which an attribute of the view is stored. EPERM for one that users cannot store."""
        if shown.startswith(self.prefix):
            return self.escape + shown[len(self.prefix) :]
        if shown.startswith(VIRTUAL) or shown == FUSE_OVERLAYFS_OPAQUE:
            raise failure(errno.EPERM)
        return shown


TRUSTED = PrivateXattrs("trusted")
USER = PrivateXattrs("user")


def is_whiteout(status: os.stat_result) -> bool:
    """Return whether this is the kernel's whiteout: a character device with device number 0/0."""
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def make_whiteout(dir_fd: int, name: bytes) -> None:
    """Create a whiteout for `name`. This needs no privilege since Linux 5.8. Raises OSError."""
    os.mknod(name, stat.S_IFCHR, 0, dir_fd=dir_fd)


class Whiteouts:
    """Creates the whiteouts of one upper, as hard links to one in the work directory.

    They share one inode instead of taking one each (fs/overlayfs/dir.c, ovl_whiteout). The work directory must be
    private, and empty at first, because the object called `SHARED` there is trusted. The caller owns `work_fd`.
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
        # Decided after `make_whiteout` succeeded, which shows that the name and its directory were not at fault.
        self._links_work = self._links_work and problem not in _NO_LINKS

    def _link(self, dir_fd: int, name: bytes) -> int | None:
        """Give the shared whiteout another name. Return None, or the errno if that fails."""
        try:
            if not self._shared:
                make_whiteout(self._work_fd, SHARED)
                self._shared = True
            os.link(SHARED, name, src_dir_fd=self._work_fd, dst_dir_fd=dir_fd, follow_symlinks=False)
        except OSError as error:
            if error.errno in (errno.EMLINK, errno.ENOENT):
                # It has as many names as the filesystem allows, or somebody removed it: the next call makes a new one.
                self.drop_shared()
            return error.errno
        return None

    def drop_shared(self) -> None:
        """Remove the shared whiteout from the work directory. If that fails, the next mount removes it.

        The next `make` creates a new one.
        """
        if self._shared:
            self._shared = False
            with contextlib.suppress(OSError):
                os.unlink(SHARED, dir_fd=self._work_fd)
