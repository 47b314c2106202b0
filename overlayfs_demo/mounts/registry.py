"""The registry of mounted views.

A mounted view leaves a small record (its daemon and its layers) in its user's runtime directory, and beside it
the socket at which its daemon can be asked. The daemon holds a lock on the record's file. The lock ends with the
daemon, so it shows reliably whether the view is still served: flock(2).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os

from overlayfs_demo.errors import MountError
from overlayfs_demo.fronts.front import FILESYSTEM_TYPE
from overlayfs_demo.linux import mountinfo
from overlayfs_demo.mounts import runtime_directory
from overlayfs_demo.named_tuple import NamedTuple
from overlayfs_demo.overlay.sha256 import digest

_log = logging.getLogger(__name__)

_SUFFIX = ".json"


class MountRecord(NamedTuple):
    """The record of a live mount. Paths are text, with surrogates for undecodable bytes.

    `lowers` has the topmost layer first. `titles` say what made each of them, see `Stack`; "" if that is unknown.
    `data_only` are the layers below the lowers that provide only data. `labels` are the names in events of the lowers
    and then of the data-only layers. `options` is the option line that mounts the same view again, see
    `options.option_line`. `pid` is the process that ends with the mount, and `daemon` the one that serves it: the same
    one, or its child (see `supervisor`), which has been replaced `restarts` times.
    """

    mountpoint: str
    pid: int
    front: str
    lowers: list[str]
    upper: str | None
    titles: list[str]
    data_only: list[str]
    labels: list[str]
    options: str
    daemon: int
    restarts: int = 0


class Registration:
    """The record of a view that this process answers for, locked until `forget` or the end of the process.

    `fd` is the descriptor that has the lock.
    """

    def __init__(self, record: MountRecord, fd: int | None = None) -> None:
        """Write the record, or take over one that is written and locked as `fd`. Raises MountError, OSError."""
        self.record = record
        self._name = _file_name(record.mountpoint)
        self.fd = self._write() if fd is None else fd

    def replace(self, record: MountRecord) -> None:
        """Write another record of the same view. Raises MountError, OSError."""
        self.record = record
        before, self.fd = self.fd, self._write()
        os.close(before)

    def _write(self) -> int:
        """Write the record, so that readers see it whole or not at all. Return the locked descriptor."""
        record = self.record
        unfinished = f"{self._name}.{os.getpid()}"
        with runtime_directory.mine() as directory:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(unfinished, flags, 0o600, dir_fd=directory)
            # Lock the file before it has the name by which others find it.
            fcntl.flock(fd, fcntl.LOCK_EX)
            with os.fdopen(fd, "w", closefd=False) as file:
                json.dump({name: getattr(record, name) for name in record._fields}, file)
            os.rename(unfinished, self._name, src_dir_fd=directory, dst_dir_fd=directory)
        return fd

    def forget(self) -> None:
        """Remove the record and release its lock. A record of a later mount at the same place is left alone."""
        try:
            with contextlib.suppress(FileNotFoundError), runtime_directory.mine() as directory:
                found = os.stat(self._name, dir_fd=directory, follow_symlinks=False)
                if os.path.samestat(found, os.fstat(self.fd)):
                    os.unlink(self._name, dir_fd=directory)
        finally:
            os.close(self.fd)


class _Noted(NamedTuple):
    """A record, and whether its daemon is alive."""

    record: MountRecord
    served: bool


def _file_name(mountpoint: str) -> str:
    return digest(os.fsencode(mountpoint)).hex()[:16] + _SUFFIX


def _read(directory: int, name: str) -> _Noted | None:
    """Return a record, or None if there is none, perhaps because its daemon has just exited. Raises MountError."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    except FileNotFoundError:
        return None
    with os.fdopen(fd) as file:
        try:
            record = MountRecord(**json.load(file))
        except (ValueError, TypeError):
            path = os.path.join(runtime_directory.of_this_user(), name)
            raise MountError(
                f"the record {path} of a mount is damaged, or of another version",
                "unmount its view with umount(8), then remove that file",
            ) from None
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _Noted(record, served=True)
        return _Noted(record, served=False)


def _noted(mountpoint: str) -> _Noted | None:
    with runtime_directory.mine() as directory:
        return _read(directory, _file_name(mountpoint))


def find_record(mountpoint: str) -> MountRecord | None:
    """Return the record of a mount point, or None. Its daemon may have been killed."""
    noted = _noted(mountpoint)
    return noted.record if noted is not None else None


def is_served(mountpoint: str) -> bool:
    """Return whether a view's daemon is alive. Raises MountError.

    The daemon itself is not asked, so it does not matter if it hangs. Only daemons of the user who runs this program
    are known.
    """
    noted = _noted(mountpoint)
    return noted is not None and noted.served


