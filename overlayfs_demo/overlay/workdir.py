"""How are the directories made in which objects are made ready, so that these inherit nothing from them?"""

from __future__ import annotations

import errno
import os

from overlayfs_demo.overlay import acl


def open_private(path: bytes) -> int:
    """Open the directory `path`, made if it is not there, without ACLs and set-group-ID bit; the caller owns the
    descriptor.

    A default ACL of the directory above would pass through it to everything that is made in it, and from there into
    the upper (fs/overlayfs/super.c, ovl_workdir_create).
    """
    os.makedirs(path, mode=0o700, exist_ok=True)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        for name in (acl.DEFAULT, acl.ACCESS):
            _remove(fd, name)
        os.fchmod(fd, 0o700)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _remove(fd: int, name: str) -> None:
    try:
        os.removexattr(fd, name)
    except OSError as error:
        if error.errno not in (errno.ENODATA, errno.EOPNOTSUPP):
            raise
