"""The changes that can be made to attributes and sizes of the upper's objects, each with its event."""

from __future__ import annotations

import fcntl
import logging
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from overlayfs_demo.errors import printable
from overlayfs_demo.events import Action, Event, Events
from overlayfs_demo.linux import proc, xattr
from overlayfs_demo.overlay import inode_flags, override_stat
from overlayfs_demo.overlay.inode_flags import Format
from overlayfs_demo.overlay.layer import UpperDir
from overlayfs_demo.overlay.node import Node
from overlayfs_demo.overlay.override_stat import OverrideStat
from overlayfs_demo.overlay.pinned import Pinned
from overlayfs_demo.overlay.types import Caller
from overlayfs_demo.overlay.whiteout import PrivateXattrs

_log = logging.getLogger(__name__)


class UpperAttributes:
    """Changes objects of the upper without touching names.

    The methods raise OSError with the errno of the call that failed, and then nothing is changed. `what` is the node
    that is changed, or its path, for the event.
    """

    __slots__ = ("events", "xattrs")

    def __init__(self, xattrs: PrivateXattrs, events: Events) -> None:
        self.xattrs = xattrs
        self.events = events

    def emit(
        self, action: Action, what: Node | bytes, caller: Caller, layer: str = "", size: int = 0, detail: str = ""
    ) -> None:
        """Emit the event of a change to a node or a path. Call it after the change, once for each."""
        if self.events.listening:
            path = what if isinstance(what, bytes) else what.path()
            self.events.emit(Event(action, path, caller.pid, caller.uid, caller.call, layer, size, detail))

    # --- extended attributes and flags -------------------------------------------------------------

    def set_xattr(
        self, pinned: Pinned, what: Node | bytes, name: str, value: bytes, flags: int, caller: Caller
    ) -> None:
        """setxattr(2). `flags` may be XATTR_CREATE or XATTR_REPLACE."""
        os.setxattr(pinned.place, name, value, flags)
        if name == self.xattrs.redirect:
            self.emit(Action.REDIRECT, what, caller, detail=os.fsdecode(value))
        else:
            self.emit(Action.OPAQUE if name == self.xattrs.opaque else Action.SETXATTR, what, caller, detail=name)

    def remove_xattr(self, pinned: Pinned, what: Node | bytes, name: str, caller: Caller) -> None:
        """removexattr(2)."""
        os.removexattr(pinned.place, name)
        self.emit(Action.REMOVEXATTR, what, caller, detail=name)

    def mark_impure(self, directory: UpperDir) -> None:
        """Add the mark that `impure` explains. No view shows it, so there is no event."""
        os.setxattr(directory.open().fd, self.xattrs.impure, b"y")
        directory.forget_marks()

    def unmark_impure(self, directory: UpperDir) -> None:
        """Remove the mark that `mark_impure` adds."""
        os.removexattr(directory.open().fd, self.xattrs.impure)
        directory.forget_marks()

    def set_flags(
        self, pinned: Pinned, what: Node | bytes, form: Format, value: bytes, protection: bytes, caller: Caller
    ) -> None:
        """Set inode flags, and store the `protection` beside them, see `inode_flags`."""
        fd = os.dup(pinned.place) if isinstance(pinned.place, int) else pinned.open(os.O_RDONLY)
        try:
            before = inode_flags.ask(fd, form)
            # First, because it is the call that a filesystem may refuse, and because a real "immutable" flag, which
            # the ioctl clears, would forbid the other.
            fcntl.ioctl(fd, form.set, value)
            with _undone_if_it_fails(pinned, lambda: fcntl.ioctl(fd, form.set, before)):
                self._store_protection(fd, protection)
        finally:
            os.close(fd)
        self.emit(Action.SETXATTR, what, caller, detail="inode flags")

    def _store_protection(self, fd: int, protection: bytes) -> None:
        if protection:
            os.setxattr(fd, self.xattrs.protattr, protection)
        elif xattr.get(fd, self.xattrs.protattr) is not None:
            os.removexattr(fd, self.xattrs.protattr)

    # --- owner, mode, times, size ------------------------------------------------------------------

    def chmod(self, pinned: Pinned, what: Node | bytes, mode: int, caller: Caller) -> None:
        """chmod(2). `mode` holds permission, set-id and sticky bits."""
        os.chmod(pinned.place, mode)
        self.emit(Action.CHMOD, what, caller, detail=f"{mode:04o}")

    def chown(self, pinned: Pinned, what: Node | bytes, uid: int, gid: int, caller: Caller) -> None:
        """chown(2). -1 leaves an id as it is."""
        os.chown(pinned.place, uid, gid)
        self.emit(Action.CHOWN, what, caller, detail=f"{uid}:{gid}")

    def set_override_stat(
        self, pinned: Pinned, what: Node | bytes, override: OverrideStat, action: Action, detail: str, caller: Caller
    ) -> None:
        """Store the owner and mode of a file or directory in its override. `action` and `detail` tell which is new."""
        place, status = pinned.place, pinned.stat()
        mode, known = stat.S_IMODE(status.st_mode), pinned.xattr(override_stat.NAME)
        with _undone_if_it_fails(pinned, lambda: os.chmod(place, mode)):
            writable = mode | override_stat.needs(status.st_mode)
            if mode != writable:
                os.chmod(place, writable)  # Otherwise its owner must not write the override: xattr(7).
            # Before the real mode, because this is the one step that the view shows.
            os.setxattr(place, override_stat.NAME, override.encode())
            with _undone_if_it_fails(pinned, lambda: _restore_override(place, known)):
                os.chmod(place, override.on_disk(status.st_mode))
        self.emit(action, what, caller, detail=detail)

    def utimens(self, pinned: Pinned, what: Node | bytes, atime_ns: int, mtime_ns: int, caller: Caller) -> None:
        """utimensat(2). Times are nanoseconds since the epoch."""
        os.utime(pinned.place, ns=(atime_ns, mtime_ns))
        self.emit(Action.UTIMENS, what, caller)

    def truncate(self, fd: int, what: Node | bytes, size: int, caller: Caller, *, by_path: bool) -> None:
        """Set the size of a file that is open for writing, see `resize`."""
        resize(fd, size, by_path)
        self.emit(Action.TRUNCATE, what, caller, size=size)


@contextmanager
def _undone_if_it_fails(pinned: Pinned, undo: Callable[[], object]) -> Iterator[None]:
    """Call `undo` if the body, the second half of a change, fails. If that fails as well, the log says so."""
    try:
        yield
    except BaseException:
        try:
            undo()
        except OSError as error:
            _log.warning("half of a failed change stays on '%s': %s", printable(pinned.real_path()), error.strerror)
        raise


def _restore_override(place: int | bytes, value: bytes | None) -> None:
    if value is None:
        os.removexattr(place, override_stat.NAME)
    else:
        os.setxattr(place, override_stat.NAME, value)


def resize(fd: int, size: int, by_path: bool) -> None:
    """ftruncate(2), or truncate(2) with `by_path`, of a file that is open for writing. `size` is in bytes.

    If the size stays the same, only ftruncate(2) always sets the modification time (fs/open.c, do_truncate).
    """
    os.truncate(proc.fd_path(fd) if by_path else fd, size)
