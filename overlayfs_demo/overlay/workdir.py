"""How is the directory kept in which objects are made ready, and to which removed ones are moved?"""

from __future__ import annotations

import errno
import logging
import os
import stat

from overlayfs_demo.errors import printable
from overlayfs_demo.linux import syscalls
from overlayfs_demo.overlay import acl
from overlayfs_demo.overlay.whiteout import PrivateXattrs, is_whiteout

_log = logging.getLogger(__name__)

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def open_work(path: bytes, xattrs: PrivateXattrs) -> int:
    """Open `path`/work, emptied of what a killed daemon left, as the kernel's overlayfs uses it.

    It is made again if others could get into it: what is staged there is changed by name.
    """
    work = os.path.join(path, b"work")
    os.makedirs(work, mode=0o700, exist_ok=True)
    fd = _open_emptied(work, xattrs)
    if not _is_private(fd):
        os.close(fd)
        os.rmdir(work)
        os.mkdir(work, 0o700)
        fd = _open_emptied(work, xattrs)
        if not _is_private(fd):
            os.close(fd)
            raise PermissionError(errno.EPERM, "somebody else replaced this directory while it was made", work)
    try:
        inherit_nothing(fd)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _open_emptied(path: bytes, xattrs: PrivateXattrs) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        for entry in os.scandir(fd):
            if entry.is_dir(follow_symlinks=False):
                remove_emptied(fd, os.fsencode(entry.name), xattrs)
            else:
                os.unlink(entry.name, dir_fd=fd)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _is_private(fd: int) -> bool:
    status = os.fstat(fd)
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


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


def remove_emptied(work_fd: int, name: bytes, xattrs: PrivateXattrs) -> None:
    """Remove a directory that was empty in the view, and so holds whiteouts at most (fs/overlayfs/dir.c, ovl_rmdir).

    Whoever still has it open may move things into it, also what only root could remove. They are not what was to be
    removed: the directory then stays, with a line in the log.
    """
    try:
        fd = os.open(name, _DIRECTORY, dir_fd=work_fd)
        try:
            _remove_whiteouts(fd, xattrs)
        finally:
            os.close(fd)
        os.rmdir(name, dir_fd=work_fd)
    except OSError as error:
        _log.warning(
            "'%s' stays in the work directory: it holds what nobody removed: %s", printable(name), error.strerror
        )


def _remove_whiteouts(fd: int, xattrs: PrivateXattrs) -> None:
    # By path, because then the names come as bytes.
    with os.scandir(syscalls.fd_path(fd)) as entries:
        for entry in entries:
            status = entry.stat(follow_symlinks=False)
            marked = (
                not status.st_size
                and stat.S_ISREG(status.st_mode)
                and syscalls.get_xattr(syscalls.path_of(fd, entry.name), xattrs.whiteout) is not None
            )
            if is_whiteout(status) or marked:
                os.unlink(entry.name, dir_fd=fd)
