"""What is remembered of the views that are mounted?

A mounted view leaves a small record (who serves it, from which layers) in its user's runtime directory, and beside it
the socket at which its daemon can be asked. The daemon keeps a lock on the record's file. The lock dies with the
daemon, so it tells for certain whether the view is still served: flock(2).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from overlayfs_demo.errors import MountError
from overlayfs_demo.fronts.front import FILESYSTEM_TYPE
from overlayfs_demo.linux import mountinfo
from overlayfs_demo.mounts import runtime_directory

_SUFFIX = ".json"


@dataclass(frozen=True, slots=True)
class Record:
    """What is remembered of a live mount. Paths are as text, with surrogates for undecodable bytes.

    `lowers` are topmost first, and `titles` say what made each, see `Stack`; "" where that is unknown. `data_only` are
    the layers below them of which only data is used. `labels` are how events name the lowers, and then those.
    `options` is the line that mounts the same again, see `options.option_line`.
    """

    mountpoint: str
    pid: int
    front: str
    lowers: list[str]
    upper: str | None = None
    titles: list[str] = field(default_factory=list)
    data_only: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    options: str = ""


class Registration:
    """The record of a view that this process serves, locked until `forget` or the end of the process."""

    def __init__(self, record: Record) -> None:
        """Write the record, at once for whoever reads it. Raises MountError, OSError."""
        self._name = _file_name(record.mountpoint)
        unfinished = f"{self._name}.{os.getpid()}"
        with runtime_directory.mine() as directory:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
            self._fd = os.open(unfinished, flags, 0o600, dir_fd=directory)
            # Before it has the name by which others find it.
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            with os.fdopen(self._fd, "w", closefd=False) as file:
                json.dump({name: getattr(record, name) for name in record.__slots__}, file)
            os.rename(unfinished, self._name, src_dir_fd=directory, dst_dir_fd=directory)

    def forget(self) -> None:
        """Remove the record, if it was not replaced by that of a later mount at the same place, and let go of it."""
        try:
            with contextlib.suppress(FileNotFoundError), runtime_directory.mine() as directory:
                found = os.stat(self._name, dir_fd=directory, follow_symlinks=False)
                if os.path.samestat(found, os.fstat(self._fd)):
                    os.unlink(self._name, dir_fd=directory)
        finally:
            os.close(self._fd)


class _Noted(NamedTuple):
    """A record, and whether its daemon lives."""

    record: Record
    served: bool


def _file_name(mountpoint: str) -> str:
    return hashlib.sha256(os.fsencode(mountpoint)).hexdigest()[:16] + _SUFFIX


def _read(directory: int, name: str) -> _Noted | None:
    """None if there is none, perhaps because its daemon has just ended. A later version may have noted more."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    except FileNotFoundError:
        return None
    with os.fdopen(fd) as file:
        found = json.load(file)
        record = Record(**{name: found[name] for name in Record.__slots__ if name in found})
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _Noted(record, served=True)
        return _Noted(record, served=False)


def _noted(mountpoint: str) -> _Noted | None:
    with runtime_directory.mine() as directory:
        return _read(directory, _file_name(mountpoint))


def find_record(mountpoint: str) -> Record | None:
    """The record of a mount point, if there is one. Its daemon may have been killed."""
    noted = _noted(mountpoint)
    return noted.record if noted is not None else None


def is_served(mountpoint: str) -> bool:
    """Does a view's daemon live? It is not asked itself, so one that hangs does not matter. Raises MountError.

    Only daemons of the user who runs this program are known.
    """
    noted = _noted(mountpoint)
    return noted is not None and noted.served


def forget_dead(mountpoint: str) -> None:
    """Remove what a killed daemon left: its record and its socket."""
    with runtime_directory.mine() as directory:
        name = _file_name(mountpoint)
        noted = _read(directory, name)
        if noted is not None and not noted.served:
            for left in (name, _socket_name(mountpoint)):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(left, dir_fd=directory)


def live_records() -> list[Record]:
    """The records of all views that are mounted now, and served."""
    live = mounted()
    with runtime_directory.mine() as directory:
        names = sorted(name for name in os.listdir(directory) if name.endswith(_SUFFIX))
        noted = [_read(directory, name) for name in names]
    return [one.record for one in noted if one is not None and one.served and one.record.mountpoint in live]


def mounted() -> set[str]:
    """Where our views are mounted in this mount namespace."""
    return {os.fsdecode(one.mountpoint) for one in mountinfo.mounts() if one.kind == FILESYSTEM_TYPE}


# --- where a daemon is asked -----------------------------------------------------------------------


class Place(NamedTuple):
    """A place in a view: its mount point, the absolute path in it, the socket of its daemon, and the user who
    mounted it, as whom the daemon must run."""

    mountpoint: str
    path: str
    socket: Path
    owner: int


def _socket_name(mountpoint: str) -> str:
    return _file_name(mountpoint).removesuffix(_SUFFIX) + ".sock"


def socket_path(mountpoint: str) -> Path:
    """Where this user's daemon of a mount point can be asked, see `control`."""
    return runtime_directory.of_this_user() / _socket_name(mountpoint)


def _socket_of(mountpoint: str, uid: int) -> Path:
    """The same for another user's daemon."""
    paths = [directory / _socket_name(mountpoint) for directory in runtime_directory.of_user(uid)]
    return next((path for path in paths if os.path.lexists(path)), paths[-1])


def place_in_view(path: bytes, *, follow: bool) -> Place:
    """On which view a path lies, and where in it.

    The path need not exist. `follow`: if it is a symbolic link, where that leads is meant. Raises MountError.
    """
    head, name = os.path.split(path)
    if follow or name in (b"", b".", b".."):
        resolved = os.path.realpath(path)
    else:
        resolved = os.path.join(os.path.realpath(head), name)
    above = [one for one in mountinfo.mounts() if _lies_in(resolved, one.mountpoint)]
    # Of several at one place the last one made is seen.
    found = max(enumerate(above), key=lambda numbered: (len(numbered[1].mountpoint), numbered[0]))[1]
    mountpoint = os.fsdecode(found.mountpoint)
    if found.kind != FILESYSTEM_TYPE:
        raise MountError(f"{os.fsdecode(path)} does not lie in a view", f"'findmnt -t {FILESYSTEM_TYPE}' lists those")
    owner = _owner(found)
    if os.geteuid() not in (0, owner):
        raise MountError(f"{mountpoint} was mounted by user {owner}", "only they and root can ask its daemon")
    inside = os.fsdecode(os.path.normpath(b"/" + os.path.relpath(resolved, found.mountpoint)))
    socket = socket_path(mountpoint) if owner == os.geteuid() else _socket_of(mountpoint, owner)
    return Place(mountpoint, inside, socket, owner)


def _owner(mounted: mountinfo.Mounted) -> int:
    """Who mounted a view: the kernel itself notes that, so nobody can forge it. Raises MountError."""
    for option in mounted.options:
        name, _, value = option.partition("=")
        if name == "user_id":
            return int(value)
    raise MountError(f"{os.fsdecode(mounted.mountpoint)} does not say who mounted it", "mount it with this version")


def _lies_in(path: bytes, directory: bytes) -> bool:
    return path == directory or path.startswith(directory.rstrip(b"/") + b"/")
