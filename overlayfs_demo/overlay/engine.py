"""The operations of an overlay, in terms of nodes and handles.

`Overlay` is the whole engine as a front sees it. It knows the paths of layers and objects in memory, but
no FUSE, no images and no command line. Every failure is an OSError with the errno that the kernel's
overlayfs would return. All methods may be called from several threads.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from overlayfs_demo.events import Events
from overlayfs_demo.linux import syscalls
from overlayfs_demo.linux.failure import failure
from overlayfs_demo.named_tuple import NamedTuple
from overlayfs_demo.overlay import impure, inode_flags, listing, lower_fingerprint, provenance, questions
from overlayfs_demo.overlay.attr_ops import AttrOps, list_xattrs, read_xattr
from overlayfs_demo.overlay.copyup import CopyUp
from overlayfs_demo.overlay.dir_ops import DirOps
from overlayfs_demo.overlay.external_changes import ExternalChanges
from overlayfs_demo.overlay.file_ops import OPEN_FLAGS, FileOps
from overlayfs_demo.overlay.handle import Handle
from overlayfs_demo.overlay.hooks import Hooks
from overlayfs_demo.overlay.layer import Descriptor, Key, Layer
from overlayfs_demo.overlay.layer_snapshots import LayerSnapshots
from overlayfs_demo.overlay.node import DirNode, FileNode, Node
from overlayfs_demo.overlay.redirect import Redirects
from overlayfs_demo.overlay.rename import Place, Rename
from overlayfs_demo.overlay.tree import Completed, Tree
from overlayfs_demo.overlay.types import AttrChange, Attrs, Caller, Dirent
from overlayfs_demo.overlay.upper import Upper
from overlayfs_demo.overlay.whiteout import VIRTUAL

if TYPE_CHECKING:
    from overlayfs_demo.overlay.forecast import Forecast


class Parts(NamedTuple):
    """What an overlay is made of, see `factory`. `layers` are all that are read, from the top lower down."""

    events: Events
    hooks: Hooks
    tree: Tree
    layers: Sequence[Layer]
    copy_up: CopyUp
    attr_ops: AttrOps
    files: FileOps
    redirects: Redirects
    dir_ops: DirOps
    rename: Rename
    past: LayerSnapshots | None


class Overlay:
    """The merged view of a `Stack`, made by `factory.open_overlay`.

    `files` has the verbs on open files. `events` tells listeners about every change, and `external_changes` tells a
    front about those made behind the view. `hooks` are the front's callbacks. `decides_access`: the owner and mode
    that the view shows decide who may access a file.
    """

    def __init__(self, parts: Parts, resources: ExitStack) -> None:
        """Take over the parts of an overlay, and the resources that they use until `close`."""
        self.events = parts.events
        self.hooks = parts.hooks
        self.files = parts.files
        self.external_changes = ExternalChanges(parts.tree)
        self.decides_access = parts.tree.ownership.decides_access
        self._tree = parts.tree
        self._lock = parts.tree.lock
        self._layers = parts.layers
        self._copy_up = parts.copy_up
        self._attr_ops = parts.attr_ops
        self._redirects = parts.redirects
        self._dir_ops = parts.dir_ops
        self._rename = parts.rename
        self._past = parts.past
        self._resources = resources
        resources.callback(self.external_changes.close)

    def note_stack(self) -> tuple[str, str]:
        """Record the lowers in the upper. Return the names of the previous and the present lowers if the upper was
        last used with others, else two empty strings."""
        if self._tree.upper is None:
            return "", ""
        upper, lowers = self._tree.upper.layer, self._layers
        before = lower_fingerprint.last_stack(upper, lowers, self._tree.xattrs)
        lower_fingerprint.remember(upper, lowers, self._tree.xattrs)
        return (before, lower_fingerprint.names(lowers)) if before else ("", "")

    def forecast(self) -> Forecast:
        """Start to record what the rehearsed mount would do, see `Stack.rehearsal`."""
        from overlayfs_demo.overlay.forecast import Forecast  # Only a rehearsal needs it, and a mount must not wait.

        forecast = Forecast(self._tree)
        self.events.attach(forecast.take)
        return forecast

    def close(self) -> None:
        """Release all layers. No node may be used afterwards; open handles still belong to their owners."""
        self._resources.close()

    # --- find --------------------------------------------------------------------------------------

    @property
    def root(self) -> DirNode:
        """The view's root directory."""
        return self._tree.root

    def _tree_of(self, node: Node) -> Tree:
        """Return the tree that a node belongs to. Call with the lock held."""
        return self._tree if self._past is None else self._past.tree_of(node)

    @property
    def is_read_only(self) -> bool:
        """Whether the view has no upper, so that nothing in it is ever copied up."""
        return self._tree.upper is None

    @property
    def may_stall(self) -> bool:
        """Whether a layer may keep its callers waiting, see `questions`."""
        return self._tree.may_stall

    @property
    def has_past(self) -> bool:
        """Whether the view has a time machine."""
        return self._past is not None

    def is_past(self, node: Node) -> bool:
        """Whether the node belongs to the time machine. If so, nobody is told when it is replaced or disappears."""
        return self._past is not None and self._past.tree_of(node) is not self._tree

    def lookup(self, parent: DirNode, name: bytes) -> tuple[Node, Attrs]:
        """Return the node called `name` (the same object for the same file) and its attributes. Never copies up."""
        with self._lock:
            return self._tree_of(parent).find(parent, name)

    def lookup_listed(
        self, parent: DirNode, snapshot: listing.Snapshot, names: Iterable[listing.Listed]
    ) -> list[Completed]:
        """Look up some names of a `snapshot`, each as `lookup` does; None for a name that has disappeared since.

        A name that cannot be looked up, see `faults`, yields the entry it was listed with. While the snapshot is
        current, only the layer that has the name is asked.
        """
        with self._lock:
            current = snapshot.is_current(parent.sources)
            tree = self._tree_of(parent)
            found: list[Completed] = []
            together = questions.Together()
            for listed in names:
                with together:
                    found.append(tree.find_listed(parent, listed, current))
            together.check()
            return found

    def walk(self, path: bytes) -> Node:
        """Return the node at an absolute path of the view. Does not follow symbolic links. Raises ENOENT, ENOTDIR."""
        node: Node = self._tree.root
        with self._lock:
            for name in path.split(b"/"):
                if name:
                    node = self._tree_of(node).find(_directory(node), name)[0]
        return node

    def prune(self, parent: DirNode, name: bytes, key: Key) -> None:
        """Free the memory that a node has left behind. A front calls this after it has let a node go.

        The arguments are what the node's `parent`, `name` and `key` were.
        """
        with self._lock:
            self._tree_of(parent).prune(parent, name, key)

    # --- ask ---------------------------------------------------------------------------------------

    def attrs(self, node: Node) -> Attrs:
        """Return the node's attributes as stat(2) shows them, even after its name was removed."""
        with self._lock:
            tree = self._tree if self._past is None else self._past.tree_of(node)
            return tree.attrs(node, node.stat())

    def birth_time(self, node: Node) -> int | None:
        """Return the creation time of the topmost real file, in nanoseconds since the epoch; None if unknown."""
        with self._lock:
            return node.statx().birth_ns

    def names(self, node: DirNode, at_most: int = sys.maxsize, *, quietly: bool = False) -> listing.Snapshot:
        """Return a snapshot of a directory's names, for `dirent` or `lookup_listed` to complete.

        `quietly` leaves the directory's access time to `note_reading`. Raises TooManyNamesError as soon as more than
        `at_most` names are found.
        """
        with self._lock:
            if node.gone:
                return listing.Snapshot({}, (), 0)
            snapshot = self._tree_of(node).snapshot(node, at_most, quietly=quietly)
            impure.drop_mark(node, snapshot.names, self._tree)
            return snapshot

    def note_reading(self, node: DirNode) -> None:
        """Update the access time after `names` was called quietly and its result was passed on."""
        with self._lock:
            if node.upper is not None and not node.gone:
                listing.note_reading(node.upper)

    def dirent(self, parent: DirNode, listed: listing.Listed) -> Dirent | None:
        """Return the directory entry of a name from `names`, or None if it has disappeared since."""
        with self._lock:
            return self._tree_of(parent).dirent(parent, listed)

    def entries(self, node: DirNode) -> list[Dirent]:
        """Return all entries of a directory, without `.` and `..`."""
        found = (self.dirent(node, listed) for listed in self.names(node).names.values())
        return [entry for entry in found if entry]

    def readlink(self, node: Node) -> bytes:
        """Return a symbolic link's target. EINVAL for anything else."""
        with self._lock:
            if node.kind != stat.S_IFLNK:
                raise failure(errno.EINVAL, node.name)
            return node.pin().readlink()

    def statfs(self) -> os.statvfs_result:
        """Return statvfs(3) of the filesystem that new data goes to: the upper's, else the top lower's."""
        layer = self._tree.upper.layer if self._tree.upper else self._layers[0]
        return os.fstatvfs(layer.root_fd)

    def which(self, path: bytes) -> provenance.Provenance:
        """Return what each layer has at an absolute path of the view (without `.` or `..`), and which one wins."""
        with self._lock:
            tree, inside = self._past.split(path) if self._past else (self._tree, path)
            return provenance.which(tree, inside)

    def which_inside(self, directory: bytes) -> Callable[[bytes], provenance.Provenance]:
        """Return a function that does the same for the names in a directory, see `provenance.inside`."""
        with self._lock:
            return provenance.inside(*(self._past.split(directory) if self._past else (self._tree, directory)))

    def _virtual(self, node: Node) -> dict[str, str]:
        return {} if node.gone else provenance.attributes(self._tree_of(node), node, self.which(node.path()))

    def xattrs(self, node: Node, caller: Caller) -> list[str]:
        """Return the names of the extended attributes that the view shows; the overlay's own are hidden.

        `trusted.*` names are listed for root only, see xattr(7), and virtual ones for getfattr(1) only, see
        `provenance`.
        """
        with self._lock:
            virtual = list(self._virtual(node)) if provenance.are_listed(node, caller) else []
            return list_xattrs(self._tree_of(node), node, caller) + virtual

    def xattr(self, node: Node, name: str) -> bytes:
        """Return an extended attribute's value. ENODATA if there is none."""
        with self._lock:
            if name.startswith(VIRTUAL):
                return provenance.value(self._virtual(node), name)
            return read_xattr(self._tree_of(node), node, name)

    def get_flags(self, node: Node, form: inode_flags.Format) -> bytes:
        """Return the inode flags that lsattr(1) shows."""
        return self._attr_ops.get_flags(node, form)

    # --- change names ------------------------------------------------------------------------------

    def _upper_of(self, node: Node, name: bytes = b"") -> Upper:
        """Return the upper for a change of a node, or of a name in it.

        EROFS if there is none: in a view without one, and for all nodes and names of the past.
        """
        if self._past is None:
            return self._tree.writable()
        with self._lock:
            child = self._tree.beside.get(name) if node is self._tree.root else None
            return self._past.tree_of(node if child is None else child).writable()

    def create(
        self, parent: DirNode, name: bytes, mode: int, flags: int, caller: Caller
    ) -> tuple[FileNode, Attrs, Handle]:
        """Create a regular file and open it: open(2) with O_CREAT|O_EXCL. Raises EEXIST."""
        self._upper_of(parent, name)
        with self._lock:
            node, attrs, fd = self._dir_ops.create(parent, name, mode, flags & OPEN_FLAGS, caller)
            return node, attrs, self.files.opened(node, Descriptor(fd), writable=bool(flags & os.O_ACCMODE))

    def tmpfile(self, parent: DirNode, mode: int, flags: int, caller: Caller) -> tuple[FileNode, Attrs, Handle]:
        """Create a regular file without a name and open it: open(2) with O_TMPFILE.

        Only `link` can name it later, and not even that if `flags` include O_EXCL. EOPNOTSUPP where the upper's
        filesystem has no such files.
        """
        self._upper_of(parent)
        with self._lock:
            node, attrs, fd = self._dir_ops.tmpfile(parent, mode, flags & (OPEN_FLAGS | os.O_EXCL), caller)
            return node, attrs, self.files.opened(node, Descriptor(fd), writable=True)

    def mkdir(self, parent: DirNode, name: bytes, mode: int, caller: Caller) -> tuple[Node, Attrs]:
        """mkdir(2)."""
        self._upper_of(parent, name)
        with self._lock:
            return self._dir_ops.make(parent, name, stat.S_IFDIR | stat.S_IMODE(mode), caller)

    def mknod(self, parent: DirNode, name: bytes, mode: int, rdev: int, caller: Caller) -> tuple[Node, Attrs]:
        """mknod(2). EPERM for character device 0/0, as in the kernel's overlayfs: it is a whiteout."""
        self._upper_of(parent, name)
        if stat.S_ISCHR(mode) and rdev == 0:
            raise failure(errno.EPERM, name)
        with self._lock:
            return self._dir_ops.make(parent, name, mode, caller, rdev=rdev)

    def symlink(self, parent: DirNode, name: bytes, target: bytes, caller: Caller) -> tuple[Node, Attrs]:
        """symlink(2)."""
        self._upper_of(parent, name)
        with self._lock:
            return self._dir_ops.make(parent, name, stat.S_IFLNK | 0o777, caller, target=target)

    def link(self, node: Node, parent: DirNode, name: bytes, caller: Caller) -> Attrs:
        """link(2): give a file another name, after copying the file up. EPERM for a directory."""
        self._upper_of(node)
        self._upper_of(parent, name)
        if not isinstance(node, FileNode):
            raise failure(errno.EPERM, name)
        self._attr_ops.refuse_protected(node)
        while True:
            with self._lock:
                assert node.parent is not None
                data = self._redirects.wants_data(node, node.parent, node.name, False)
                if data is None:
                    return self._dir_ops.link(node, parent, name, caller)
            self._copy_up.node(node, caller, data=data)

    def unlink(self, parent: DirNode, name: bytes, caller: Caller) -> None:
        """unlink(2). Leaves a whiteout where a lower has the name."""
        self._upper_of(parent, name)
        while True:
            with self._lock:
                linked = self._dir_ops.unlink(parent, name, caller)
            if linked is None:
                return
            # The copy is made without the lock, so the name must be looked up again.
            self._copy_up.linked(linked, caller)

    def rmdir(self, parent: DirNode, name: bytes, caller: Caller) -> None:
        """rmdir(2). The directory must be empty in the view."""
        upper = self._upper_of(parent, name)
        with upper.swept(), self._lock:
            self._dir_ops.rmdir(parent, name, caller)

    def rename(
        self, old_parent: DirNode, old: bytes, new_parent: DirNode, new: bytes, flags: int, caller: Caller
    ) -> None:
        """renameat2(2). `flags` may be RENAME_NOREPLACE or RENAME_EXCHANGE; EINVAL for others."""
        exchange = bool(flags & syscalls.RENAME_EXCHANGE)
        if flags not in (0, syscalls.RENAME_NOREPLACE, syscalls.RENAME_EXCHANGE):
            raise failure(errno.EINVAL, old)
        self._upper_of(old_parent, old)
        upper = self._upper_of(new_parent, new)
        while True:
            with upper.swept(), self._lock:
                source = Place(old_parent, old, self._tree.child(old_parent, old))
                target = Place(new_parent, new, self._tree.child(new_parent, new))
                if not self._rename.check(source, target, flags):
                    return
                needed = self._rename.to_copy(source, target, exchange)
                if needed is None:
                    move = self._rename.exchange if exchange else self._rename.move
                    move(source, target, caller)
                    return
            # The copy is made without the lock, so everything must be checked again.
            node, data = needed
            self._copy_up.node(node, caller, data=data)

    # --- change a node -----------------------------------------------------------------------------

    def set_attrs(self, node: Node, change: AttrChange, caller: Caller) -> Attrs:
        """chmod(2), chown(2), utimensat(2) and truncate(2). Return the new attributes."""
        self._upper_of(node)
        return self._attr_ops.set(node, change, caller)

    def set_xattr(self, node: Node, name: str, value: bytes, flags: int, caller: Caller) -> None:
        """setxattr(2). `flags` may be XATTR_CREATE or XATTR_REPLACE."""
        self._upper_of(node)
        self._attr_ops.set_xattr(node, name, value, flags, caller)

    def remove_xattr(self, node: Node, name: str, caller: Caller) -> None:
        """removexattr(2). ENODATA if there is none; then nothing is copied up."""
        self._upper_of(node)
        self._attr_ops.remove_xattr(node, name, caller)

    def set_flags(self, node: Node, form: inode_flags.Format, value: bytes, caller: Caller) -> None:
        """Set the inode flags, as chattr(1) does. Raises EPERM, ENOTTY, or the error of the upper's filesystem."""
        self._upper_of(node)
        self._attr_ops.set_flags(node, form, value, caller)

    # --- open --------------------------------------------------------------------------------------

    def open(self, node: Node, flags: int, caller: Caller, *, kill_privileges: bool = False) -> Handle:
        """open(2) of an existing file; opening for writing copies it up. The caller must `files.release` the handle.

        O_TRUNC copies no data; with `kill_privileges` it also clears set-id bits. The front handles O_APPEND, O_CREAT
        and O_EXCL. Raises OSError, ENFILE while too many files are open.
        """
        if not isinstance(node, FileNode):
            raise failure(errno.EISDIR, node.name)
        if flags & (os.O_ACCMODE | os.O_TRUNC):
            self._upper_of(node)
        return self.files.open(node, flags, caller, kill_privileges)


def _directory(node: Node) -> DirNode:
    if not isinstance(node, DirNode):
        raise failure(errno.ENOTDIR, node.name)
    return node
