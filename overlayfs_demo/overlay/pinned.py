"""Access to the object that was looked up, even if its name leads to another one by now.

Anyone who can write to a layer may replace an object between its lookup and a change: with a symbolic link, a FIFO,
or a file of root's. So nothing is changed by name. An object is opened with O_PATH|O_NOFOLLOW, which does not
follow a link, block, or touch a device. It is then compared with the one that was looked up, and every call
goes through that descriptor.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from typing import TypeVar

from overlayfs_demo.linux import proc, xattr
from overlayfs_demo.named_tuple import NamedTuple
from overlayfs_demo.overlay import questions
from overlayfs_demo.overlay.layer import Descriptor, Key, stale

_T = TypeVar("_T")
_T2 = TypeVar("_T2")

# A FIFO must not block the daemon, and a terminal must not become its controlling terminal: open(2).
_HARMLESS = os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class Pinned:
    """One real object, held open as long as this value exists. `place` is its path or descriptor for `os` functions.

    Calls on a descriptor take a fraction of the time of calls on a path.
    """

    __slots__ = ("_held", "place")

    def __init__(self, held: Descriptor, place: bytes | int) -> None:
        self._held = held
        self.place = place

    @classmethod
    def opened(cls, held: Descriptor) -> Pinned:
        """Pin a file or directory that is open for reading or writing, so that all calls accept its descriptor."""
        return cls(held, held.fd)

    @classmethod
    def through(cls, held: Descriptor) -> Pinned:
        """Pin the object of an O_PATH descriptor.

        The descriptor's link in /proc leads to that object and no further, even if it is a symbolic link or has no
        name any more: proc_pid_fd(5).
        """
        return cls(held, proc.fd_path(held.fd))

    @property
    def path(self) -> bytes:
        """A path that leads to the object while this value exists. It must be followed."""
        return proc.fd_path(self._held.fd)

    def stat(self) -> os.stat_result:
        """stat(2)."""
        return os.fstat(self._held.fd)

    def open(self, flags: int) -> int:
        """open(2) of a regular file; the caller owns the descriptor. EAGAIN if somebody has a lease on it, fcntl(2)."""
        return os.open(proc.fd_path(self._held.fd), flags | _HARMLESS)

    def xattr(self, name: str) -> bytes | None:
        """Return an extended attribute's value, or None if there is none."""
        return xattr.get(self.place, name, follow=True)

    def must_xattr(self, name: str) -> bytes:
        """Return an extended attribute's value. Raises OSError, ENODATA if there is none."""
        return os.getxattr(self.place, name)

    def xattrs(self) -> list[str]:
        """Return the names of the extended attributes."""
        return xattr.names(self.place, follow=True)

    def directly(self) -> Pinned:
        """Return the same object, asked directly."""
        return self

    def ask(self, function: Callable[[Pinned, _T], _T2], argument: _T) -> _T2:
        """Return what `function` finds out about the object."""
        return function(self, argument)

    def real_path(self) -> bytes:
        """Return the object's present path on disk, for messages: proc_pid_fd(5)."""
        return os.readlink(proc.fd_path(self._held.fd))

    def readlink(self) -> bytes:
        """readlink(2) of a symbolic link."""
        return os.readlink(b"", dir_fd=self._held.fd)


class PinnedElsewhere(Pinned):
    """An object of a layer that may stall: it is asked through `questions`."""

    __slots__ = ()

    @classmethod
    def like(cls, pinned: Pinned) -> PinnedElsewhere:
        """Return the same object as one of such a layer."""
        return cls(pinned._held, pinned.place)

    # The same object is asked about by several values.
    def __eq__(self, other: object) -> bool:
        return isinstance(other, PinnedElsewhere) and self._held is other._held and self.place == other.place

    def __hash__(self) -> int:
        return hash((self._held, self.place))

    def directly(self) -> Pinned:
        return Pinned(self._held, self.place)

    def stat(self) -> os.stat_result:
        return questions.ask(Pinned.stat, self)

    def xattr(self, name: str) -> bytes | None:
        return questions.ask(Pinned.xattr, self, name)

    def must_xattr(self, name: str) -> bytes:
        return questions.ask(Pinned.must_xattr, self, name)

    def xattrs(self) -> list[str]:
        return questions.ask(Pinned.xattrs, self)

    def readlink(self) -> bytes:
        return questions.ask(Pinned.readlink, self)

    def ask(self, function: Callable[[Pinned, _T], _T2], argument: _T) -> _T2:
        return questions.ask(function, self, argument)


def hold(directory: Descriptor, name: bytes, key: Key, kind: int) -> Descriptor:
    """Open the object `name` in a directory with O_PATH. ESTALE unless it has this identity and S_IFMT kind."""
    try:
        held = Descriptor(os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory.fd))
    except FileNotFoundError:
        raise stale(name) from None
    check_same(os.fstat(held.fd), key, kind, name)
    return held


def check_same(status: os.stat_result, key: Key, kind: int, name: bytes) -> None:
    """Raise ESTALE unless a real object has this identity and S_IFMT kind.

    The kind is compared as well because a filesystem may give the inode number of a removed file to the next new one.
    """
    if (status.st_dev, status.st_ino) != key or stat.S_IFMT(status.st_mode) != kind:
        raise stale(name)


class Way(NamedTuple):
    """The way to a regular file: `name` in an open directory, and the identity of that file at its lookup.

    If the name is empty, `held` is the file itself. `quiet`: reading must not change its access time.
    """

    held: Descriptor
    name: bytes
    key: Key
    quiet: bool

    def open(self, flags: int) -> int:
        """Open the file; the caller owns the descriptor. Raises OSError, ESTALE if another file is there by now."""
        if not self.name:
            return Pinned.through(self.held).open(flags)
        if not self.quiet:
            return self._open(flags)
        try:
            return self._open(flags | os.O_NOATIME)
        except PermissionError:
            return self._open(flags)  # Only the owner and root may ask for O_NOATIME: open(2).

    def _open(self, flags: int) -> int:
        """Open the file by name, then check its identity.

        Opening without O_TRUNC changes nothing, so the check may come after it: this takes half as many system calls
        as pinning the file first.
        """
        assert not flags & os.O_TRUNC
        try:
            fd = os.open(self.name, flags | os.O_NOFOLLOW | _HARMLESS, dir_fd=self.held.fd)
        except OSError:
            self._check_name()
            raise
        try:
            check_same(os.fstat(fd), self.key, stat.S_IFREG, self.name)
        except OSError:
            os.close(fd)
            raise
        return fd

    def _check_name(self) -> None:
        """Raise ESTALE if the name is gone or leads to another object: that is then why the file cannot be opened."""
        try:
            status = os.stat(self.name, dir_fd=self.held.fd, follow_symlinks=False)
        except FileNotFoundError:
            raise stale(self.name) from None
        check_same(status, self.key, stat.S_IFREG, self.name)
