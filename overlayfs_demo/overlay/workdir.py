"""The work directory, in which new objects are prepared and to which removed ones are moved."""

from __future__ import annotations

import errno
import logging
import os
import stat
from contextlib import suppress

from overlayfs_demo.errors import printable
from overlayfs_demo.linux import proc, xattr
from overlayfs_demo.overlay import acl
from overlayfs_demo.overlay.whiteout import PrivateXattrs, is_whiteout

_log = logging.getLogger(__name__)

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def open_work(path: bytes, xattrs: PrivateXattrs) -> int:
    """Open `path`/work, which the kernel's overlayfs also uses, and remove what a killed daemon left in it.

    It is created again if others could write to it, because staged objects are changed by name.
    """
    work = os.path.join(path, b"work")
    with suppress(FileExistsError):
        os.mkdir(work, 0o700)
    let_owner_in(work)
    fd = _open_private(work, xattrs)
    if fd is None:
        os.rmdir(work)
        os.mkdir(work, 0o700)
        fd = _open_private(work, xattrs)
        if fd is None:
            raise PermissionError(errno.EPERM, "someone else replaced this directory while it was being created", work)
    return fd


def _open_private(work: bytes, xattrs: PrivateXattrs) -> int | None:
    """Open the directory after emptying it, whatever it is; None if others could write to it."""
    fd = _open_emptied(work, xattrs)
    try:
        if _is_private(fd):
            inherit_nothing(fd)
            return fd
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    return None


def let_owner_in(path: bytes) -> None:
    """Give a directory that the kernel created in a work directory back to its owner, if that is us. Raises OSError.

    The kernel creates them with mode 0 (fs/overlayfs/super.c, ovl_workdir_create), and without root's rights not even
    the owner can read such a directory.
    """
    fd = os.open(path, _DIRECTORY | os.O_PATH)
    try:
        status = os.fstat(fd)
        if status.st_uid == os.geteuid() and not status.st_mode & stat.S_IRWXU:
            os.chmod(proc.fd_path(fd), 0o700)  # An O_PATH descriptor has no fchmod(2).
    finally:
        os.close(fd)


def _open_emptied(path: bytes, xattrs: PrivateXattrs) -> int:
    fd = os.open(path, _DIRECTORY)
    try:
        with os.scandir(fd) as entries:
            for entry in entries:
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
    """Remove the ACLs and the set-group-ID bit of a directory that only the overlay uses. Raises OSError.

    Otherwise everything created in it, and so in the upper, would inherit the default ACL of its parent directory
    (fs/overlayfs/super.c, ovl_workdir_create).
    """
    for name in (acl.DEFAULT, acl.ACCESS):
        try:
            os.removexattr(fd, name)
        except OSError as error:
            if error.errno not in (errno.ENODATA, errno.EOPNOTSUPP):
                raise
    # After the ACLs: with an access ACL, chmod(2) would set its mask instead of the group's permissions, see acl(5).
    os.fchmod(fd, 0o700)


def remove_emptied(work_fd: int, name: bytes, xattrs: PrivateXattrs) -> None:
    """Remove a directory that was empty in the view, so that it holds only whiteouts (fs/overlayfs/dir.c, ovl_rmdir).

    Anyone who still has it open may move other files into it, even files that only root could remove. Nobody asked to
    remove those, so the directory then stays, and the log says so.
    """
    try:
        fd = os.open(name, _DIRECTORY, dir_fd=work_fd)
        try:
            _remove_whiteouts(fd, xattrs)
        finally:
            os.close(fd)
        os.rmdir(name, dir_fd=work_fd)
    except OSError as error:
        _log.warning("'%s' stays in the work directory: it still has contents: %s", printable(name), error.strerror)


def _remove_whiteouts(fd: int, xattrs: PrivateXattrs) -> None:
    # Read by path, because that yields the names as bytes.
    with os.scandir(proc.fd_path(fd)) as entries:
        for entry in entries:
            status = entry.stat(follow_symlinks=False)
            marked = (
                not status.st_size
                and stat.S_ISREG(status.st_mode)
                and xattr.get(proc.path_of(fd, entry.name), xattrs.whiteout) is not None
            )
            if is_whiteout(status) or marked:
                os.unlink(entry.name, dir_fd=fd)
