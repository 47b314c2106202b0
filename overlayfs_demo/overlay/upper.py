"""The changes that can be made to the upper, each as one atomic step.

Every change that a view shows is one of these primitives, or one of `upper_attributes`, and each emits one event. A
change that takes more than one system call is prepared in the work directory and published with one rename, so the
upper shows the old state or the new one, never half of either. `docs/architecture.md` lists what else is written there.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from itertools import count

from overlayfs_demo.events import Action, Events
from overlayfs_demo.linux import attributes, proc, syscalls
from overlayfs_demo.linux.attributes import Attributes
from overlayfs_demo.overlay.layer import Descriptor, Key, Layer, UpperDir, key_of, stale
from overlayfs_demo.overlay.new_object import NewObject
from overlayfs_demo.overlay.node import Node
from overlayfs_demo.overlay.pinned import Pinned
from overlayfs_demo.overlay.staging import Staged, Swept
from overlayfs_demo.overlay.types import Caller
from overlayfs_demo.overlay.upper_attributes import UpperAttributes
from overlayfs_demo.overlay.whiteout import PrivateXattrs, Whiteouts, is_whiteout
from overlayfs_demo.overlay.workdir import open_work, remove_emptied

_log = logging.getLogger(__name__)

# In bytes and in seconds: handing the work over to another thread costs about as much as copying so much.
_MUCH = 1 << 16
_QUICK = 0.0005

_ACTIONS = {stat.S_IFREG: Action.CREATE, stat.S_IFDIR: Action.MKDIR, stat.S_IFLNK: Action.SYMLINK}


class Upper(UpperAttributes):
    """The writable layer and its work directory.

    Owns `work_fd` until `close`. The methods take directories of the upper, which must exist. They
    raise OSError with the errno of the call that failed, and then nothing is changed.

    A name may lead to another object than a moment ago, see `pinned`. Names are created and removed all the same, as
    mkdir(2) and unlink(2) do: a new object takes nobody's name, and the caller asked to remove whatever has the name.
    Where more than one name would go, or a staged object takes the place of another, that is compared: see `_exchange`.
    """

    __slots__ = (
        "_discarded",
        "_ids",
        "_mark",
        "_serial",
        "_whiteouts",
        "layer",
        "root",
        "syncs_slowly",
        "volatile",
        "work_fd",
    )

    def __init__(self, layer: Layer, work_path: bytes, xattrs: PrivateXattrs, events: Events, volatile: bool) -> None:
        super().__init__(xattrs, events)
        self.layer = layer
        self.volatile = volatile
        self.root = UpperDir(layer, None, b"")
        self.work_fd = open_work(work_path, xattrs)
        self._ids = (os.geteuid(), os.getegid())
        # Makes our names differ from those that an earlier mount may have left in the work directory.
        self._mark = os.urandom(4).hex().encode()
        self._serial = count(1)
        self._discarded: deque[bytes] = deque()
        # Whether the last fsync(2) took long, as far as is known: on a tmpfs it takes no time at all.
        self.syncs_slowly = not volatile
        self._whiteouts = Whiteouts(self.work_fd)

    def close(self) -> None:
        """Close the work directory. The upper must not be used afterwards."""
        self.sweep()
        self._whiteouts.drop_shared()
        os.close(self.work_fd)

    # --- to the disk -------------------------------------------------------------------------------

    def persist(self, fd: int, *, data_only: bool = False) -> None:
        """fsync(2), or fdatasync(2) with `data_only`, unless this is a volatile upper."""
        if not self.volatile:
            begun = time.monotonic()
            (os.fdatasync if data_only else os.fsync)(fd)
            self.syncs_slowly = time.monotonic() - begun > _QUICK

    def persist_object(self, pinned: Pinned) -> None:
        """fsync(2) of a regular file that is not open; of the whole filesystem if its mode does not let us open it."""
        try:
            opened = Descriptor(pinned.open(os.O_RDONLY))
        except PermissionError:
            self.sync()
        else:
            self.persist(opened.fd)

    def sync(self) -> None:
        """syncfs(2) of the upper's filesystem, unless this is a volatile upper."""
        if not self.volatile:
            syscalls.sync_filesystem(self.layer.root_fd)

    def takes_long(self, size: int) -> bool:
        """Whether copying that many bytes here takes so long that other callers should not wait for it."""
        return size > _MUCH or (size > 0 and self.syncs_slowly)

    # --- events and staging ------------------------------------------------------------------------

    def _tell(
        self, action: Action, directory: UpperDir, name: bytes, caller: Caller, layer: str = "", detail: str = ""
    ) -> None:
        """Emit the event of a change to a name, and count the change. Call it after the change, once for each."""
        directory.changes += 1
        if self.events.listening:
            self.emit(action, view_path(directory, name), caller, layer, detail=detail)

    def staged(self) -> Staged:
        """Return a context that gives a free name in the work directory. If it fails, whatever has that name goes."""
        return Staged(self._free_name(), self.discard)

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

    def swept(self) -> Swept:
        """Return a context that calls `sweep` in the end, even if it fails. Do not use with the tree's lock held."""
        return Swept(self.sweep)

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
        if over_whiteout or not new.is_born_right(*self._ids):
            with self.staged() as temporary:
                held = self._make_staged(temporary, new)
                status = held.stat()
                self.publish(temporary, directory, name, over_whiteout, stat.S_ISDIR(new.mode))
            # The rename changed the ctime. But the object exists now, so a failed stat(2) must not make this fail.
            with suppress(OSError):
                status = held.stat()
        else:
            fd = directory.open().fd
            new.make(fd, name)
            # If another object has the name by now, the status is that object's, as in a lookup a moment later.
            try:
                status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            except BaseException:
                (os.rmdir if stat.S_ISDIR(new.mode) else os.unlink)(name, dir_fd=fd)
                raise
        action = _ACTIONS.get(stat.S_IFMT(new.mode), Action.MKNOD)
        self._tell(action, directory, name, caller, detail=os.fsdecode(new.target))
        return status

    def _make_staged(self, temporary: bytes, new: NewObject) -> Pinned:
        """Make a complete object in the work directory, and hold it."""
        if stat.S_ISDIR(new.mode):
            # Opened, which needs this mode: calls on a descriptor take a fraction of the time of calls on a path.
            os.mkdir(temporary, 0o700, dir_fd=self.work_fd)
            flags, hold = os.O_RDONLY | os.O_DIRECTORY, Pinned.opened
        else:
            new.make(self.work_fd, temporary)
            flags, hold = os.O_PATH, Pinned.through
        held = hold(Descriptor(os.open(temporary, flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.work_fd)))
        place = held.place if isinstance(held.place, int) else proc.path_of(self.work_fd, temporary)
        attributes.apply(new.attributes, place)
        return held

    def create_open(
        self,
        directory: UpperDir,
        name: bytes,
        new: NewObject,
        over_whiteout: bool,
        flags: int,
        check: Callable[[int], None],
        caller: Caller,
    ) -> tuple[int, os.stat_result]:
        """Create a regular file and open it with `flags`; the caller owns the descriptor. Return its status, too.

        If `check` refuses the descriptor by raising OSError, no file is created.
        """
        flags |= os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        mode = stat.S_IMODE(new.mode)
        if over_whiteout or not new.is_born_right(*self._ids):
            with self.staged() as temporary:
                # Opened before it is published, so that an open that fails leaves no file behind.
                fd = os.open(temporary, flags, mode, dir_fd=self.work_fd)
                try:
                    check(fd)
                    attributes.apply(new.attributes, fd)
                    status = os.fstat(fd)
                    self.publish(temporary, directory, name, over_whiteout, False)
                except BaseException:
                    os.close(fd)
                    raise
            with suppress(OSError):  # As in `create`.
                status = os.fstat(fd)
        else:
            fd = os.open(name, flags, mode, dir_fd=directory.open().fd)
            try:
                check(fd)
                status = os.fstat(fd)
            except BaseException:
                os.close(fd)
                os.unlink(name, dir_fd=directory.open().fd)
                raise
        self._tell(Action.CREATE, directory, name, caller)
        return fd, status

    def tmpfile(self, directory: UpperDir, new: NewObject, flags: int, caller: Caller) -> int:
        """Create a regular file without a name and open it with `flags`: open(2) with O_TMPFILE.

        The caller owns the descriptor. `directory` is the one that the process named. The file is created in the
        work directory instead because there it inherits nothing: `new` says all that it gets.
        """
        fd = os.open(b".", flags | os.O_TMPFILE | os.O_CLOEXEC, 0o600, dir_fd=self.work_fd)
        try:
            attributes.apply(new.attributes, fd)
        except BaseException:
            os.close(fd)
            raise
        if self.events.listening:
            self.emit(Action.TMPFILE, b"/" + directory.path(), caller)
        return fd

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

    def replace(self, temporary: bytes, directory: UpperDir, name: bytes, replaced: Key) -> None:
        """Put a staged copy in the place of the file with the identity `replaced`. ESTALE if another one is there."""
        directory.changes += 1
        self._exchange(temporary, directory, name, replaced)

    def link(self, file: Pinned, directory: UpperDir, name: bytes, over_whiteout: bool, caller: Caller) -> None:
        """Give a file of the upper another name."""
        with self.staged() as temporary:
            where = (self.work_fd, temporary) if over_whiteout else (directory.open().fd, name)
            syscalls.link_path(file.path, *where)
            if over_whiteout:
                self.publish(temporary, directory, name, True, False)
        self._tell(Action.LINK, directory, name, caller)

    # --- names that go -----------------------------------------------------------------------------

    def whiteout(self, directory: UpperDir, name: bytes, replaced: Node | None, layer: str, caller: Caller) -> None:
        """Hide what the lowers have as `name`.

        `replaced` is the node of the upper's object there, if it has one. `layer` is the label of the layer that is
        hidden.
        """
        fd = directory.open().fd
        if replaced is None:
            self._whiteouts.make(fd, name)
        else:
            with self.staged() as temporary:
                self._whiteouts.make(self.work_fd, temporary)
                if replaced.is_directory:
                    self._exchange(temporary, directory, name, replaced.key)
                else:
                    # In one step, so that the file has a link less as soon as the view has: see `index`.
                    syscalls.rename(self.work_fd, temporary, fd, name)
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

        ESTALE if it is not empty on disk and does not have the identity `key`. An empty one is not compared: another
        directory that was put there loses its name and nothing else.
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

    def clear(self, directory: UpperDir, name: bytes, key: Key, given: Attributes, caller: Caller) -> None:
        """Replace a directory that is empty in the view with an opaque one that is empty on disk.

        `given` are the attributes of the directory, and the mark. ESTALE if `name` does not have the identity `key`.
        """
        with self.staged() as temporary:
            os.mkdir(temporary, 0o700, dir_fd=self.work_fd)
            attributes.apply(given, proc.path_of(self.work_fd, temporary))
            self._exchange(temporary, directory, name, key)
        self._tell(Action.OPAQUE, directory, name, caller)


def view_path(directory: UpperDir, name: bytes) -> bytes:
    """Return the path in the view of a name in the upper; both have the same directories."""
    above = directory.path()
    return b"/%s/%s" % (above, name) if above else b"/" + name
