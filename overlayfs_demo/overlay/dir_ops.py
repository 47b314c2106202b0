"""Creating and removing names.

First the directory is copied up, then one primitive of the upper makes the change, then the nodes in memory are
updated. Everything here runs with the tree's lock held.
"""

from __future__ import annotations

import errno
import logging
import os
import stat

from overlayfs_demo.linux import proc, xattr
from overlayfs_demo.linux.failure import failure
from overlayfs_demo.overlay import acl, inode_flags, questions
from overlayfs_demo.overlay.budget import Budget
from overlayfs_demo.overlay.copyup import CopyUp
from overlayfs_demo.overlay.impure import is_impure, mark_impure
from overlayfs_demo.overlay.layer import Descriptor, UpperDir, key_of
from overlayfs_demo.overlay.new_object import NewObject
from overlayfs_demo.overlay.node import DirNode, FileNode, Node
from overlayfs_demo.overlay.redirect import Redirects
from overlayfs_demo.overlay.tree import Tree
from overlayfs_demo.overlay.types import Attrs, Caller, Links

_log = logging.getLogger(__name__)


class DirOps:
    """Creates and removes names in one tree."""

    __slots__ = ("_budget", "_copy_up", "_redirects", "_tree")

    def __init__(self, tree: Tree, copy_up: CopyUp, redirects: Redirects, budget: Budget) -> None:
        self._tree = tree
        self._copy_up = copy_up
        self._redirects = redirects
        self._budget = budget

    # --- making ------------------------------------------------------------------------------------

    def create(
        self, parent: DirNode, name: bytes, mode: int, flags: int, caller: Caller
    ) -> tuple[FileNode, Attrs, int]:
        """Create a regular file and open it with `flags`. Raises EEXIST, ENFILE.

        Return its node, its attributes and its descriptor, which the caller owns.
        """
        if (above := self._promising(parent, name)) is not None:
            try:
                return self._create(parent, name, above, False, mode, flags, caller)
            except FileExistsError:
                pass  # An object or a whiteout: `_room` tells them apart.
        above, over_whiteout = self._room(parent, name, caller)
        return self._create(parent, name, above, over_whiteout, mode, flags, caller)

    def _promising(self, parent: DirNode, name: bytes) -> UpperDir | None:
        """Return the upper's directory for a new name if only an object of the upper could be in the way.

        O_EXCL finds that out without another system call.
        """
        if parent.gone or parent.upper is None or inode_flags.protection(parent, self._tree.xattrs):
            return None
        if parent.lowers and self._tree.below(parent, name):
            return None
        return parent.upper

    def _create(
        self, parent: DirNode, name: bytes, above: UpperDir, over_whiteout: bool, mode: int, flags: int, caller: Caller
    ) -> tuple[FileNode, Attrs, int]:
        new = self._describe(above, stat.S_IFREG | stat.S_IMODE(mode), caller)
        upper, check = self._tree.writable(), self._budget.check
        fd, status = upper.create_open(above, name, new, over_whiteout, flags, check, caller)
        questions.note_change()
        node, attrs = self._settle_new(parent, name, above, status)
        assert isinstance(node, FileNode)
        return node, attrs, fd

    def make(
        self, parent: DirNode, name: bytes, mode: int, caller: Caller, *, rdev: int = 0, target: bytes = b""
    ) -> tuple[Node, Attrs]:
        """Create a directory, symbolic link (to `target`), device, FIFO, socket or file: `mode` has the S_IFMT kind."""
        above, over_whiteout = self._room(parent, name, caller)
        # A new directory is opaque if a lower one could show through, now or with other lowers.
        opaque = stat.S_ISDIR(mode) and (over_whiteout or bool(parent.lowers))
        new = self._describe(above, mode, caller, rdev, target, opaque)
        status = self._tree.writable().create(above, name, new, over_whiteout, caller)
        questions.note_change()
        return self._settle_new(parent, name, above, status)

    def tmpfile(self, parent: DirNode, mode: int, flags: int, caller: Caller) -> tuple[FileNode, Attrs, int]:
        """Create a regular file without a name and open it with `flags`.

        Return its node, its attributes and its descriptor, which the caller owns. The node counts as removed until
        `link` gives it a name.
        """
        if parent.gone:
            raise failure(errno.ENOENT, parent.name)
        inode_flags.refuse(parent, self._tree.xattrs, appends=True)
        above = self._copy_up.directory(parent, caller)
        new = self._describe(above, stat.S_IFREG | stat.S_IMODE(mode), caller)
        fd = self._budget.admitted(self._tree.writable().tmpfile(above, new, flags, caller))
        try:
            status = os.fstat(fd)
            # The kernel also names such a file after its inode number, in /proc/PID/fd (fs/dcache.c, d_mark_tmpfile).
            node = FileNode(parent, b"#%d" % status.st_ino, above, b"", status, self._tree.identity(status))
            node.anchor = Descriptor(os.open(proc.fd_path(fd), os.O_PATH | os.O_CLOEXEC))
        except BaseException:
            os.close(fd)
            raise
        node.gone = True
        return node, self._tree.attrs(node, status), fd

    def link(self, node: FileNode, parent: DirNode, name: bytes, caller: Caller) -> Attrs:
        """Give a file in the upper another name, or its first one. ENOENT if it has lost its last name.

        A metacopy first gets a redirect to its data because its names may be in several directories now.
        """
        above, over_whiteout = self._room(parent, name, caller)
        file = node.pin()
        status = file.stat()
        # An O_TMPFILE file also has no name, but it never lost one. (The kernel checks whether O_EXCL forbids a link.)
        if not status.st_nlink and node.place_name:
            raise failure(errno.ENOENT, name)
        assert node.parent is not None
        self._redirects.write(node, node.parent, node.name, False, caller)
        if is_impure(node, self._tree):
            mark_impure(above, self._tree)
        self._tree.know_attrs(node, file)
        self._note_link_count(node)
        self._tree.writable().link(file, above, name, over_whiteout, caller)
        questions.note_change()
        if node.links is not None:
            node.links = node.links.changed(1)
        self._tree.share(node, node.key)
        self._tree.settle(node, parent, name)
        parent.children.put(name, node)
        return self._tree.attrs(node, file.stat())

    def _room(self, parent: DirNode, name: bytes, caller: Caller) -> tuple[UpperDir, bool]:
        """Return the upper's directory for a new name, and whether a whiteout has that name. Raises EEXIST."""
        if parent.gone:
            raise failure(errno.ENOENT, name)
        status = parent.upper.stat(name) if parent.upper else None
        if status is not None:
            if not parent.sources[0].layer.hides(name, status, parent.sources[0]):
                raise failure(errno.EEXIST, name)
        elif self._tree.below(parent, name):
            raise failure(errno.EEXIST, name)
        inode_flags.refuse(parent, self._tree.xattrs, appends=True)
        return self._copy_up.directory(parent, caller), status is not None

    def _describe(
        self, above: UpperDir, mode: int, caller: Caller, rdev: int = 0, target: bytes = b"", opaque: bool = False
    ) -> NewObject:
        """Describe a new object, with what it gets from its directory: group, set-group-ID bit, ACL (inode(7), acl(5)).

        The umask applies only if the directory has no default ACL.
        """
        asked_mode, asked_by = mode, caller
        mode, caller = self._tree.ownership.asked(mode, caller)
        fd = above.open().fd
        directory = os.fstat(fd)
        inherits = bool(directory.st_mode & stat.S_ISGID)
        xattrs: tuple[tuple[str, bytes], ...] = ()
        if not stat.S_ISLNK(mode):
            default = xattr.get(fd, acl.DEFAULT) if acl.DEFAULT in xattr.names(fd) else None
            if default:
                mode, xattrs = acl.inherit(default, mode)
            else:
                mode &= ~caller.umask
        if stat.S_ISDIR(mode) and inherits:
            mode |= stat.S_ISGID
        if opaque:
            xattrs += ((self._tree.xattrs.opaque, b"y"),)
        gid = directory.st_gid if inherits else caller.gid
        new = NewObject(mode, caller.uid, gid, rdev, target, inherits, xattrs)
        return self._tree.ownership.finished(new, asked_mode, asked_by)

    def _settle_new(self, parent: DirNode, name: bytes, above: UpperDir, status: os.stat_result) -> tuple[Node, Attrs]:
        ino = self._tree.identity(status)
        node: Node
        if stat.S_ISDIR(status.st_mode):
            node = DirNode(parent, name, (above.child(name, key_of(status)),), status, ino)
        else:
            node = FileNode(parent, name, above, name, status, ino)
            self._tree.share(node, node.key)
        node.protection = b""  # It has no `overlay.protattr` yet. Flags inherited from its directory are real ones.
        parent.children.put(name, node)
        return node, self._tree.attrs(node, status)

    # --- removing ----------------------------------------------------------------------------------

    def unlink(self, parent: DirNode, name: bytes, caller: Caller) -> FileNode | None:
        """Remove the name of anything but a directory (EISDIR).

        If a file is returned, nothing was removed: copy that file into the index, then try again.
        """
        self._tree.writable()
        node, _ = self._tree.find(parent, name)
        if not isinstance(node, FileNode):
            raise failure(errno.EISDIR, name)
        self.refuse_removal(parent, node)
        if self._tree.loses_a_name(node):
            return node
        self.anchor(node, parent, name)
        self._remove(parent, name, node, caller)
        return None

    def rmdir(self, parent: DirNode, name: bytes, caller: Caller) -> None:
        """Remove a directory that is empty in the view (ENOTEMPTY otherwise)."""
        self._tree.writable()
        node, _ = self._tree.find(parent, name)
        if not isinstance(node, DirNode):
            raise failure(errno.ENOTDIR, name)
        self.refuse_removal(parent, node)
        if not self._tree.is_empty(node):
            raise failure(errno.ENOTEMPTY, name)
        self.anchor(node, parent, name)
        self._remove(parent, name, node, caller)

    def refuse_removal(self, parent: DirNode, node: Node) -> None:
        """Raise EPERM if inode flags forbid removing the node from `parent` (fs/namei.c, may_delete)."""
        inode_flags.refuse(parent, self._tree.xattrs)
        inode_flags.refuse(node, self._tree.xattrs)

    def _remove(self, parent: DirNode, name: bytes, node: Node, caller: Caller) -> None:
        upper = self._tree.writable()
        covered = self._covered(parent, name, node)
        above = self._copy_up.directory(parent, caller)
        if isinstance(node, FileNode):
            self.before_name_goes(node, parent, name, caller)
        if covered:
            upper.whiteout(above, name, node if node.in_upper else None, covered, caller)
        elif isinstance(node, DirNode):
            upper.rmdir(above, name, node.key, caller)
        else:
            upper.unlink(above, name, caller)
        questions.note_change()
        self.forget(node, parent, name)

    def _covered(self, parent: DirNode, name: bytes, node: Node) -> str:
        """Do the same as `Tree.covered` for the name that has just led to `node`.

        An object of a lower is itself what the lowers show there.
        """
        return self._tree.covered(parent, name) if node.in_upper else node.layer.label

    def anchor(self, node: Node, parent: DirNode, name: bytes) -> None:
        """Keep the node's object reachable for anyone who holds the node. Call before its name is removed."""
        if node.parent is not parent or node.name != name:
            return
        self._tree.hooks.losing_name(node)
        held = None
        if isinstance(node, DirNode):
            held = node.front()
        elif isinstance(node, FileNode) and node.in_upper:
            held = node.hold()
        if held is not None and self._budget.has_room(held.fd):
            node.anchor = held

    def forget(self, node: Node, parent: DirNode, name: bytes) -> None:
        """Detach the node from its name. Call after the name is removed."""
        parent.children.drop(name, node)
        if node.parent is parent and node.name == name:
            node.gone = True
            self._tree.hooks.lost_name(node)
        if isinstance(node, FileNode) and node.links is not None:
            node.links = node.links.changed(-1)
            if node.links.view <= 0:
                self._remove_copy(node, node.links)

    def before_name_goes(self, node: FileNode, parent: DirNode, name: bytes, caller: Caller) -> None:
        """Prepare the link count of a file in the index for the removal of one of its names (ovl_nlink_start).

        The upper gets that name if only a lower has it, so that the file really loses a link.
        """
        if node.links is not None:
            self._copy_up.name(node, parent, name, caller)
            self._note_link_count(node)

    def _note_link_count(self, node: FileNode) -> None:
        """Note the link count of a file in the index before the upper gains or loses one of its names.

        The note is relative to the real link count, so it stays true across that change.
        """
        if node.links is not None:
            assert self._tree.index is not None
            self._tree.index.note_links(node.place, node.place_name, node.links)

    def _remove_copy(self, node: FileNode, links: Links) -> None:
        """Remove the copy of a file that has lost its last name from the index.

        The name is gone already, so a failure here is only logged: a copy that is left over only takes up space
        (ovl_cleanup_index).
        """
        assert self._tree.index is not None
        try:
            left = self._tree.index.remove(node.place, node.place_name)
            node.links = links.changed(left)
            if left:
                self._note_link_count(node)
        except OSError as error:
            _log.warning("cannot remove a copy without a name from the index: %s", error)
