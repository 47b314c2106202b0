"""The directories of records and sockets, which last until the next boot and which nobody can forge.

Each user has a directory in which nobody else may write. It is opened once, without following a symbolic link, and
then checked and used through that descriptor, so it does not matter if something replaces it afterwards.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from overlayfs_demo.errors import MountError
from overlayfs_demo.linux import proc

_OF_ROOT = "/run/overlayfs-demo"
_REMEDY = "remove it, or set XDG_RUNTIME_DIR to a directory that you own"


def of_this_user() -> str:
    """Return the directory of the user who runs this program; for root it is always the one in /run.

    Root of a user namespace that may not write to /run uses the same places as other users.
    """
    if os.geteuid() == 0 and (os.access("/run", os.W_OK) or not proc.in_user_namespace()):
        return _OF_ROOT
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        return os.path.join(runtime, "overlayfs-demo")
    return f"/tmp/overlayfs-demo-{os.geteuid()}"


def of_user(uid: int) -> tuple[str, ...]:
    """Return the places where the directory of another user may be."""
    if uid == 0:
        return (_OF_ROOT,)
    return f"/run/user/{uid}/overlayfs-demo", f"/tmp/overlayfs-demo-{uid}"


@contextmanager
def opened(path: str | os.PathLike[str], uid: int) -> Iterator[int]:
    """Open a directory that belongs to this user, and in which nobody else may write.

    The descriptor is closed afterwards. Raises MountError for any other directory, and FileNotFoundError if there is
    none.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise MountError(f"{path}: {error.strerror}", _REMEDY) from error
    try:
        status = os.fstat(fd)
        if status.st_uid != uid:
            raise MountError(f"{path} belongs to user {status.st_uid}, not to user {uid}", _REMEDY)
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise MountError(f"{path} is writable by users other than user {uid}", _REMEDY)
        yield fd
    finally:
        os.close(fd)


@contextmanager
def mine() -> Iterator[int]:
    """Open this user's directory, which is created if it does not exist. Raises MountError.

    The descriptor is closed afterwards.
    """
    path = of_this_user()
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        pass  # If the path is not a directory, `opened` reports that.
    except OSError as error:
        raise MountError(f"{path}: {error.strerror}", "set XDG_RUNTIME_DIR to a directory that you own") from error
    with opened(path, os.geteuid()) as fd:
        yield fd