def forget_dead(mountpoint: str) -> None:
    """Remove the record and the socket that a killed daemon left."""
    with runtime_directory.mine() as directory:
        name = _file_name(mountpoint)
        noted = _read(directory, name)
        if noted is not None and not noted.served:
            for left in (name, _socket_name(mountpoint)):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(left, dir_fd=directory)


def live_records() -> list[MountRecord]:
    """Return the records of all views that are mounted now, and served. A damaged record is left out with a warning."""
    noted = []
    with runtime_directory.mine() as directory:
        # Killed daemons may have left many others.
        for name in sorted(map(_file_name, mounted())):
            try:
                noted.append(_read(directory, name))
            except MountError as error:
                # It must not keep the other views from being used.
                _log.warning("%s", error)
    return [found.record for found in noted if found is not None and found.served]


def mounted() -> set[str]:
    """Return the mount points of our views in this mount namespace."""
    return {os.fsdecode(found.mountpoint) for found in mountinfo.mounts() if found.kind == FILESYSTEM_TYPE}


def is_in_view(fd: int) -> bool:
    """Return whether an open file is in one of our views. No daemon is asked. Raises OSError."""
    number = mountinfo.mount_number_of(fd)
    return any(found.number == number and found.kind == FILESYSTEM_TYPE for found in mountinfo.mounts())


# --- where a daemon is asked -----------------------------------------------------------------------


class Place(NamedTuple):
    """A place in a view.

    It has the view's mount point, the absolute path in the view, the socket of the view's daemon, and the user who
    mounted the view, as whom the daemon must run.
    """

    mountpoint: str
    path: str
    socket: str
    owner: int


def _socket_name(mountpoint: str) -> str:
    return _file_name(mountpoint).removesuffix(_SUFFIX) + ".sock"


def socket_path(mountpoint: str) -> str:
    """Return the socket at which this user's daemon of a mount point can be asked, see `control`."""
    return os.path.join(runtime_directory.of_this_user(), _socket_name(mountpoint))


def _socket_of(mountpoint: str, uid: int) -> str:
    """Return the same for another user's daemon."""
    paths = [os.path.join(directory, _socket_name(mountpoint)) for directory in runtime_directory.of_user(uid)]
    return next((path for path in paths if os.path.lexists(path)), paths[-1])


def place_in_view(path: bytes, *, follow: bool) -> Place:
    """Return the view that a path lies in, and its place there.

    The path need not exist. With `follow`, a path that is a symbolic link means the link's target. Raises MountError.
    """
    head, name = os.path.split(path)
    if follow or name in (b"", b".", b".."):
        resolved = os.path.realpath(path)
    else:
        resolved = os.path.join(os.path.realpath(head), name)
    above = [mount for mount in mountinfo.mounts() if _lies_in(resolved, mount.mountpoint)]
    # If there are several mounts at one place, the last one made is visible.
    found = max(enumerate(above), key=lambda numbered: (len(numbered[1].mountpoint), numbered[0]))[1]
    mountpoint = os.fsdecode(found.mountpoint)
    if found.kind != FILESYSTEM_TYPE:
        raise MountError(f"{os.fsdecode(path)} is not in a view", f"'findmnt -t {FILESYSTEM_TYPE}' lists the views")
    owner = _owner(found)
    if os.geteuid() not in (0, owner):
        raise MountError(f"{mountpoint} was mounted by user {owner}", "only they and root can ask its daemon")
    inside = os.fsdecode(os.path.normpath(b"/" + os.path.relpath(resolved, found.mountpoint)))
    socket = socket_path(mountpoint) if owner == os.geteuid() else _socket_of(mountpoint, owner)
    return Place(mountpoint, inside, socket, owner)


def was_left(mountpoint: str, owner: int) -> bool:
    """Return whether a view is still mounted, but its daemon, which has just ended its connections, is gone.

    Raises MountError, OSError.
    """
    if mountpoint not in mounted():
        return False
    # Only the records of our own daemons can be read. Another user's daemon unmounts before it ends connections.
    return owner != os.geteuid() or not is_served(mountpoint)


def has_ended(mountpoint: str, owner: int) -> bool:
    """Return whether no daemon serves a view any more, nor will: it is not mounted, or nobody answers for it.

    Raises MountError, OSError.
    """
    return mountpoint not in mounted() or (owner == os.geteuid() and not is_served(mountpoint))


def _owner(mounted: mountinfo.Mounted) -> int:
    """Return the user who mounted a view, whom the kernel itself shows for every FUSE mount: nobody can forge that."""
    return next(int(option.removeprefix("user_id=")) for option in mounted.options if option.startswith("user_id="))


def _lies_in(path: bytes, directory: bytes) -> bool:
    return path == directory or path.startswith(directory.rstrip(b"/") + b"/")
