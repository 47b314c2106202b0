"""How do the directories in which objects are made ready pass nothing of their own on to them?"""

from __future__ import annotations

import errno
import os

from overlayfs_demo.overlay import acl


def inherit_nothing(fd: int) -> None:
    """Take the ACLs and the set-group-ID bit off a directory that was made for the overlay alone. Raises OSError.

    A default ACL of the directory above would pass through it to everything that is made in it, and from there into
    the upper (fs/overlayfs/super.c, ovl_workdir_create).
    """
    for name in (acl.DEFAULT, acl.ACCESS):
        try:
            os.removexattr(fd, name)
        except OSError as error:
            if error.errno not in (errno.ENODATA, errno.EOPNOTSUPP):
                raise
    os.fchmod(fd, 0o700)
