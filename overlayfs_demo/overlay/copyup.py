"""How does a lower file come to stand in the upper?

Everything is made ready in the work directory (data, then attributes, owner, mode, times) and appears
in the upper by one rename. File data is copied without the tree's lock, so one large copy-up does not
stall other callers; two callers that need the same file share one copy-up.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from overlayfs_demo import syscalls
from overlayfs_demo.events import Action
from overlayfs_demo.overlay.filedata import copy_data
from overlayfs_demo.overlay.inode_flags import lower_protection
from overlayfs_demo.overlay.layer import Descriptor, UpperDir
from overlayfs_demo.overlay.limits import Limits
from overlayfs_demo.overlay.node import DirNode, FileNode, Node, Target
from overlayfs_demo.overlay.tree import Tree
from overlayfs_demo.overlay.types import Caller
from overlayfs_demo.overlay.upper import Upper

# Attributes that carry access rights: losing one silently would be worse than failing.
_ESSENTIAL = ("security.", "system.posix_acl_")


@dataclass(slots=True)
class Hooks:
    """What a front may want to be told of, in the thread of the caller that it happens to.

    `before_wait` is called before a verb copies data or waits for another caller's copy: a front that serves
    several callers from few threads lets another thread go on meanwhile. `copied_up` is called with a node
    whose attributes (links, blocks, time of change) may now be others, before the verb that caused it returns.
    """

    before_wait: Callable[[], None] = lambda: None
    copied_up: Callable[[Node], None] = lambda _node: None


class CopyUp:
    """Copies nodes up, each at most once. `metacopy`: a change of metadata alone copies no data. `rehearsal` is
    `Stack`'s."""

    __slots__ = ("_hooks", "_limits", "_metacopy", "_rehearsal", "_running", "_tree")

    def __init__(self, tree: Tree, metacopy: bool, hooks: Hooks, limits: Limits, rehearsal: bool) -> None:
        self._tree = tree
        self._metacopy = metacopy
        self._hooks = hooks
        self._limits = limits
        self._rehearsal = rehearsal
        self._running: dict[Node, threading.Event] = {}

    def node(self, node: Node, caller: Caller, length: int | None = None, *, data: bool = True) -> Upper:
        """See that the upper holds `node`; the upper, for the change that follows.

        `length` bytes of data suffice, when the caller is about to cut the file there, and none at all without
        `data`, if it will only change metadata. Raises EROFS without an upper. For a regular file, call without
        the tree's lock.
        """
        upper = self._tree.writable()
        if isinstance(node, DirNode):
            with self._tree.lock:
                self.directory(node, caller)
        else:
            assert isinstance(node, FileNode)
            if not node.in_upper:
                self._file(node, caller, length, data=data)
            if data and node.metacopy:
                self._complete(node, caller, length)
        return upper

    def linked(self, node: FileNode, caller: Caller) -> None:
        """See that the copy that all names of a hard-linked lower file share is there. Without the tree's lock."""
        self._file(node, caller, None, with_name=False)

    def directory(self, node: DirNode, caller: Caller) -> UpperDir:
        """See that the upper holds the directory and all above it. Call with the tree's lock held."""
        self._tree.writable()
        # From the top down, and without recursion: directories may be nested deeper than Python's calls.
        missing = []
        above = node
        while above.upper is None:
            if above.parent is None or above.gone:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), above.name)
            missing.append((above, above.parent))
            above = above.parent
        made = above.upper
        for one, parent in reversed(missing):
            made = self._directory(one, parent, caller)
        return made

    def _directory(self, node: DirNode, parent: DirNode, caller: Caller) -> UpperDir:
        upper = self._tree.writable()
        source = node.target()
        lower = node.lowers[0]
        status = source.stat()
        origin = self._tree.origins.encode(lower.layer, lower.open().fd, b"")
        with upper.staged() as temporary:
            os.mkdir(temporary, 0o700, dir_fd=upper.work_fd)
            self._dress(source, temporary, status, origin)
            above = self._publish(node, parent, temporary, bool(origin), caller)
        made = above.child(node.name)
        copied = os.fstat(made.adopt(above, node.name).fd)
        node.copied_up(made, (copied.st_dev, copied.st_ino))
        self._hooks.copied_up(node)
        upper.emit(Action.COPY_UP, node.path(), caller, lower.layer.label, detail="directory")
        return made

    def _file(
        self, node: FileNode, caller: Caller, length: int | None, *, with_name: bool = True, data: bool = True
    ) -> None:
        with self._alone(node):
            if not node.in_upper:
                self._copy_file(node, caller, length, with_name, data)

    @contextlib.contextmanager
    def _alone(self, node: Node) -> Iterator[None]:
        """Nobody else copies this node up meanwhile."""
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

    def _copy_file(self, node: FileNode, caller: Caller, length: int | None, with_name: bool, data: bool) -> None:
        upper = self._tree.writable()
        layer = node.place.layer
        source = node.target()
        status = source.stat()
        # Without an index, a file with several names in its layer is a new file of its own once it is copied.
        origin = None
        index = self._tree.index if status.st_nlink > 1 else None
        if (index or status.st_nlink == 1) and not node.gone:
            origin = self._tree.origins.encode(layer, node.place.open().fd, node.place_name)
        metadata = not data and node.kind == stat.S_IFREG and status.st_nlink == 1
        metacopy = metadata and (self._metacopy or self._rehearsal)
        told, label = self._cost(node, 0 if metadata and self._metacopy else _size(node, status, length), data)
        self._limits.check(upper, node.path(), label, told, caller)
        below = (node.data or (node.place, node.place_name)) if metacopy else None
        with upper.staged() as temporary:
            size = self._make(node, temporary, status, length, with_data=not metacopy)
            # A copy that is cut short is the change itself, and its time is now.
            cut = node.kind == stat.S_IFREG and size < status.st_size and not metacopy
            self._dress(source, temporary, status, origin, keep_times=not cut)
            if metacopy:
                path = syscalls.path_of(upper.work_fd, temporary)
                os.setxattr(path, self._tree.xattrs.metacopy, b"", follow_symlinks=False)
            with self._tree.lock:
                if node.gone:
                    self._adopt_nameless(node, temporary)
                elif index and origin:
                    entry = index.take(upper.work_fd, temporary, origin, status.st_nlink)
                    node.place, node.place_name, node.links = entry.place, entry.name, status.st_nlink
                else:
                    assert node.parent is not None
                    place = self._publish(node, node.parent, temporary, bool(origin), caller)
                    node.place, node.place_name = place, node.name
                node.metacopy, node.data = metacopy, below
                self._turn_to_upper(node, keep_ino=bool(origin))
                self._hooks.copied_up(node)
                upper.emit(Action.COPY_UP, node.path(), caller, label, told)
                if node.links is not None and with_name:
                    assert node.parent is not None
                    self.name(node, node.parent, node.name, caller)

    def _cost(self, node: FileNode, size: int, data: bool) -> tuple[int, str]:
        """How many bytes of the `size` of a copy are told of, and from which layer."""
        layer = node.place.layer
        if not (self._rehearsal and layer.number == 1):
            return size, layer.label
        # The mount that is rehearsed has it in its upper already, but for the data of a metacopy.
        if node.data and data:
            return size, node.data[0].layer.label
        return 0, layer.label

    def name(self, node: FileNode, parent: DirNode, name: bytes, caller: Caller) -> None:
        """See that the upper has this name, too, of a file in the index. Call with the tree's lock held."""
        above = self.directory(parent, caller)
        if above.stat(name) is not None:
            return
        assert self._tree.index is not None and node.links is not None
        mark_impure(above, self._tree)
        with _same_times(above):
            self._tree.writable().link(node.target(), above, name, False, caller)
        # Afterwards: a copy that seems to have a name too many stays, one that seems to have too few would go.
        self._tree.index.note_links(node.place, node.place_name, node.links)

    def _complete(self, node: FileNode, caller: Caller, length: int | None) -> None:
        """Give a metacopy in the upper its data: from then on it is a file like others.

        Until the mark is gone the data below counts, so an interrupted copy does no harm
        (fs/overlayfs/copy_up.c, ovl_copy_up_meta_inode_data).
        """
        upper = self._tree.writable()
        with self._alone(node):
            if not node.metacopy:
                return
            target = node.target()
            status = target.stat()
            path = target.xattr_path()
            capability = syscalls.get_xattr(path, "security.capability", target.follow)
            size = _size(node, status, length)
            layer = node.data[0].layer.label if node.data else ""
            # The mount that is rehearsed would have copied the data with the metadata.
            told = 0 if self._rehearsal and not self._metacopy else size
            self._limits.check(upper, node.path(), layer, told, caller)
            self._hooks.before_wait()
            fd = target.open(os.O_WRONLY)
            try:
                _copy_from(node.data_target(), fd, size)
                if not upper.volatile:
                    os.fsync(fd)
            finally:
                os.close(fd)
            if capability is not None:  # Writing took it away.
                os.setxattr(path, "security.capability", capability, follow_symlinks=target.follow)
            os.utime(target.path, ns=(status.st_atime_ns, status.st_mtime_ns), dir_fd=target.dir_fd,
                     follow_symlinks=target.follow)
            with self._tree.lock:
                os.removexattr(path, self._tree.xattrs.metacopy, follow_symlinks=target.follow)
                node.metacopy, node.data = False, None
                for handle in node.handles:
                    handle.retarget(target.open(os.O_RDONLY))
                self._hooks.copied_up(node)
                upper.emit(Action.COPY_UP, node.path(), caller, layer, told)

    def _make(
        self, node: FileNode, temporary: bytes, status: os.stat_result, length: int | None, *, with_data: bool
    ) -> int:
        """Make the bare copy in the work directory; the number of bytes copied."""
        upper = self._tree.writable()
        if node.kind == stat.S_IFLNK:
            os.symlink(node.target().readlink(), temporary, dir_fd=upper.work_fd)
            return 0
        if node.kind != stat.S_IFREG:
            os.mknod(temporary, node.kind | 0o600, status.st_rdev, dir_fd=upper.work_fd)
            return 0
        size = _size(node, status, length)
        target = os.open(
            temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=upper.work_fd
        )
        try:
            if not with_data:
                os.ftruncate(target, size)
                return 0
            if size:
                self._hooks.before_wait()
                _copy_from(node.data_target(), target, size)
                if not upper.volatile:
                    # The name must not outlive the data in a power failure.
                    os.fsync(target)
        finally:
            os.close(target)
        return size

    def _dress(
        self, source: Target, temporary: bytes, status: os.stat_result, origin: bytes | None, keep_times: bool = True
    ) -> None:
        """Give the copy its owner, attributes, mode and times, in this order: chown(2) drops set-id bits
        and capabilities, and each of the others would change the times."""
        upper = self._tree.writable()
        path = syscalls.path_of(upper.work_fd, temporary)
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

    def _copy_xattrs(self, source: Target, path: bytes) -> None:
        private = self._tree.xattrs
        place = source.xattr_path()
        for name in syscalls.list_xattrs(place, source.follow):
            if name.startswith(private.prefix) and not name.startswith(private.escape):
                continue
            value = syscalls.get_xattr(place, name, source.follow)
            if value is None:
                continue
            try:
                os.setxattr(path, name, value, follow_symlinks=False)
            except OSError as error:
                # An upper that cannot hold, say, user.* attributes is used without them, as by the kernel.
                if error.errno != errno.EOPNOTSUPP or name.startswith(_ESSENTIAL):
                    raise

    def _publish(self, node: Node, parent: DirNode, temporary: bytes, impure: bool, caller: Caller) -> UpperDir:
        """Move the finished copy to its name; the upper's directory that it now stands in.

        A copy-up is not a change of the view, so the directory keeps its times.
        """
        upper = self._tree.writable()
        above = self.directory(parent, caller)
        if impure:
            mark_impure(above, self._tree)
        with _same_times(above):
            upper.publish(temporary, above, node.name, False, node.is_directory)
        return above

    def _adopt_nameless(self, node: FileNode, temporary: bytes) -> None:
        """The file lost its name meanwhile: keep the copy by a descriptor alone."""
        upper = self._tree.writable()
        node.anchor = Descriptor(
            os.open(temporary, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=upper.work_fd)
        )
        node.place = upper.root
        upper.discard(temporary)

    def _turn_to_upper(self, node: FileNode, keep_ino: bool) -> None:
        """Turn the node and its open handles to the copy."""
        target = node.target()
        status = target.stat()
        node.key = (status.st_dev, status.st_ino)
        if node.links is not None:
            self._tree.share(node, node.key)
        if not keep_ino:
            node.ino = self._tree.identity(status)
        if not node.metacopy:
            for handle in node.handles:
                handle.retarget(target.open(os.O_RDONLY))


@contextlib.contextmanager
def _same_times(directory: UpperDir) -> Iterator[None]:
    """Give the directory its times back: as best they can be, for the change is made by then (ovl_do_copy_up)."""
    before = os.fstat(directory.open().fd)
    yield
    with contextlib.suppress(OSError):
        os.utime(directory.open().fd, ns=(before.st_atime_ns, before.st_mtime_ns))


def mark_impure(directory: UpperDir, tree: Tree) -> None:
    """Note on disk that the directory holds copied-up objects, whose inode numbers come from elsewhere."""
    if not directory.marks.impure:
        os.setxattr(directory.open().fd, tree.xattrs.impure, b"y")
        directory.forget_marks()


def _size(node: FileNode, status: os.stat_result, length: int | None) -> int:
    """How many bytes of data a copy has, of which `length` suffice."""
    if node.kind != stat.S_IFREG:
        return 0
    return status.st_size if length is None else min(length, status.st_size)


def _copy_from(source: Target, target: int, size: int) -> None:
    fd = source.open_lower(os.O_RDONLY)
    try:
        copy_data(fd, target, size)
    finally:
        os.close(fd)
