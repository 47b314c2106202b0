"""Renaming files and directories.

An object is copied up before it moves. A redirect lets a lower or merged directory keep its lower part, and a
metacopy its data. An old name that a lower would show again gets a whiteout in the same rename. The cases are those
of fs/overlayfs/dir.c, ovl_rename.
"""

from __future__ import annotations

import errno

from overlayfs_demo.linux import syscalls
from overlayfs_demo.linux.failure import failure
from overlayfs_demo.named_tuple import NamedTuple
from overlayfs_demo.overlay import inode_flags, questions
from overlayfs_demo.overlay.copyup import CopyUp
from overlayfs_demo.overlay.copyup_attributes import taken_over
from overlayfs_demo.overlay.dir_ops import DirOps
from overlayfs_demo.overlay.impure import is_impure, mark_impure
from overlayfs_demo.overlay.layer import UpperDir, key_of, stale
from overlayfs_demo.overlay.node import DirNode, FileNode, Node
from overlayfs_demo.overlay.redirect import Redirects
from overlayfs_demo.overlay.tree import Tree
from overlayfs_demo.overlay.types import Caller


class Place(NamedTuple):
    """A name in a directory of the view, and the node there, if any."""

    parent: DirNode
    name: bytes
    node: Node | None


class Rename:
    """Moves names in one tree. Everything here runs with the tree's lock held."""

    __slots__ = ("_copy_up", "_dir_ops", "_redirects", "_tree")

    def __init__(self, tree: Tree, copy_up: CopyUp, dir_ops: DirOps, redirects: Redirects) -> None:
        self._tree = tree
        self._copy_up = copy_up
        self._dir_ops = dir_ops
        self._redirects = redirects

    def check(self, old: Place, new: Place, flags: int) -> bool:
        """Raise the error of rename(2) if the move is not allowed. Return False if there is nothing to do."""
        if old.node is None:
            raise failure(errno.ENOENT, old.name)
        exchange = flags & syscalls.RENAME_EXCHANGE
        if new.node is None:
            if exchange:
                raise failure(errno.ENOENT, new.name)
        elif flags & syscalls.RENAME_NOREPLACE:
            raise failure(errno.EEXIST, new.name)
        if old.node is new.node:
            return False
        if _is_above(old.node, new.parent) or (exchange and _is_above(new.node, old.parent)):
            raise failure(errno.EINVAL, old.name)
        if new.node is not None and not exchange:
            self._check_replaced(old.node, new.node, new.name)
        self._dir_ops.refuse_removal(old.parent, old.node)
        if new.node is not None:
            self._dir_ops.refuse_removal(new.parent, new.node)
        else:
            inode_flags.refuse(new.parent, self._tree.xattrs, appends=True)
        self._redirects.refuse(old.node)
        if new.node is not None and exchange:
            self._redirects.refuse(new.node)
        return True

    def _check_replaced(self, old: Node, new: Node, name: bytes) -> None:
        if isinstance(new, DirNode):
            if not isinstance(old, DirNode):
                raise failure(errno.EISDIR, name)
            if not self._tree.is_empty(new):
                raise failure(errno.ENOTEMPTY, name)
        elif isinstance(old, DirNode):
            raise failure(errno.ENOTDIR, name)

    def to_copy(self, old: Place, new: Place, exchange: bool) -> tuple[FileNode, bool] | None:
        """Return a file that must be copied up before the move, and whether with its data; None if there is none."""
        same_parent = old.parent is new.parent
        for place in (old, new):
            node = place.node
            if not isinstance(node, FileNode):
                continue
            if place is old or exchange:
                data = self._redirects.wants_data(node, place.parent, place.name, same_parent)
                if data is not None:
                    return node, data
            elif self._tree.loses_a_name(node):
                return node, False
        return None

    def move(self, old: Place, new: Place, caller: Caller) -> None:
        """Move `old` to the name of `new`, replacing what is there. If `old.node` is a file, it is in the upper."""
        assert old.node is not None
        upper = self._tree.writable()
        above_old, above_new = self._prepare(old, new, caller)
        covered_old = self._tree.covered(old.parent, old.name)
        # What the upper has there. If nothing is replaced in the view, that is nothing or a whiteout: only a directory
        # must know which.
        replaced = None
        if new.node is not None or isinstance(old.node, DirNode):
            replaced = above_new.stat(new.name)
        flags = syscalls.RENAME_WHITEOUT if covered_old else 0
        swap = False
        if replaced is not None and new.node is None and isinstance(old.node, DirNode):
            # rename(2) cannot replace a whiteout with a directory, but it can exchange them.
            swap = True
            flags = syscalls.RENAME_EXCHANGE
        if new.node is not None:
            # Before `clear`, which puts another directory at the node's name.
            self._dir_ops.anchor(new.node, new.parent, new.name)
            if replaced is not None and isinstance(new.node, DirNode) and new.node.in_upper:
                if key_of(replaced) != new.node.key:
                    raise stale(new.name)
                xattrs = self._tree.xattrs
                given = taken_over(new.node.pin(), replaced, [(xattrs.opaque, b"y")], xattrs)
                upper.clear(above_new, new.name, new.node.key, given, caller)
            if isinstance(new.node, FileNode):
                self._dir_ops.before_name_goes(new.node, new.parent, new.name, caller)
        upper.rename(above_old, old.name, above_new, new.name, flags, caller)
        questions.note_change()
        if new.node is not None:
            self._dir_ops.forget(new.node, new.parent, new.name)
        self._relocate(old, new, above_new)
        if swap and not covered_old:
            upper.remove_whiteout(above_old, old.name)

    def exchange(self, old: Place, new: Place, caller: Caller) -> None:
        """Exchange two names. Nodes that are files are in the upper."""
        upper = self._tree.writable()
        above_old, above_new = self._prepare(old, new, caller)
        self._prepare(new, old, caller)
        upper.rename(above_old, old.name, above_new, new.name, syscalls.RENAME_EXCHANGE, caller)
        questions.note_change()
        self._relocate(old, new, above_new)
        self._relocate(new, old, above_old)

    def _prepare(self, old: Place, new: Place, caller: Caller) -> tuple[UpperDir, UpperDir]:
        """Copy both directories up, and mark `old.node` so that it shows the same content at its new name."""
        assert old.node is not None
        # Marks come before the rename: one that turns out not to be needed does no harm, a missing one hides files or
        # shows wrong ones.
        above_old = self._copy_up.directory(old.parent, caller)
        above_new = self._copy_up.directory(new.parent, caller)
        if isinstance(old.node, DirNode):
            self._copy_up.directory(old.node, caller)
            if not old.node.lowers and new.parent.lowers:
                self._make_opaque(old.node, caller)
        elif isinstance(old.node, FileNode) and old.node.links is not None:
            self._copy_up.name(old.node, old.parent, old.name, caller)
        self._redirects.write(old.node, old.parent, old.name, old.parent is new.parent, caller)
        if is_impure(old.node, self._tree):
            mark_impure(above_new, self._tree)
        return above_old, above_new

    def _make_opaque(self, node: DirNode, caller: Caller) -> None:
        above = self._upper_of(node)
        if not above.marks.opaque:
            self._tree.writable().set_xattr(node.pin(), node, self._tree.xattrs.opaque, b"y", 0, caller)
            above.forget_marks()

    @staticmethod
    def _upper_of(node: DirNode) -> UpperDir:
        assert node.upper is not None
        return node.upper

    def _relocate(self, old: Place, new: Place, above: UpperDir) -> None:
        """Update the node in memory: its name is `new` now."""
        node = old.node
        assert node is not None
        old.parent.children.drop(old.name, node)
        new.parent.children.put(new.name, node)
        node.parent, node.name = new.parent, new.name
        if isinstance(node, DirNode):
            if node.upper is not None:
                node.upper.parent, node.upper.name = above, new.name
        elif isinstance(node, FileNode) and node.links is None:
            node.place, node.place_name = above, new.name
        self._tree.hooks.moved(node)


def _is_above(node: Node | None, directory: DirNode) -> bool:
    """Return whether `node` is the directory itself or one of its ancestors."""
    below: DirNode | None = directory
    while below is not None:
        if below is node:
            return True
        below = below.parent
    return False
