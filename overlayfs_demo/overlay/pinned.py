"""How is the very object reached that was looked up, whatever stands at its name by now?

Whoever can reach a layer may put something else at a name between its lookup and a change: a symbolic link, a
FIFO, a file of root's. So nothing is changed by name. An object is opened with O_PATH|O_NOFOLLOW, which neither
follows a link nor waits nor wakes a device; it is compared with the one that was looked up; and every call then
goes through that descriptor.
"""

from __future__ import annotations

import os
import stat
from typing import NamedTuple

from overlayfs_demo.linux import syscalls
from overlayfs_demo.overlay.layer import Descriptor, Key, key_of, stale

# A FIFO must not make the daemon wait, and a terminal must not become its own: open(2).
_HARMLESS = os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class Pinned:
    """One real object, held open for as long as this value lives. `place` is how the `os` functions reach it."""

    __slots__ = ("_held", "place")

    def __init__(self, held: Descriptor, place: bytes | int) -> None:
        self._held = held
        self.place = place

    @classmethod
    def opened(cls, held: Descriptor) -> Pinned:
        """A file or directory that is open for reading or writing, so that all calls take its descriptor."""
        return cls(held, held.fd)

    @classmethod
    def through(cls, held: Descriptor) -> Pinned:
        """What a descriptor of O_PATH is open on. Following the descriptor's link in /proc leads there and no
        further, even if that is a symbolic link or has no name any more: proc_pid_fd(5)."""
        return cls(held, syscalls.fd_path(held.fd))

    def stat(self) -> os.stat_result:
        """stat(2)."""
        return os.fstat(self._held.fd)

    def open(self, flags: int) -> int:
        """open(2) of a regular file; the caller owns the descriptor. EAGAIN where somebody has a lease, fcntl(2)."""
        return os.open(syscalls.fd_path(self._held.fd), flags | _HARMLESS)

    def xattr(self, name: str) -> bytes | None:
        """An extended attribute's value, or None where there is none."""
        return syscalls.get_xattr(self.place, name, follow=True)

    def xattrs(self) -> list[str]:
        """The names of the extended attributes."""
        return syscalls.list_xattrs(self.place, follow=True)

    def readlink(self) -> bytes:
        """readlink(2) of a symbolic link."""
        return os.readlink(b"", dir_fd=self._held.fd)


def hold(dir_fd: int, name: bytes, key: Key, kind: int) -> Descriptor:
    """The object `name` in a directory, open with O_PATH. ESTALE unless it has this identity and S_IFMT kind."""
    try:
        held = Descriptor(os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd))
    except FileNotFoundError:
        raise stale(name) from None
    check_same(os.fstat(held.fd), key, kind, name)
    return held


def check_same(status: os.stat_result, key: Key, kind: int, name: bytes) -> None:
    """ESTALE unless a real object has this identity and S_IFMT kind.

    The kind matters as well: a filesystem gives the inode number of a removed file to the next one it makes.
    """
    if key_of(status) != key or stat.S_IFMT(status.st_mode) != kind:
        raise stale(name)


class Way(NamedTuple):
    """The way to a regular file: `name` in a directory that is held open, and which file that was when looked up. The
    file itself is held if the name is empty. `quiet`: reading must not change its access time."""

    held: Descriptor
    name: bytes
    key: Key
    quiet: bool

    def open(self, flags: int) -> int:
        """Open the file; the caller owns the descriptor. Raises OSError, ESTALE if it is another one by now."""
        if not self.name:
            return Pinned.through(self.held).open(flags)
        if not self.quiet:
            return self._open(flags)
        try:
            return self._open(flags | os.O_NOATIME)
        except PermissionError:
            return self._open(flags)  # Only the owner and root may ask for O_NOATIME: open(2).

    def _open(self, flags: int) -> int:
        """Opening changes nothing, so that the check may follow: this takes half the system calls of pinning first."""
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
        """ESTALE if something else, or nothing, stands at the name now: then that is why the file cannot be opened."""
        try:
            status = os.stat(self.name, dir_fd=self.held.fd, follow_symlinks=False)
        except FileNotFoundError:
            raise stale(self.name) from None
        check_same(status, self.key, stat.S_IFREG, self.name)
