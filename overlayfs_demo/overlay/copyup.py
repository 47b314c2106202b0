"""Copy-up: copies lower files and directories to the upper.

A copy is completed in the work directory (data, then owner, attributes, mode, times) and appears
in the upper by one rename. File data is copied without the tree's lock, so a large copy-up does not
block other callers; two callers that need the same file share one copy-up.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from overlayfs_demo.events import Action
from overlayfs_demo.linux import proc
from overlayfs_demo.overlay.budget import Budget, kept
from overlayfs_demo.overlay.copy_data import copy_data
from overlayfs_demo.overlay.copyup_limits import Limits
from overlayfs_demo.overlay.impure import mark_impure
from overlayfs_demo.overlay.inode_flags import lower_protection
from overlayfs_demo.overlay.layer import Descriptor, UpperDir, key_of, stale
from overlayfs_demo.overlay.node import Data, DirNode, FileNode, Node
from overlayfs_demo.overlay.pinned import Pinned
from overlayfs_demo.overlay.tree import Tree
from overlayfs_demo.overlay.types import Caller, Links
from overlayfs_demo.overlay.upper import Upper, resize

# Attributes that hold access rights: losing one silently would be worse than failing.
_ESSENTIAL = ("security.", "system.posix_acl_")


@dataclass(slots=True)
class Hooks:
    """Callbacks of a front, called in the thread of the caller concerned.

    `before_wait` is called before a verb copies data or waits for another caller's copy: a front that serves
    many callers with few threads can let another thread run. If it raises, so does the verb, which has made only
    complete copy-ups by then and can be called again. `changed` is called with a node whose attributes changed in a
    way that the verb's result does not show, before that verb returns: after a copy-up (links, blocks, ctime), and
    when a write cleared set-id bits.
    """

    before_wait: Callable[[], None] = lambda: None
    changed: Callable[[Node], None] = lambda _node: None


@dataclass(frozen=True, slots=True)
class Cut:
    """A new size for a file, in bytes, and the `flags` of open(2) to open it with.

    `by_path` is for truncate(2): if the size stays the same, the filesystem decides whether the modification time
    changes, whereas ftruncate(2) and O_TRUNC always set it (fs/open.c, do_truncate). `admit` may refuse the open file
    by raising OSError: then nothing is cut.
    """

    size: int
    flags: int
    by_path: bool = False
    admit: Callable[[int], None] = lambda _fd: None

    def open(self, path: bytes, dir_fd: int) -> int:
        """Open the unfinished copy; the caller owns the descriptor."""
        fd = os.open(path, self.flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
        return self.admitted(fd)

    def apply(self, fd: int) -> None:
        """Change the size of a copy that is not visible yet and is open for writing as `fd`."""
        resize(fd, self.size, self.by_path)

    def admitted(self, fd: int) -> int:
        """Return the descriptor, or close it and raise OSError if `admit` refuses it."""
        return kept(fd, self.admit)


class CopyUp:
    """Copies nodes up, each at most once.

    `metacopy`: a change of metadata alone copies no data. `rehearsal`: see `Stack.rehearsal`.
    """

    __slots__ = ("_budget", "_hooks", "_limits", "_metacopy", "_rehearsal", "_running", "_tree")

    def __init__(
        self, tree: Tree, metacopy: bool, hooks: Hooks, limits: Limits, budget: Budget, rehearsal: bool
    ) -> None:
        self._tree = tree
        self._budget = budget
        self._metacopy = metacopy
        self._hooks = hooks
        self._limits = limits
        self._rehearsal = rehearsal
        self._running: dict[Node, threading.Event] = {}

    def node(self, node: Node, caller: Caller, *, data: bool = True) -> Upper:
        """Copy `node` up if the upper does not have it. Return the upper, for the change that follows.

        Without `data`, only metadata will be changed, so data need not be copied. Raises EROFS without an upper.
        For a regular file, call without the tree's lock.
        """
        upper = self._tree.writable()
        if isinstance(node, DirNode):
            with self._tree.lock:
                self.directory(node, caller)
        else:
            assert isinstance(node, FileNode)
            if not node.in_upper:
                self._file(node, caller, data=data)
            if data and node.metacopy:
                self._complete(node, caller)
        return upper

    def truncated(self, node: FileNode, caller: Caller, cut: Cut) -> int:
        """Change a regular file's size and open it; the caller owns the descriptor.

        If the file is a lower one, only the data that remains is copied. The copy is opened and cut before it appears
        in the upper, so a failure leaves the file as it was. Call without the tree's lock.
        """
        upper = self._tree.writable()
        fd = None
        if not node.in_upper:
            fd = self._file(node, caller, cut=cut)
        if fd is None and node.metacopy:
            fd = self._complete(node, caller, cut)
        if fd is not None:
            upper.emit(Action.TRUNCATE, node.path(), caller, size=cut.size)
            return fd
        fd = cut.admitted(self._tree.open(node, cut.flags))
        try:
            upper.truncate(fd, node.path() if upper.events.listening else b"", cut.size, caller, by_path=cut.by_path)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def linked(self, node: FileNode, caller: Caller) -> None:
        """Make the copy that all names of a hard-linked lower file share. Call without the tree's lock."""
        self._file(node, caller, with_name=False, data=False)

    def directory(self, node: DirNode, caller: Caller) -> UpperDir:
        """Copy the directory and its ancestors up where the upper lacks them. Call with the tree's lock held."""
        self._tree.writable()
        # From the top down, and without recursion: directories may be nested deeper than Python's recursion limit.
        missing = []
        above = node
        while above.upper is None:
            if above.parent is None or above.gone:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), above.name)
            missing.append((above, above.parent))
            above = above.parent
        made = above.upper
        for directory, parent in reversed(missing):
            made = self._directory(directory, parent, caller)
        return made

    def _directory(self, node: DirNode, parent: DirNode, caller: Caller) -> UpperDir:
        upper = self._tree.writable()
        source = node.pin()
        lower = node.lowers[0]
        origin = self._tree.origins.encode(lower.layer, lower.open().fd, b"")
        with upper.staged() as temporary:
            os.mkdir(temporary, 0o700, dir_fd=upper.work_fd)
            self._dress(source, temporary, source.stat(), origin)
            # Opened before it is published: nothing may fail once it has its name.
            opened = Descriptor(os.open(temporary, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=upper.work_fd))
            key = key_of(os.fstat(opened.fd))
            try:
                above = self._publish(node, parent, temporary, bool(origin), caller)
            except FileExistsError:
                upper.discard(temporary)
                return self._found_directory(node, parent)
        made = above.child(node.name, key)
        made.hold(opened)
        node.copied_up(made)
        self._tree.claim(node.ino, key)
        self._hooks.changed(node)
        upper.emit(Action.COPY_UP, node.path(), caller, lower.layer.label, detail="directory")
        return made

    def _found_directory(self, node: DirNode, parent: DirNode) -> UpperDir:
        """Return the upper's directory that was made behind the view where the copy should go.

        ESTALE if something other than a directory is there.
        """
        self._tree.child(parent, node.name)
        if node.upper is None:
            raise stale(node.name)
        return node.upper

    def _file(
        self, node: FileNode, caller: Caller, *, with_name: bool = True, data: bool = True, cut: Cut | None = None
    ) -> int | None:
        """Copy a lower file up, unless another caller has. Return the open copy if it was `cut`, else None."""
        with self._alone(node):
            return None if node.in_upper else self._copy_file(node, caller, with_name, data, cut)

    @contextlib.contextmanager
    def _alone(self, node: Node) -> Iterator[None]:
        """Keep all other callers from copying this node up in the meantime."""
        while True:
            with self._tree.lock:
                running = self._running.get(node)
                if running is None:
                    self._running[node] = done = threading.Event()
                    break
            self._hooks.before_wait()
            running.wait()
        try:
            yield
        finally:
            with self._tree.lock:
                del self._running[node]
            done.set()

    def _copy_file(self, node: FileNode, caller: Caller, with_name: bool, data: bool, cut: Cut | None) -> int | None:
        upper = self._tree.writable()
        # Without an index, the copy of a hard-linked file is a new file, so it gets no origin.
        origin = None
        with self._tree.lock:
            source = node.pin()
            status = source.stat()
            index = self._tree.index if status.st_nlink > 1 else None
            if (index or status.st_nlink == 1) and not node.gone:
                origin = self._tree.origin_of(node.place, node.place_name, status)
        metadata = not data and node.kind == stat.S_IFREG
        metacopy = metadata and (self._metacopy or self._rehearsal) and self._tree.xattrs.follows
        size = 0 if metadata and self._metacopy else _size(node, status, cut)
        told, label = self._cost(node, size, data)
        if size and not metacopy:
            self._hooks.before_wait()  # Before the first event: it may raise, and the verb is called again later.
        self._limits.check(upper, node.path(), label, told, caller)
        below = node.data_place()
        fd = None
        with upper.staged() as temporary:
            self._make(node, source, temporary, status, cut, with_data=not metacopy)
            try:
                # Opened before `_dress`, which may set a mode that does not allow it.
                if cut is not None:
                    fd = cut.open(temporary, upper.work_fd)
                # A file that changes its size is modified now, so it must not get its old times back.
                self._dress(source, temporary, status, origin, keep_times=cut is None or cut.size == status.st_size)
                if cut is not None and fd is not None:
                    cut.apply(fd)
                if metacopy:
                    path = proc.path_of(upper.work_fd, temporary)
                    os.setxattr(path, self._tree.xattrs.metacopy, b"", follow_symlinks=False)
                with self._tree.lock:
                    links = Links(status.st_nlink, status.st_nlink) if index and origin else None
                    self._appear(node, temporary, origin, links, below if metacopy else None, caller)
                    upper.emit(Action.COPY_UP, node.path(), caller, label, told)
                    if node.links is not None and with_name:
                        assert node.parent is not None
                        self.name(node, node.parent, node.name, caller)
            except BaseException:
                if fd is not None:
                    os.close(fd)
                raise
        return fd

    def _appear(
        self,
        node: FileNode,
        temporary: bytes,
        origin: bytes | None,
        links: Links | None,
        below: Data | None,
        caller: Caller,
    ) -> None:
        """Publish a finished copy, and redirect the node and its open handles to it.

        `links`: publish it in the index, with so many names. `below`: where the data of a metacopy is. Whatever can
        fail comes before the rename that publishes the copy.
        """
        upper = self._tree.writable()
        status = os.stat(temporary, dir_fd=upper.work_fd, follow_symlinks=False)
        # The handles of a file whose data stays below go on reading there.
        copy = _reopened(upper.work_fd, temporary) if node.handles and not below else None
        try:
            if node.gone:
                self._adopt_nameless(node, temporary)
            elif links is not None and origin:
                assert self._tree.index is not None
                entry = self._tree.index.take(upper.work_fd, temporary, origin, links)
                node.place, node.place_name, node.links = entry.place, entry.name, links
            else:
                assert node.parent is not None
                place = self._publish(node, node.parent, temporary, bool(origin or below), caller)
                node.place, node.place_name = place, node.name
        except FileExistsError:
            raise stale(node.name) from None  # Created behind the view: the kernel's next lookup will find it.
        node.metacopy, node.data = below is not None, below
        node.key = key_of(status)
        self._tree.share(node, node.key)
        if not (origin and self._tree.claim(node.ino, node.key)):
            node.ino = self._tree.identity(status)
        _retarget(node, copy)
        self._hooks.changed(node)

    def _cost(self, node: FileNode, size: int, data: bool) -> tuple[int, str]:
        """Return how many of the copy's `size` bytes its event reports, and the label of the layer they come from."""
        layer = node.place.layer
        if not (self._rehearsal and layer.number == 1):
            return size, layer.label
        # The rehearsed mount has the file in its upper already, except the data of a metacopy.
        if node.data and data:
            return size, node.data.place.layer.label
        return 0, layer.label

    def name(self, node: FileNode, parent: DirNode, name: bytes, caller: Caller) -> None:
        """Give a file in the index this name in the upper, if it lacks it. Call with the tree's lock held."""
        above = self.directory(parent, caller)
        if above.stat(name) is not None:
            return
        assert self._tree.index is not None and node.links is not None
        mark_impure(above, self._tree)
        with _same_times(above):
            self._tree.writable().link(node.pin(), above, name, False, caller)
        # After the link: if we are interrupted in between, the count is too high and the copy stays. If it were too
        # low, the copy would be removed.
        self._tree.index.note_links(node.place, node.place_name, node.links)

    def _complete(self, node: FileNode, caller: Caller, cut: Cut | None = None) -> int | None:
        """Copy the data of a metacopy in the upper, which makes it an ordinary file.

        Return a descriptor of it if it was `cut`, else None. Until the mark is removed, the data below is used, so an
        interrupted copy does no harm (fs/overlayfs/copy_up.c, ovl_copy_up_meta_inode_data).
        """
        upper = self._tree.writable()
        with self._alone(node):
            if not node.metacopy:
                return None
            with self._tree.lock:
                copy = node.pin()
            status = copy.stat()
            size = _size(node, status, cut)
            layer = node.data.place.layer.label if node.data else ""
            # The rehearsed mount would have copied the data together with the metadata.
            told = 0 if self._rehearsal and not self._metacopy else size
            self._hooks.before_wait()
            self._limits.check(upper, node.path(), layer, told, caller)
            self._fill(node, copy, status, size)
            fd = cut.admitted(copy.open(cut.flags)) if cut else None
            try:
                self._uncover(node, copy, status, cut, fd)
            except BaseException:
                if fd is not None:
                    os.close(fd)
                raise
            upper.emit(Action.COPY_UP, node.path(), caller, layer, told)
            return fd

    def _fill(self, node: FileNode, copy: Pinned, status: os.stat_result, size: int) -> None:
        """Write the first `size` bytes of a metacopy's data into it, and change nothing else."""
        capability = copy.xattr("security.capability")
        fd = copy.open(os.O_WRONLY)
        try:
            self._copy_data(node, fd, size)
            if not self._tree.writable().volatile:
                # The data must be on disk before the mark is removed.
                os.fsync(fd)
        finally:
            os.close(fd)
        if capability is not None:  # The write removed it.
            os.setxattr(copy.place, "security.capability", capability)
        os.utime(copy.place, ns=(status.st_atime_ns, status.st_mtime_ns))

    def _uncover(self, node: FileNode, copy: Pinned, status: os.stat_result, cut: Cut | None, fd: int | None) -> None:
        """Remove the mark of a metacopy that has its data now, and redirect the open handles to it."""
        with self._tree.lock:
            opened = Descriptor(copy.open(os.O_RDONLY)) if node.handles else None
            # Cut while the data below still counts, so that a failure can be undone.
            if cut is not None and fd is not None:
                cut.apply(fd)
            try:
                os.removexattr(copy.place, self._tree.xattrs.metacopy)
            except BaseException:
                if cut is not None:
                    os.truncate(copy.place, status.st_size)
                raise
            node.metacopy, node.data = False, None
            _retarget(node, opened)
            self._hooks.changed(node)

    def _make(
        self,
        node: FileNode,
        source: Pinned,
        temporary: bytes,
        status: os.stat_result,
        cut: Cut | None,
        *,
        with_data: bool,
    ) -> None:
        """Create the copy in the work directory, with its data but without owner, attributes, mode and times."""
        upper = self._tree.writable()
        if node.kind == stat.S_IFLNK:
            os.symlink(source.readlink(), temporary, dir_fd=upper.work_fd)
            return
        if node.kind != stat.S_IFREG:
            os.mknod(temporary, node.kind | 0o600, status.st_rdev, dir_fd=upper.work_fd)
            return
        target = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=upper.work_fd)
        try:
            size = _size(node, status, cut)
            if with_data and size:
                self._copy_data(node, target, size)
            os.ftruncate(target, status.st_size if cut is None else cut.size)
            if with_data and size and not upper.volatile:
                # After a power failure there must be no name without its data.
                os.fsync(target)
        finally:
            os.close(target)

    def _copy_data(self, node: FileNode, target: int, size: int) -> None:
        fd = self._tree.open(node, os.O_RDONLY)
        try:
            copy_data(fd, target, size)
        finally:
            os.close(fd)

    def _dress(
        self, source: Pinned, temporary: bytes, status: os.stat_result, origin: bytes | None, keep_times: bool = True
    ) -> None:
        """Set the copy's owner, attributes, mode and times, in this order.

        chown(2) clears set-id bits and capabilities, so it comes first; the times come last because the other calls
        may change them.
        """
        upper = self._tree.writable()
        path = proc.path_of(upper.work_fd, temporary)
        os.chown(path, status.st_uid, status.st_gid, follow_symlinks=False)
        self._copy_xattrs(source, path)
        if origin:
            os.setxattr(path, self._tree.xattrs.origin, origin, follow_symlinks=False)
        if protected := lower_protection(source):
            os.setxattr(path, self._tree.xattrs.protattr, protected, follow_symlinks=False)
        if not stat.S_ISLNK(status.st_mode):
            os.chmod(path, stat.S_IMODE(status.st_mode))
        if keep_times:
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns), follow_symlinks=False)

    def _copy_xattrs(self, source: Pinned, path: bytes) -> None:
        private = self._tree.xattrs
        for name in source.xattrs():
            if name.startswith(private.prefix) and not name.startswith(private.escape):
                continue
            value = source.xattr(name)
            if value is None:
                continue
            try:
                os.setxattr(path, name, value, follow_symlinks=False)
            except OSError as error:
                # An upper that does not support, say, user.* attributes is used without them, as in the kernel.
                if error.errno != errno.EOPNOTSUPP or name.startswith(_ESSENTIAL):
                    raise

    def _publish(self, node: Node, parent: DirNode, temporary: bytes, impure: bool, caller: Caller) -> UpperDir:
        """Move the finished copy to its name, and return the upper's directory that holds it now.

        A copy-up does not change the view, so the directory keeps its times.
        """
        upper = self._tree.writable()
        above = self.directory(parent, caller)
        if impure:
            mark_impure(above, self._tree)
        with _same_times(above):
            upper.publish(temporary, above, node.name, False, node.is_directory)
        return above

    def _adopt_nameless(self, node: FileNode, temporary: bytes) -> None:
        """Keep the copy of a file that has lost its name, by a descriptor only. ENFILE if too many files are open."""
        upper = self._tree.writable()
        fd = os.open(temporary, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=upper.work_fd)
        anchor = Descriptor(self._budget.admitted(fd))
        upper.discard(temporary)
        node.anchor, node.place = anchor, upper.root


@contextlib.contextmanager
def _same_times(directory: UpperDir) -> Iterator[None]:
    """Restore the directory's times afterwards, ignoring errors because the change is done by then (ovl_do_copy_up)."""
    before = os.fstat(directory.open().fd)
    yield
    with contextlib.suppress(OSError):
        os.utime(directory.open().fd, ns=(before.st_atime_ns, before.st_mtime_ns))


def _size(node: FileNode, status: os.stat_result, cut: Cut | None) -> int:
    """Return how many bytes of data must be copied."""
    if node.kind != stat.S_IFREG:
        return 0
    return status.st_size if cut is None else min(cut.size, status.st_size)


def _retarget(node: FileNode, copy: Descriptor | None) -> None:
    """Redirect the open handles to the copy. Each read gives its offset, so all handles can share one open file."""
    if copy is not None:
        for handle in node.handles:
            handle.retarget(copy)


def _reopened(dir_fd: int, name: bytes) -> Descriptor:
    """Open a finished copy for the handles that have read the lower file until now."""
    return Descriptor(os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd))
