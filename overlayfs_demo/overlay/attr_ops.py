"""Changing and reading the attributes of a node: owner, mode, size and times, extended attributes, inode flags.

A change copies the node up first, usually without its data. Call all methods without the tree's lock.
"""

from __future__ import annotations

import errno
import os
import stat

from overlayfs_demo.linux import proc
from overlayfs_demo.linux.failure import failure
from overlayfs_demo.overlay import acl, inode_flags, questions
from overlayfs_demo.overlay.copyup import CopyUp
from overlayfs_demo.overlay.copyup_plan import Cut
from overlayfs_demo.overlay.handle import Handle
from overlayfs_demo.overlay.hooks import Hooks
from overlayfs_demo.overlay.node import FileNode, Node
from overlayfs_demo.overlay.pinned import Pinned
from overlayfs_demo.overlay.tree import Tree
from overlayfs_demo.overlay.types import AttrChange, Attrs, Caller
from overlayfs_demo.overlay.upper import Upper

_KILL_PRIVILEGES = AttrChange(kill_privileges=True)


class AttrOps:
    """The attributes of the nodes of one tree."""

    __slots__ = ("_copy_up", "_hooks", "_tree")

    def __init__(self, tree: Tree, copy_up: CopyUp, hooks: Hooks) -> None:
        self._tree = tree
        self._copy_up = copy_up
        self._hooks = hooks

    # --- owner, mode, size and times ---------------------------------------------------------------

    def set(self, node: Node, change: AttrChange, caller: Caller) -> Attrs:
        """chmod(2), chown(2), utimensat(2) and truncate(2), in an order in which none undoes another.

        The size comes first because it sets the modification time, the owner before the mode because chown(2) clears
        set-id bits, and the times last.
        """
        with self._tree.lock:
            if change != _KILL_PRIVILEGES:  # That alone is part of a write, which `open` has checked.
                inode_flags.refuse(node, self._tree.xattrs, appends=change.only_touches)
            change = self._tree.ownership.change(node, change)
        try:
            return self._change(node, change, caller)
        except OSError:
            self._hooks.changed(node)  # It may have been copied up, and no result shows that.
            raise

    def _change(self, node: Node, change: AttrChange, caller: Caller) -> Attrs:
        if change.size is not None:
            cut = Cut(change.size, os.O_WRONLY, change.by_path)
            os.close(self._copy_up.truncated(_file(node), caller, cut, tell=False))
        upper, copy = self._tree.writable(), self._copy_up.node(node, caller, data=False, tell=False)
        with self._tree.lock:
            pinned = copy or node.pin()
            self._tree.know_attrs(node, pinned)
            self._tree.ownership.apply(upper, node, pinned, change, caller)
            if change.mode is None and change.kill_privileges:
                self._kill_privileges(upper, node, pinned, caller)
            if change.atime_ns is not None or change.mtime_ns is not None:
                status = pinned.stat()
                atime = status.st_atime_ns if change.atime_ns is None else change.atime_ns
                mtime = status.st_mtime_ns if change.mtime_ns is None else change.mtime_ns
                upper.utimens(pinned, node, atime, mtime, caller)
            return self._tree.attrs(node, pinned.stat())

    def drop_privileges(self, node: FileNode, handle: Handle, caller: Caller) -> None:
        """Clear the set-id bits of a file that the caller changes through a handle."""
        with self._tree.lock:
            self._kill_privileges(self._tree.writable(), node, Pinned.opened(handle.opened), caller)

    def _kill_privileges(self, upper: Upper, node: Node, pinned: Pinned, caller: Caller) -> None:
        """Clear the set-id bits of a file in the upper, as the VFS does for a caller without CAP_FSETID.

        The VFS itself drops `security.capability` when the real file is written or truncated. A front has told the
        kernel that the set-id bits are cleared here, so the kernel keeps the bits it has cached and would run the
        program that was just written with them: it must hear of the change before the caller does.
        """
        status = pinned.stat()
        mode = stat.S_IMODE(status.st_mode)
        dropped = mode & ~stat.S_ISUID
        # Without the group's execute bit, S_ISGID once meant mandatory locking, so members of the group keep it
        # (fs/attr.c, setattr_should_drop_sgid).
        if mode & stat.S_ISGID and (mode & stat.S_IXGRP or not self._is_member(caller, status.st_gid)):
            dropped &= ~stat.S_ISGID
        if dropped != mode:
            upper.chmod(pinned, node, dropped, caller)
            self._hooks.changed(node)

    def _is_member(self, caller: Caller, gid: int) -> bool:
        """Whether the caller is in a group on disk, or privileged: the VFS checks CAP_FSETID, we check the user id."""
        group = self._tree.ownership.shown_group(gid)
        return caller.uid == 0 or group == caller.gid or group in proc.supplementary_groups(caller.pid)

    # --- extended attributes -----------------------------------------------------------------------

    def set_xattr(self, node: Node, name: str, value: bytes, flags: int, caller: Caller) -> None:
        """setxattr(2). `flags` may be XATTR_CREATE or XATTR_REPLACE."""
        self.refuse_protected(node)
        value = self._tree.ownership.stored_xattr(name, value)
        stored = self._stored(node, name)
        upper, copy = self._tree.writable(), self._copy_up.node(node, caller, data=False)
        with self._tree.lock:
            upper.set_xattr(copy or node.pin(), node, stored, value, flags, caller)
            questions.note_change()

    def remove_xattr(self, node: Node, name: str, caller: Caller) -> None:
        """removexattr(2). ENODATA if there is none; then nothing is copied up.

        A missing access control list of a file in the upper is left to the real filesystem, which knows its own answer.
        """
        stored = self._stored(node, name)
        self.refuse_protected(node)
        if not (node.in_upper and name in (acl.ACCESS, acl.DEFAULT)):
            with self._tree.lock:
                read_xattr(self._tree, node, name)
        upper, copy = self._tree.writable(), self._copy_up.node(node, caller, data=False)
        with self._tree.lock:
            upper.remove_xattr(copy or node.pin(), node, stored, caller)
            questions.note_change()

    def _stored(self, node: Node, name: str) -> str:
        """Return the name on disk of an attribute to change. EPERM for those that the view keeps to itself."""
        if self._tree.ownership.hides(name):
            raise failure(errno.EPERM, node.name)
        return self._tree.xattrs.stored(name)

    # --- inode flags -------------------------------------------------------------------------------

    def refuse_protected(self, node: Node, *, appends: bool = False) -> None:
        """Raise EPERM for a change that inode flags forbid, see `inode_flags`."""
        with self._tree.lock:
            inode_flags.refuse(node, self._tree.xattrs, appends=appends)

    def get_flags(self, node: Node, form: inode_flags.Format) -> bytes:
        """Return the flags that lsattr(1) shows."""
        with self._tree.lock:
            return inode_flags.read(node, self._tree.xattrs, form)

    def set_flags(self, node: Node, form: inode_flags.Format, value: bytes, caller: Caller) -> None:
        """Set the flags, as chattr(1) does. Raises EPERM, ENOTTY, or the error of the upper's filesystem."""
        with self._tree.lock:
            owner = self._tree.attrs(node, node.stat()).uid
        inode_flags.check_permission(self.get_flags(node, form), value, form, owner, caller)
        upper, copy = self._tree.writable(), self._copy_up.node(node, caller, data=False, tell=False)
        with self._tree.lock:
            protection = form.protection(value)
            stored = form.with_protection(value, b"")
            upper.set_flags(copy or node.pin(), node, form, stored, protection, caller)
            node.protection = protection
        self._hooks.changed(node)


def list_xattrs(tree: Tree, node: Node, caller: Caller) -> list[str]:
    """Return the names of the stored extended attributes that the view shows; the overlay's own are hidden.

    `trusted.*` names are listed for root only, see xattr(7).
    """
    with tree.lock:
        shown = (tree.xattrs.shown(name) for name in node.pin().xattrs())
    return [
        name
        for name in shown
        if name and not tree.ownership.hides(name) and (caller.uid == 0 or not name.startswith("trusted."))
    ]


def read_xattr(tree: Tree, node: Node, name: str) -> bytes:
    """Return a stored extended attribute's value, as the view shows it. ENODATA if there is none.

    Call with the tree's lock held.
    """
    if tree.ownership.hides(name):
        raise failure(errno.ENODATA, node.name)
    value = node.pin().must_xattr(tree.xattrs.stored(name))
    return tree.ownership.shown_xattr(name, value)


def _file(node: Node) -> FileNode:
    """Return the node if it is a regular file; raise EISDIR or EINVAL, as truncate(2) does, if it is not."""
    if isinstance(node, FileNode) and node.kind == stat.S_IFREG:
        return node
    raise failure(errno.EISDIR if node.is_directory else errno.EINVAL, node.name)
