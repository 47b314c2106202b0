"""Copy-up of the data of a metacopy in the upper, which makes it an ordinary file.

A whole file is made in the work directory and takes the place of the metacopy by one rename, so the view shows the old
file or the new one. A file that must stay the same object (it has several names, or its inode number in the view is its
own) is completed in place, as the kernel does it (fs/overlayfs/copy_up.c, ovl_copy_up_meta_inode_data): the data below
is used until all of it has been copied and the mark is removed, and only then is the size changed.
"""

from __future__ import annotations

import os

from overlayfs_demo.events import Action
from overlayfs_demo.overlay import inode_flags
from overlayfs_demo.overlay.copy_in_progress import CopyInProgress
from overlayfs_demo.overlay.copyup_attributes import dress
from overlayfs_demo.overlay.copyup_directory import restore_times
from overlayfs_demo.overlay.copyup_file import copy_node_data, new_copy, reopened, retarget
from overlayfs_demo.overlay.copyup_plan import Cut, Plan, Settings
from overlayfs_demo.overlay.layer import Descriptor, UpperDir, key_of
from overlayfs_demo.overlay.node import FileNode
from overlayfs_demo.overlay.pinned import Pinned
from overlayfs_demo.overlay.tree import Tree
from overlayfs_demo.overlay.types import Caller


class _MustStayError(Exception):
    """The file got another name, or lost its only one, while its data was copied: no other object may replace it."""


class DataCopy:
    """The copy-up of one metacopy's data for one caller. Only one runs for a node at a time."""

    __slots__ = ("_caller", "_cut", "_node", "_progress", "_settings", "_tree", "_upper")

    def __init__(
        self, node: FileNode, cut: Cut | None, caller: Caller, tree: Tree, settings: Settings, progress: CopyInProgress
    ) -> None:
        self._node = node
        self._cut = cut
        self._caller = caller
        self._tree = tree
        self._upper = tree.writable()
        self._settings = settings
        self._progress = progress

    def run(self) -> int | None:
        """Copy the data. Return the open file, which the caller owns, if it is cut already, else None."""
        with self._tree.lock:
            may_be_replaced = self._may_be_replaced()
        if may_be_replaced:
            try:
                return self._replace()
            except _MustStayError:
                pass
        self._complete()
        return None

    def _begin(self, cut: Cut | None) -> Plan:
        with self._tree.lock:
            plan = Plan.of_data(self._node, cut, self._settings)
        if self._upper.takes_long(plan.size):
            self._settings.hooks.before_copy()
        self._settings.limits.check(self._upper, self._node, plan.label, plan.counted, self._caller)
        return plan

    def _end(self, plan: Plan, opened: Descriptor | None) -> None:
        """Redirect the open handles to the file. Call with the tree's lock held."""
        self._node.metacopy, self._node.data = False, None
        retarget(self._node, opened)
        self._settings.hooks.changed(self._node)
        self._upper.emit(Action.COPY_UP, self._node, self._caller, plan.label, plan.counted)

    # --- by another file -----------------------------------------------------------------------------

    def _may_be_replaced(self) -> bool:
        """Whether another object may take the metacopy's place. Call with the tree's lock held."""
        node = self._node
        if node.gone or node.links is not None or not isinstance(node.place, UpperDir):
            return False
        status = node.stat()
        return status.st_nlink == 1 and node.ino != self._tree.identity(status)

    def _replace(self) -> int | None:
        """Let a file with the data, or what is left of it, take the metacopy's place."""
        cut = self._cut
        plan = self._begin(cut)
        with self._upper.staged() as temporary:
            copy = new_copy(self._upper, temporary)
            if plan.size:
                with self._progress:
                    copy_node_data(self._node, copy.fd, plan.size, self._tree, self._progress)
                    self._upper.persist(copy.fd)
                self._progress.check()
            # Opened before it gets its mode, which may not allow it.
            fd = cut.open(temporary, self._upper.work_fd) if cut else None
            try:
                with self._tree.lock:
                    self._take_place(plan, temporary, copy, fd)
            except BaseException:
                if fd is not None:
                    os.close(fd)
                raise
        return fd

    def _take_place(self, plan: Plan, temporary: bytes, copy: Descriptor, fd: int | None) -> None:
        """Give the copy the metacopy's attributes and its place. `fd` is the open file if it is cut.

        The attributes are read only now, because others may have changed them while the data was copied.
        """
        node, cut, tree = self._node, self._cut, self._tree
        before = node.pin()
        status = before.stat()
        if not (self._may_be_replaced() and _same_flags(before, copy)):
            raise _MustStayError
        kept = [(mark, value) for mark in (tree.xattrs.origin, tree.xattrs.protattr) if (value := before.xattr(mark))]
        dress(copy.fd, before, status, kept, tree.xattrs, keep_times=cut is None or cut.keeps_times(status))
        if cut is not None and fd is not None:
            cut.apply(fd)
        opened = reopened(self._upper, temporary) if node.handles else None
        above = node.place
        assert isinstance(above, UpperDir)
        times = os.fstat(above.open().fd)
        self._upper.replace(temporary, above, node.place_name, node.key)
        restore_times(above, times)
        node.key = key_of(os.fstat(copy.fd))
        tree.share(node, node.key)
        tree.hand_over(node.ino, node.key)
        self._end(plan, opened)

    # --- in place ------------------------------------------------------------------------------------

    def _complete(self) -> None:
        """Copy all of the data into the metacopy, then remove its mark."""
        plan = self._begin(None)
        self._fill(plan)
        with self._tree.lock:
            opened = Descriptor(plan.source.open(os.O_RDONLY)) if self._node.handles else None
            os.removexattr(plan.source.place, self._tree.xattrs.metacopy)
            self._end(plan, opened)

    def _fill(self, plan: Plan) -> None:
        """Write the data into the metacopy, and change nothing else."""
        copy = plan.source
        capability = copy.xattr("security.capability")
        fd = copy.open(os.O_WRONLY)
        try:
            with self._progress:
                copy_node_data(self._node, fd, plan.size, self._tree, self._progress)
                # The data must be on disk before the mark is removed.
                self._upper.persist(fd)
            self._progress.check()
        finally:
            os.close(fd)
            # Even if the copy was given up: the metadata counts already.
            if capability is not None:  # The write removed it.
                os.setxattr(copy.place, "security.capability", capability)
            os.utime(copy.place, ns=(plan.status.st_atime_ns, plan.status.st_mtime_ns))


def _same_flags(metacopy: Pinned, copy: Descriptor) -> bool:
    """Whether the metacopy has no inode flags but those of any new file, so that none can be lost."""
    fd = metacopy.open(os.O_RDONLY)
    try:
        return inode_flags.are_same(fd, copy.fd)
    finally:
        os.close(fd)
