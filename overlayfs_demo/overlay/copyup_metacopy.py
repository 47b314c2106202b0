"""Copy-up of the data of a metacopy in the upper, which makes it an ordinary file.

The copy is completed in place: until its mark is removed, the data below is used, so an interrupted copy does no harm
(fs/overlayfs/copy_up.c, ovl_copy_up_meta_inode_data).
"""

from __future__ import annotations

import os

from overlayfs_demo.events import Action
from overlayfs_demo.overlay.copyup_file import copy_node_data, retarget
from overlayfs_demo.overlay.copyup_plan import Cut, Plan, Settings
from overlayfs_demo.overlay.layer import Descriptor
from overlayfs_demo.overlay.node import FileNode
from overlayfs_demo.overlay.tree import Tree
from overlayfs_demo.overlay.types import Caller


class DataCopy:
    """The copy-up of one metacopy's data for one caller. Only one runs for a node at a time."""

    __slots__ = ("_caller", "_cut", "_node", "_settings", "_tree", "_upper")

    def __init__(self, node: FileNode, cut: Cut | None, caller: Caller, tree: Tree, settings: Settings) -> None:
        self._node = node
        self._cut = cut
        self._caller = caller
        self._tree = tree
        self._upper = tree.writable()
        self._settings = settings

    def run(self) -> int | None:
        """Copy the data. Return the open file, which the caller owns, if it is cut, else None."""
        node, cut = self._node, self._cut
        with self._tree.lock:
            plan = Plan.of_data(node, cut, self._settings)
        if self._upper.takes_long(plan.size):
            self._settings.hooks.before_wait()
        self._settings.limits.check(self._upper, node, plan.label, plan.counted, self._caller)
        self._fill(plan)
        fd = cut.admitted(plan.source.open(cut.flags)) if cut else None
        try:
            with self._tree.lock:
                self._publish(plan, fd)
        except BaseException:
            if fd is not None:
                os.close(fd)
            raise
        self._upper.emit(Action.COPY_UP, node, self._caller, plan.label, plan.counted)
        return fd

    def _fill(self, plan: Plan) -> None:
        """Write the data into the metacopy, and change nothing else."""
        copy = plan.source
        capability = copy.xattr("security.capability")
        fd = copy.open(os.O_WRONLY)
        try:
            copy_node_data(self._node, fd, plan.size, self._tree)
            # The data must be on disk before the mark is removed.
            self._upper.persist(fd)
        finally:
            os.close(fd)
        if capability is not None:  # The write removed it.
            os.setxattr(copy.place, "security.capability", capability)
        os.utime(copy.place, ns=(plan.status.st_atime_ns, plan.status.st_mtime_ns))

    def _publish(self, plan: Plan, fd: int | None) -> None:
        """Remove the mark, and redirect the open handles to the file. `fd` is the open file if it is cut."""
        node, copy = self._node, plan.source
        opened = Descriptor(copy.open(os.O_RDONLY)) if node.handles else None
        # Cut while the data below still counts, so that a failure can be undone.
        if self._cut is not None and fd is not None:
            self._cut.apply(fd)
        try:
            os.removexattr(copy.place, self._tree.xattrs.metacopy)
        except BaseException:
            if self._cut is not None:
                os.truncate(copy.place, plan.status.st_size)
            raise
        node.metacopy, node.data = False, None
        retarget(node, opened)
        self._settings.hooks.changed(node)
