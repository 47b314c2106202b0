"""Opening files, and changing their contents through handles.

Opening a file for writing copies it up. Call all methods without the tree's lock, unless they say otherwise.
"""

from __future__ import annotations

import os

from overlayfs_demo.events import Action
from overlayfs_demo.linux import syscalls
from overlayfs_demo.overlay import inode_flags
from overlayfs_demo.overlay.attr_ops import AttrOps
from overlayfs_demo.overlay.budget import Budget
from overlayfs_demo.overlay.copyup import CopyUp
from overlayfs_demo.overlay.copyup_plan import Cut
from overlayfs_demo.overlay.handle import Handle
from overlayfs_demo.overlay.layer import Descriptor
from overlayfs_demo.overlay.node import DirNode, FileNode
from overlayfs_demo.overlay.pinned import Pinned
from overlayfs_demo.overlay.tree import Tree
from overlayfs_demo.overlay.types import Caller

# The flags of open(2) that concern the real file: the kernel handles the others before the engine is called.
OPEN_FLAGS = os.O_ACCMODE | os.O_TRUNC | os.O_SYNC | os.O_DSYNC | os.O_NOATIME


class FileOps:
    """The open files of one tree."""

    __slots__ = ("_attr_ops", "_budget", "_copy_up", "_tree")

    def __init__(self, tree: Tree, copy_up: CopyUp, attr_ops: AttrOps, budget: Budget) -> None:
        self._tree = tree
        self._copy_up = copy_up
        self._attr_ops = attr_ops
        self._budget = budget

    def open(self, node: FileNode, flags: int, caller: Caller, kill_privileges: bool) -> Handle:
        """open(2) of an existing file; see `Overlay.open`."""
        writing = bool(flags & (os.O_ACCMODE | os.O_TRUNC))
        if writing:
            self._attr_ops.refuse_protected(node, appends=flags & (os.O_APPEND | os.O_TRUNC) == os.O_APPEND)
        if flags & os.O_TRUNC:
            return self._open_cut(node, flags & OPEN_FLAGS, caller, kill_privileges)
        if writing:
            self._copy_up.node(node, caller)
        while True:
            where = node.where
            opened = Descriptor(self._budget.admitted(self._tree.open(node, flags & OPEN_FLAGS)))
            with self._tree.lock:
                # If it was copied up in the meantime, this is the lower file: open the copy instead.
                if node.where == where:
                    return self.opened(node, opened, writable=writing)

    def _open_cut(self, node: FileNode, flags: int, caller: Caller, kill_privileges: bool) -> Handle:
        if not flags & os.O_ACCMODE:
            flags |= os.O_RDWR  # open(2) allows O_RDONLY|O_TRUNC, but ftruncate(2) needs a file open for writing.
        fd = self._copy_up.truncated(node, caller, Cut(0, flags & ~os.O_TRUNC, admit=self._budget.check))
        with self._tree.lock:
            handle = self.opened(node, Descriptor(fd), writable=True)
        if kill_privileges:
            try:
                self._attr_ops.drop_privileges(node, handle, caller)
            except BaseException:
                self.release(node, handle)
                raise
        return handle

    def opened(self, node: FileNode, opened: Descriptor, *, writable: bool) -> Handle:
        """Return a new handle for an open file. Call with the tree's lock held."""
        append_only = writable and inode_flags.APPEND in inode_flags.protection(node, self._tree.xattrs)
        in_upper = node.in_upper and not node.metacopy
        handle = Handle(opened, writable=writable, in_upper=in_upper, append_only=append_only)
        node.add_handle(handle)
        return handle

    def nameless(self, opened: Descriptor, ino: int, *, in_upper: bool) -> FileNode:
        """Return a node for a file without a name, which another process of this overlay had open.

        `ino` is its inode number in the view, and `in_upper` says where its data is. Raises OSError.
        """
        root = self._tree.root
        status = os.fstat(opened.fd)
        place = next(source for source in root.sources if source.layer.is_upper is in_upper)
        node = FileNode(root, b"#%d" % status.st_ino, place, b"", status, ino)
        node.gone = True
        node.anchor = opened
        return node

    def adopt(self, node: FileNode, opened: Descriptor, *, writable: bool) -> Handle:
        """Return a handle for a file of the node that another process of this overlay had open."""
        with self._tree.lock:
            return self.opened(node, opened, writable=writable)

    def is_append_only(self, node: FileNode, handle: Handle) -> bool:
        """Whether the file in the upper that a handle has open may only be appended to: ioctl_iflags(2)."""
        with self._tree.lock:
            found = inode_flags.protection(node, self._tree.xattrs, Pinned.opened(handle.opened))
        return inode_flags.APPEND in found

    def let_pass(self, node: FileNode, handle: Handle, caller: Caller, *, maps: bool) -> None:
        """Note that the caller has the real file, and will write to it without `write`. `maps`: also by mapping it."""
        with self._tree.lock:
            self._tree.passed_writes.begin(node, handle, caller, maps=maps)

    def release(self, node: FileNode, handle: Handle) -> None:
        """Close a handle."""
        with self._tree.lock:
            caller = self._tree.passed_writes.end(handle)
            node.drop_handle(handle)
        handle.close()
        if caller is not None:
            self._tree.writable().emit(Action.WRITE_THROUGH, node, caller)

    def write(
        self,
        node: FileNode,
        handle: Handle,
        data: bytes | memoryview,
        offset: int,
        caller: Caller,
        *,
        kill_privileges: bool = False,
    ) -> int:
        """pwrite(2) through a handle. With `kill_privileges`, set-id bits are cleared first."""
        handle.check_write(offset)
        if kill_privileges:
            self._attr_ops.drop_privileges(node, handle, caller)
        written = handle.write(data, offset)
        self._tree.writable().emit(Action.WRITE, node, caller, size=written)
        return written

    def allocate(self, node: FileNode, handle: Handle, mode: int, offset: int, length: int, caller: Caller) -> None:
        """fallocate(2) through a handle. Like a write, it clears the set-id bits if the caller is not privileged."""
        self._attr_ops.refuse_protected(node, appends=not mode & ~syscalls.FALLOC_FL_KEEP_SIZE)
        if caller.uid:
            self._attr_ops.drop_privileges(node, handle, caller)
        opened = handle.opened
        syscalls.allocate(opened.fd, mode, offset, length)
        upper = self._tree.writable()
        upper.emit(Action.FALLOCATE, node, caller, size=length)

    def copy_range(
        self,
        source: Handle,
        source_offset: int,
        node: FileNode,
        handle: Handle,
        offset: int,
        length: int,
        caller: Caller,
    ) -> int:
        """copy_file_range(2) from `source` to `handle`, a handle of `node`. Clears set-id bits as `allocate` does."""
        handle.check_write(offset)
        if caller.uid:
            self._attr_ops.drop_privileges(node, handle, caller)
        read, written = source.opened, handle.opened
        done = os.copy_file_range(read.fd, written.fd, length, source_offset, offset)
        upper = self._tree.writable()
        upper.emit(Action.WRITE, node, caller, size=done)
        return done

    # --- to the disk -------------------------------------------------------------------------------

    @property
    def syncs_slowly(self) -> bool:
        """Whether `sync_file` and `sync_directory` are likely to take long, so that other callers should not wait."""
        return self._tree.upper is not None and self._tree.upper.syncs_slowly

    def sync_file(self, node: FileNode, handle: Handle, data_only: bool) -> None:
        """fsync(2), or fdatasync(2) with `data_only`, of a node's handle. A volatile overlay never waits for the disk.

        The handle of a metacopy has the lower file open, which has nothing to write. What fsync(2) is to write are the
        attributes in the upper (fs/overlayfs/file.c, ovl_upper_file).
        """
        upper = self._tree.upper
        if upper is None:
            return
        if handle.in_upper:
            opened = handle.opened
            upper.persist(opened.fd, data_only=data_only)
        elif node.in_upper and not data_only:
            with self._tree.lock:
                pinned = node.pin()
            upper.persist_object(pinned)

    def sync_directory(self, node: DirNode) -> None:
        """fsync(2) of a directory. A lower directory never has anything to write."""
        upper = self._tree.upper
        if upper is not None and node.in_upper:
            with self._tree.lock:
                held = node.front()
            upper.persist(held.fd)

    def sync(self) -> None:
        """syncfs(2) of the upper's filesystem."""
        upper = self._tree.upper
        if upper is not None:
            upper.sync()
