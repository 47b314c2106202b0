"""Where are records and sockets kept until the next boot, so that nobody can forge them?

Each user has a directory that nobody else may write in. It is opened once, without following a symbolic link, and
checked through the descriptor by which it is then used: what is put in its place afterwards does not matter.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from overlayfs_demo.errors import MountError

_OF_ROOT = Path("/run/overlayfs-demo")
_REMEDY = "remove it, or name a directory of yours in XDG_RUNTIME_DIR"


def of_this_user() -> Path:
    """The directory of the user who runs this program; for root it is always the one in /run.

    Root of a user namespace may not write to /run, and keeps it where any other user does.
    """
    if os.geteuid() == 0 and (os.access("/run", os.W_OK) or not _in_user_namespace()):
        return _OF_ROOT
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(runtime) / "overlayfs-demo"
    return Path(f"/tmp/overlayfs-demo-{os.geteuid()}")


def of_user(uid: int) -> tuple[Path, ...]:
    """Where the directory of another user may be."""
    if uid == 0:
        return (_OF_ROOT,)
    return Path(f"/run/user/{uid}/overlayfs-demo"), Path(f"/tmp/overlayfs-demo-{uid}")


def _in_user_namespace() -> bool:
    """The first user namespace maps every user to itself: user_namespaces(7)."""
    return Path("/proc/self/uid_map").read_text().split() != ["0", "0", "4294967295"]


@contextmanager
def opened(path: Path, uid: int) -> Iterator[int]:
    """A descriptor of a directory that belongs to this user, and in which nobody else may write.

    Raises MountError for any other, and FileNotFoundError if there is none.
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
            raise MountError(f"{path} can be written to by others than user {uid}", _REMEDY)
        yield fd
    finally:
        os.close(fd)


@contextmanager
def mine() -> Iterator[int]:
    """A descriptor of this user's directory, which is made if it is not there. Raises MountError."""
    path = of_this_user()
    try:
        path.mkdir(mode=0o700, exist_ok=True)
    except FileExistsError:
        pass  # What is there is no directory, which `opened` says.
    except OSError as error:
        raise MountError(f"{path}: {error.strerror}", "name a directory of yours in XDG_RUNTIME_DIR") from error
    with opened(path, os.geteuid()) as fd:
        yield fd
