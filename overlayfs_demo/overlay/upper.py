"""The changes that can be made to the upper, each as one atomic step.

These primitives are the only code that writes to the upper, and each emits one event. A change that takes
more than one system call is prepared in the work directory and published with one rename, so the upper
shows the old state or the new one, never half of either.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import secrets
import stat
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count

from overlayfs_demo.events import Action, Event, Events
from overlayfs_demo.linux import proc, syscalls, xattr
from overlayfs_demo.overlay import incompat, override_stat
from overlayfs_demo.overlay.layer import Key, Layer, UpperDir, key_of, stale
from overlayfs_demo.overlay.override_stat import StatRecord
from overlayfs_demo.overlay.pinned import Pinned
from overlayfs_demo.overlay.types import Caller
from overlayfs_demo.overlay.whiteout import PrivateXattrs, Whiteouts, is_whiteout
from overlayfs_demo.overlay.workdir import open_work, remove_emptied

_log = logging.getLogger(__name__)

_ACTIONS = {stat.S_IFREG: Action.CREATE, stat.S_IFDIR: Action.MKDIR, stat.S_IFLNK: Action.SYMLINK}


@dataclass(frozen=True, slots=True)
class NewObject:
    """A file, directory, symbolic link or device to create. `mode` is complete: S_IFMT and permission bits.

    `inherits_gid`: the group comes from the directory, by its set-group-ID bit. `xattrs` are set before
    the object becomes visible. `target` is a symbolic link's.
    """

    mode: int
    uid: int
    gid: int
    rdev: int = 0
    target: bytes = b""
    inherits_gid: bool = False
    xattrs: tuple[tuple[str, bytes], ...] = ()

    def make(self, dir_fd: int, name: bytes) -> None:
        """Create the object, without owner and xattrs. EEXIST if the name is taken."""
        kind = stat.S_IFMT(self.mode)
        if kind == stat.S_IFDIR:
            os.mkdir(name, stat.S_IMODE(self.mode), dir_fd=dir_fd)
        elif kind == stat.S_IFLNK:
            os.symlink(self.target, name, dir_fd=dir_fd)
        else:
            os.mknod(name, self.mode, self.rdev, dir_fd=dir_fd)


class Upper:
    """The writable layer and its work directory.

    Owns `work_fd` until `close`. The methods take directories of the upper, which must exist. They
    raise OSError with the errno of the call that failed, and then nothing is changed.
    """

    __slots__ = (
        "_discarded",
        "_ids",
        "_mark",
        "_serial",
        "_whiteouts",
        "events",
        "layer",
        "root",
        "volatile",
        "work_fd",
        "xattrs",
    )

    def __init__(self, layer: Layer, work_path: bytes, xattrs: PrivateXattrs, events: Events, volatile: bool) -> None:
        self.layer = layer
        self.xattrs = xattrs
        self.events = events
        self.volatile = volatile
        self.root = UpperDir(layer, None, b"")
        self.work_fd = open_work(work_path, xattrs)
        if volatile:
            incompat.mark_volatile(self.work_fd)
        self._ids = (os.geteuid(), os.getegid())
        # Makes our names differ from those that an earlier mount may have left in the work directory.
        self._mark = secrets.token_hex(4).encode()
        self._serial = count(1)
        self._discarded: deque[bytes] = deque()
        self._whiteouts = Whiteouts(self.work_fd)

    def close(self) -> None:
        """Close the work directory. The upper must not be used afterwards."""
        self.sweep()
        self._whiteouts.drop_shared()
        os.close(self.work_fd)

    # --- events and staging ------------------------------------------------------------------------

    def emit(
        self, action: Action, path: bytes, caller: Caller, layer: str = "", size: int = 0, detail: str = ""
    ) -> None:
        """Emit the event of a change to `path`. Call it after the change, once for each."""
        if self.events.listening:
            self.events.emit(Event(action, path, caller.pid, caller.uid, caller.call, layer, size, detail))

    def _tell(
        self, action: Action, directory: UpperDir, name: bytes, caller: Caller, layer: str = "", detail: str = ""
    ) -> None:
        """Emit the event of a change to a name, and count the change. Call it after the change, once for each."""
        directory.changes += 1
        if self.events.listening:
            self.emit(action, view_path(directory, name), caller, layer, detail=detail)

    @contextmanager
    def staged(self) -> Iterator[bytes]:
        """Yield a free name in the work directory. If the body fails, whatever has that name is removed."""
        name = self._free_name()
        try:
            yield name
        except BaseException:
            self.discard(name)
            raise

    def _free_name(self) -> bytes:
        return b"#%s-%x" % (self._mark, next(self._serial))

    def discard(self, name: bytes) -> None:
        """Remove `name` from the work directory, if it exists. A directory with whiteouts is left to `sweep`.

        An object that cannot be removed stays until the next mount. That is no failure: the change itself has been
        made, or undone, by now.
        """
        try:
            os.unlink(name, dir_fd=self.work_fd)
        except FileNotFoundError:
            pass
        except IsADirectoryError:
            try:
                os.rmdir(name, dir_fd=self.work_fd)
            except OSError:
                self._discarded.append(name)
        except OSError as error:
            _log.warning("a removed file stays in the work directory: %s", error)

    @contextmanager
    def swept(self) -> Iterator[None]:
        """Call `sweep` after the body, even if it fails. Do not use with the tree's lock held."""
        try:
            yield
        finally:
            self.sweep()

    def sweep(self) -> None:
        """Remove the discarded directories. They may hold many whiteouts, so call without the tree's lock."""
        while self._discarded:
            with suppress(IndexError):  # Another thread took the last one.
                remove_emptied(self.work_fd, self._discarded.popleft(), self.xattrs)

    # --- new names ---------------------------------------------------------------------------------

    def create(
        self, directory: UpperDir, name: bytes, new: NewObject, over_whiteout: bool, caller: Caller
    ) -> os.stat_result:
        """Create an object and return its status. `over_whiteout`: the name holds a whiteout, which is replaced."""
        fd = directory.open().fd
        if over_whiteout or not self._is_born_right(new):
            with self.staged() as temporary:
                new.make(self.work_fd, temporary)
                self._dress(temporary, new)
                status = os.stat(temporary, dir_fd=self.work_fd, follow_symlinks=False)
                self.publish(temporary, directory, name, over_whiteout, stat.S_ISDIR(new.mode))
            # The rename changed the ctime. But the object exists now, so a failed stat(2) must not make this fail.
            with suppress(OSError):
                status = os.stat(name, dir_fd=fd, follow_symlinks=False)
        else:
            new.make(fd, name)
            try:
                status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            except BaseException:
                (os.rmdir if stat.S_ISDIR(new.mode) else os.unlink)(name, dir_fd=fd)
                raise
        action = _ACTIONS.get(stat.S_IFMT(new.mode), Action.MKNOD)
        self._tell(action, directory, name, caller, detail=os.fsdecode(new.target))
        return status

    def create_open(
        self,
        directory: UpperDir,
        name: bytes,
        new: NewObject,
        over_whiteout: bool,
        flags: int,
        check: Callable[[int], None],
        caller: Caller,
    ) -> int:
        """Create a regular file and open it with `flags`; the caller owns the descriptor.

        If `check` refuses the descriptor by raising OSError, no file is created.
        """
        flags |= os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        mode = stat.S_IMODE(new.mode)
        if over_whiteout or not self._is_born_right(new):
            with self.staged() as temporary:
                # Opened before it is published, so that an open that fails leaves no file behind.
                fd = os.open(temporary, flags, mode, dir_fd=self.work_fd)
                try:
                    check(fd)
                    self._dress_open(fd, new)
                    self.publish(temporary, directory, name, over_whiteout, False)
                except BaseException:
                    os.close(fd)
                    raise
        else:
            fd = os.open(name, flags, mode, dir_fd=directory.open().fd)
            try:
                check(fd)
            except BaseException:
                os.close(fd)
                os.unlink(name, dir_fd=directory.open().fd)
                raise
        self._tell(Action.CREATE, directory, name, caller)
        return fd

    def tmpfile(self, directory: UpperDir, new: NewObject, flags: int, caller: Caller) -> int:
        """Create a regular file without a name and open it with `flags`: open(2) with O_TMPFILE.

        The caller owns the descriptor. `directory` is the one that the process named. The file is created in the
        work directory instead because there it inherits nothing: `new` says all that it gets.
        """
        fd = os.open(b".", flags | os.O_TMPFILE | os.O_CLOEXEC, 0o600, dir_fd=self.work_fd)
        try:
            self._dress_open(fd, new)
        except BaseException:
            os.close(fd)
            raise
        if self.events.listening:
            self.emit(Action.TMPFILE, b"/" + directory.path(), caller)
        return fd

    def _is_born_right(self, new: NewObject) -> bool:
        """Whether the object would have the right owner, group and attributes from the moment it is created."""
        uid, gid = self._ids
        return not new.xattrs and new.uid == uid and (new.inherits_gid or new.gid == gid)

    def _dress(self, temporary: bytes, new: NewObject) -> None:
        """Set the owner, mode and attributes of a staged object.

        The mode comes after the owner because chown(2) clears set-user-ID and set-group-ID bits.
        """
        os.chown(temporary, new.uid, new.gid, dir_fd=self.work_fd, follow_symlinks=False)
        if not stat.S_ISLNK(new.mode):
            os.chmod(temporary, stat.S_IMODE(new.mode), dir_fd=self.work_fd)
        for key, value in new.xattrs:
            os.setxattr(proc.path_of(self.work_fd, temporary), key, value, follow_symlinks=False)

    def _dress_open(self, fd: int, new: NewObject) -> None:
        """Like `_dress`, for a regular file that is open."""
        os.fchown(fd, new.uid, new.gid)
        os.fchmod(fd, stat.S_IMODE(new.mode))
        for key, value in new.xattrs:
            os.setxattr(fd, key, value)

    def publish(
        self, temporary: bytes, directory: UpperDir, name: bytes, over_whiteout: bool, is_directory: bool
    ) -> None:
        """Move a staged object to its name, which must be free or, with `over_whiteout`, hold a whiteout."""
        directory.changes += 1
        fd = directory.open().fd
        if not over_whiteout:
            syscalls.rename(self.work_fd, temporary, fd, name, syscalls.RENAME_NOREPLACE)
        elif is_directory:
            # rename(2) cannot replace a non-directory with a directory, but it can exchange them.
            whiteout = directory.stat(name)
            if whiteout is None or stat.S_ISDIR(whiteout.st_mode):
                raise stale(name)
            self._exchange(temporary, directory, name, key_of(whiteout))
        else:
            syscalls.rename(self.work_fd, temporary, fd, name)

    def link(self, file: Pinned, directory: UpperDir, name: bytes, over_whiteout: bool, caller: Caller) -> None:
        """Give a file of the upper another name."""
        assert isinstance(file.place, bytes)
        with self.staged() as temporary:
            where = (self.work_fd, temporary) if over_whiteout else (directory.open().fd, name)
            syscalls.link_path(file.place, *where)
            if over_whiteout:
                self.publish(temporary, directory, name, True, False)
        self._tell(Action.LINK, directory, name, caller)

    # --- names that go -----------------------------------------------------------------------------

    def whiteout(self, directory: UpperDir, name: bytes, replaced: Key | None, layer: str, caller: Caller) -> None:
        """Hide what the lowers have as `name`.

        `replaced` is the identity of the upper's object there, if it has one. `layer` is the label of the layer that
        is hidden.
        """
        fd = directory.open().fd
        if replaced is not None:
            with self.staged() as temporary:
                self._whiteouts.make(self.work_fd, temporary)
                self._exchange(temporary, directory, name, replaced)
        else:
            self._whiteouts.make(fd, name)
        self._tell(Action.WHITEOUT, directory, name, caller, layer)

    def unlink(self, directory: UpperDir, name: bytes, caller: Caller) -> None:
        """Remove a name that only the upper has, and the file if this was its last name."""
        os.unlink(name, dir_fd=directory.open().fd)
        self._tell(Action.UNLINK, directory, name, caller)

    def _exchange(self, temporary: bytes, directory: UpperDir, name: bytes, replaced: Key) -> None:
        """Put a staged object in the place of another one, which may be a directory with whiteouts, and discard that.

        ESTALE if it is not the object `replaced`: it may hold files that nobody wanted to remove.
        """
        fd = directory.open().fd
        syscalls.rename(self.work_fd, temporary, fd, name, syscalls.RENAME_EXCHANGE)
        # Checked afterwards, in the work directory: there nobody can replace it between the check and its removal.
        if not self._is_staged(temporary, replaced):
            syscalls.rename(self.work_fd, temporary, fd, name, syscalls.RENAME_EXCHANGE)
            raise stale(name)
        self.discard(temporary)

    def _is_staged(self, temporary: bytes, key: Key) -> bool:
        return key_of(os.stat(temporary, dir_fd=self.work_fd, follow_symlinks=False)) == key

    def rmdir(self, directory: UpperDir, name: bytes, key: Key, caller: Caller) -> None:
        """Remove a directory that only the upper has. It may hold whiteouts but nothing else.

        ESTALE if it is not empty on disk and does not have the identity `key`.
        """
        fd = directory.open().fd
        try:
            os.rmdir(name, dir_fd=fd)
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise
            temporary = self._free_name()
            syscalls.rename(fd, name, self.work_fd, temporary)
            if not self._is_staged(temporary, key):
                syscalls.rename(self.work_fd, temporary, fd, name, syscalls.RENAME_NOREPLACE)
                raise stale(name) from None
            self.discard(temporary)
        self._tell(Action.RMDIR, directory, name, caller)

    # --- names that move ---------------------------------------------------------------------------

    def rename(self, old_dir: UpperDir, old: bytes, new_dir: UpperDir, new: bytes, flags: int, caller: Caller) -> None:
        """renameat2(2) inside the upper, with RENAME_EXCHANGE or RENAME_WHITEOUT in `flags`."""
        old_fd, new_fd = old_dir.open(), new_dir.open()
        try:
            syscalls.rename(old_fd.fd, old, new_fd.fd, new, flags)
        except OSError as error:
            if error.errno != errno.EINVAL or not flags & syscalls.RENAME_WHITEOUT:
                raise
            # The filesystem has no RENAME_WHITEOUT: between the two renames the old name shows the lower.
            with self.staged() as temporary:
                self._whiteouts.make(self.work_fd, temporary)
                syscalls.rename(old_fd.fd, old, new_fd.fd, new)
                syscalls.rename(self.work_fd, temporary, old_fd.fd, old)
        new_dir.changes += 1
        action = Action.EXCHANGE if flags & syscalls.RENAME_EXCHANGE else Action.RENAME
        detail = os.fsdecode(view_path(new_dir, new)) if self.events.listening else ""
        self._tell(action, old_dir, old, caller, detail=detail)

    def remove_whiteout(self, directory: UpperDir, name: bytes) -> None:
        """Remove a whiteout that no longer hides anything.

        This does not change the view, so it emits no event and does not fail.
        """
        try:
            status = directory.stat(name)
            if status is not None and is_whiteout(status):
                os.unlink(name, dir_fd=directory.open().fd)
        except OSError as error:
            _log.warning("a whiteout that hides nothing stays in the upper: %s: %s", directory.path(), error)

    def clear(self, directory: UpperDir, name: bytes, status: os.stat_result, caller: Caller) -> None:
        """Replace a directory that is empty in the view with an opaque one that is empty on disk.

        The new directory gets the owner and mode from `status`. ESTALE if `name` is not the directory with that status.
        """
        with self.staged() as temporary:
            os.mkdir(temporary, 0o700, dir_fd=self.work_fd)
            os.setxattr(proc.path_of(self.work_fd, temporary), self.xattrs.opaque, b"y")
            os.chown(temporary, status.st_uid, status.st_gid, dir_fd=self.work_fd)
            os.chmod(temporary, stat.S_IMODE(status.st_mode), dir_fd=self.work_fd)
            self._exchange(temporary, directory, name, key_of(status))
        self._tell(Action.OPAQUE, directory, name, caller)

    # --- attributes --------------------------------------------------------------------------------

    def set_xattr(self, pinned: Pinned, path: bytes, name: str, value: bytes, flags: int, caller: Caller) -> None:
        """setxattr(2). `flags` may be XATTR_CREATE or XATTR_REPLACE."""
        os.setxattr(pinned.place, name, value, flags)
        if name == self.xattrs.redirect:
            self.emit(Action.REDIRECT, path, caller, detail=os.fsdecode(value))
        else:
            self.emit(Action.OPAQUE if name == self.xattrs.opaque else Action.SETXATTR, path, caller, detail=name)

    def remove_xattr(self, pinned: Pinned, path: bytes, name: str, caller: Caller) -> None:
        """removexattr(2)."""
        os.removexattr(pinned.place, name)
        self.emit(Action.REMOVEXATTR, path, caller, detail=name)

    def set_flags(
        self, pinned: Pinned, path: bytes, command: int, value: bytes, protection: bytes, caller: Caller
    ) -> None:
        """Set inode flags with the ioctl `command`, and store the `protection` beside them, see `inode_flags`."""
        fd = os.dup(pinned.place) if isinstance(pinned.place, int) else pinned.open(os.O_RDONLY)
        try:
            # First, because it is the call that a filesystem may refuse: then nothing is changed.
            fcntl.ioctl(fd, command, value)
            if protection:
                os.setxattr(fd, self.xattrs.protattr, protection)
            elif xattr.get(fd, self.xattrs.protattr) is not None:
                os.removexattr(fd, self.xattrs.protattr)
        finally:
            os.close(fd)
        self.emit(Action.SETXATTR, path, caller, detail="inode flags")

    def chmod(self, pinned: Pinned, path: bytes, mode: int, caller: Caller) -> None:
        """chmod(2). `mode` holds permission, set-id and sticky bits."""
        os.chmod(pinned.place, mode)
        self.emit(Action.CHMOD, path, caller, detail=f"{mode:04o}")

    def chown(self, pinned: Pinned, path: bytes, uid: int, gid: int, caller: Caller) -> None:
        """chown(2). -1 leaves an id as it is."""
        os.chown(pinned.place, uid, gid)
        self.emit(Action.CHOWN, path, caller, detail=f"{uid}:{gid}")

    def record(
        self, pinned: Pinned, path: bytes, record: StatRecord, action: Action, detail: str, caller: Caller
    ) -> None:
        """Store the owner and mode of a file or directory in its record. `action` and `detail` tell which is new."""
        os.chmod(pinned.place, record.on_disk(pinned.stat().st_mode))
        os.setxattr(pinned.place, override_stat.NAME, record.encode())
        self.emit(action, path, caller, detail=detail)

    def utimens(self, pinned: Pinned, path: bytes, atime_ns: int, mtime_ns: int, caller: Caller) -> None:
        """utimensat(2). Times are nanoseconds since the epoch."""
        os.utime(pinned.place, ns=(atime_ns, mtime_ns))
        self.emit(Action.UTIMENS, path, caller)

    def truncate(self, fd: int, path: bytes, size: int, caller: Caller, *, by_path: bool) -> None:
        """Set the size of a file that is open for writing, see `resize`."""
        resize(fd, size, by_path)
        self.emit(Action.TRUNCATE, path, caller, size=size)


def resize(fd: int, size: int, by_path: bool) -> None:
    """ftruncate(2), or truncate(2) with `by_path`, of a file that is open for writing. `size` is in bytes.

    If the size stays the same, only ftruncate(2) always sets the modification time (fs/open.c, do_truncate).
    """
    os.truncate(proc.fd_path(fd) if by_path else fd, size)


def view_path(directory: UpperDir, name: bytes) -> bytes:
    """Return the path in the view of a name in the upper; both have the same directories."""
    above = directory.path()
    return b"/%s/%s" % (above, name) if above else b"/" + name
