"""A copy of a file or a directory from one tree to another, for `cp` into and out of a container.

One of the trees may be hostile, and both may change meanwhile. So every name is reached through the descriptor of its
directory, no symbolic link is ever followed, and what is to be read is opened only once it is known to be a regular
file: opening a device can do harm. Devices and sockets are not copied.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field

from overlayfs_demo.linux import attributes, proc, syscalls
from overlayfs_demo.linux.attributes import Attributes
from overlayfs_demo.linux.failure import failure
from overlayfs_demo.overlay.copy_data import copy_data
from overlayfs_demo.store.in_root import Entry

_CHUNK = 1 << 20
_NO_FOLLOW = os.O_NOFOLLOW | os.O_CLOEXEC
SET_ID = stat.S_ISUID | stat.S_ISGID


@dataclass(frozen=True, slots=True)
class Rules:
    """What a copy keeps: its owner becomes `owner` (None: whoever copies), unless `keep_owners`.

    Set-id bits stay only with `set_id`: out of an image they would give its programs rights on this machine.
    """

    owner: tuple[int, int] | None
    keep_owners: bool
    set_id: bool

    def attributes(self, status: os.stat_result) -> Attributes:
        """Return the attributes of the copy of a file with this status."""
        mode = stat.S_IMODE(status.st_mode) if self.set_id else stat.S_IMODE(status.st_mode) & ~SET_ID
        return Attributes(
            (status.st_uid, status.st_gid) if self.keep_owners else self.owner,
            None if stat.S_ISLNK(status.st_mode) else mode,
            (),
            (status.st_atime_ns, status.st_mtime_ns),
        )


@dataclass(slots=True)
class TreeCopy:
    """One copy. `skipped` are the names, below the source's directory, that it left out: devices and sockets."""

    rules: Rules
    skipped: list[bytes] = field(default_factory=list)
    # The device and inode numbers of the directories that this copy fills: one of them in the source is a loop.
    _filled: set[tuple[int, int]] = field(default_factory=set)

    def copy(self, source: Entry, target: Entry, path: bytes = b"") -> None:
        """Copy what is at `source` to `target`: files replace files, and directories are merged.

        `path` is the source's name in errors. Raises OSError: EISDIR or ENOTDIR if only one of both is a directory,
        EEXIST if the target is a device, a socket or a FIFO, ELOOP if a directory would be copied into itself.
        """
        path = path or source.name
        fd = os.open(source.name, os.O_PATH | _NO_FOLLOW, dir_fd=source.directory)
        try:
            status = os.fstat(fd)
            if stat.S_ISDIR(status.st_mode):
                self._directory(fd, status, target, path)
            else:
                self._file(fd, status, target, path)
        finally:
            os.close(fd)

    def _directory(self, fd: int, status: os.stat_result, target: Entry, path: bytes) -> None:
        if (status.st_dev, status.st_ino) in self._filled:
            raise failure(errno.ELOOP, path)
        is_new = make_directory(target, path)
        into = os.open(target.name, os.O_RDONLY | os.O_DIRECTORY | _NO_FOLLOW, dir_fd=target.directory)
        try:
            self._filled.add(_identity(os.fstat(into)))
            listing = os.open(proc.fd_path(fd), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                for name in sorted(map(os.fsencode, os.listdir(listing))):
                    self.copy(Entry(fd, name), Entry(into, name), os.path.join(path, name))
            finally:
                os.close(listing)
            if is_new:
                _apply(self.rules.attributes(status), into, path)
        finally:
            os.close(into)

    def _file(self, fd: int, status: os.stat_result, target: Entry, path: bytes) -> None:
        given = self.rules.attributes(status)
        if stat.S_ISREG(status.st_mode):
            source = os.open(proc.fd_path(fd), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                put_file(target, given, lambda fd: _copy_data(source, fd, status.st_size), path)
            finally:
                os.close(source)
        elif stat.S_ISLNK(status.st_mode):
            put_link(target, given, os.readlink(b"", dir_fd=fd), path)
        elif stat.S_ISFIFO(status.st_mode):
            put_fifo(target, given, path)
        else:
            self.skipped.append(path)


def _apply(given: Attributes, place: int | bytes, path: bytes) -> None:
    """Set the attributes of a copy. Raises OSError, which names `path` and not the unfinished copy."""
    try:
        attributes.apply(given, place)
    except OSError as error:
        raise failure(error.errno or errno.EIO, path) from error


def _copy_data(source: int, target: int, size: int) -> None:
    """Copy a file's data with its holes: a hostile image may have a file of exabytes that are all one hole."""
    if size:
        copy_data(source, target, size)
        return
    while data := os.read(source, _CHUNK):  # Files of /proc have data, but no size.
        syscalls.write_all(target, data)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


# --- making what is copied -------------------------------------------------------------------------


def make_directory(target: Entry, path: bytes) -> bool:
    """Make a directory; return False if it is there already. Raises OSError: ENOTDIR if a file is."""
    status = target.status()
    if status is None:
        os.mkdir(target.name, 0o700, dir_fd=target.directory)
        return True
    if not stat.S_ISDIR(status.st_mode):
        raise failure(errno.ENOTDIR, path)
    return False


def dress_directory(target: Entry, given: Attributes) -> None:
    """Give a directory these attributes, unless a link has taken its place. Raises OSError."""
    fd = os.open(target.name, os.O_RDONLY | os.O_DIRECTORY | _NO_FOLLOW, dir_fd=target.directory)
    try:
        _apply(given, fd, target.name)
    finally:
        os.close(fd)


def put_file(target: Entry, given: Attributes, write: Callable[[int], None], path: bytes) -> None:
    """Make a regular file, to whose descriptor `write` writes its data; it replaces another in one step.

    Raises OSError, and whatever `write` raises.
    """

    def make(name: bytes) -> None:
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_FOLLOW, 0o600, dir_fd=target.directory)
        try:
            write(fd)
            _apply(given, fd, path)
        finally:
            os.close(fd)

    _replace(target, make, path)


def put_link(target: Entry, given: Attributes, leads_to: bytes, path: bytes) -> None:
    """Make a symbolic link in the place of another file. Raises OSError."""

    def make(name: bytes) -> None:
        os.symlink(leads_to, name, dir_fd=target.directory)
        _apply(given, proc.path_of(target.directory, name), path)

    _replace(target, make, path)


def put_fifo(target: Entry, given: Attributes, path: bytes) -> None:
    """Make a FIFO in the place of another file. Raises OSError."""

    def make(name: bytes) -> None:
        os.mkfifo(name, given.mode or 0, dir_fd=target.directory)
        # Not the mode: chmod(2) would follow a link that somebody else put there in this moment.
        _apply(Attributes(given.owner, None, (), given.times_ns), proc.path_of(target.directory, name), path)

    _replace(target, make, path)


def put_hard_link(target: Entry, other: Entry, path: bytes) -> None:
    """Make another name of a file, in the place of another file. Raises OSError."""
    _replace(
        target,
        lambda name: os.link(
            other.name, name, src_dir_fd=other.directory, dst_dir_fd=target.directory, follow_symlinks=False
        ),
        path,
    )


def _replace(target: Entry, make: Callable[[bytes], None], path: bytes) -> None:
    """Make a file under another name, and give it the target's name, which a file or a symbolic link may have."""
    status = target.status()
    if status is not None and stat.S_ISDIR(status.st_mode):
        raise failure(errno.EISDIR, path)
    if status is not None and not (stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode)):
        raise failure(errno.EEXIST, path)
    unfinished = b".overlayfs-demo-%s" % os.urandom(8).hex().encode()
    try:
        make(unfinished)
        os.rename(unfinished, target.name, src_dir_fd=target.directory, dst_dir_fd=target.directory)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(unfinished, dir_fd=target.directory)
        raise
