"""Copy-up of directories, and of the names in them."""

from __future__ import annotations

import errno
import os

from overlayfs_demo.events import Action
from overlayfs_demo.linux.failure import failure
from overlayfs_demo.overlay.copyup_attributes import dress, marks
from overlayfs_demo.overlay.hooks import Hooks
from overlayfs_demo.overlay.impure import mark_impure
from overlayfs_demo.overlay.layer import Descriptor, UpperDir, key_of, stale
from overlayfs_demo.overlay.node import DirNode, FileNode, Node
from overlayfs_demo.overlay.tree import Tree
from overlayfs_demo.overlay.types import Caller


class Directories:
    """Copies directories up, and publishes finished copies in them. Everything here runs with the tree's lock held."""

    __slots__ = ("_hooks", "_tree")

    def __init__(self, tree: Tree, hooks: Hooks) -> None:
        self._tree = tree
        self._hooks = hooks

    def copied(self, node: DirNode, caller: Caller) -> UpperDir:
        """Copy the directory and its ancestors up where the upper lacks them, and return the upper's directory."""
        if node.upper is not None:
            return node.upper
        self._tree.writable()
        # From the top down, and without recursion: directories may be nested deeper than Python's recursion limit.
        missing = []
        above = node
        while above.upper is None:
            if above.parent is None or above.gone:
                raise failure(errno.ENOENT, above.name)
            missing.append((above, above.parent))
            above = above.parent
        made = above.upper
        for directory, parent in reversed(missing):
            made = self._copy(directory, parent, caller)
        return made

    def _copy(self, node: DirNode, parent: DirNode, caller: Caller) -> UpperDir:
        upper = self._tree.writable()
        source = node.pin()
        lower = node.lowers[0]
        origin = self._tree.encode_origin(lower.layer, lower.open(), b"")
        with upper.staged() as temporary:
            os.mkdir(temporary, 0o700, dir_fd=upper.work_fd)
            # Opened before it is published: nothing may fail once it has its name.
            opened = Descriptor(os.open(temporary, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=upper.work_fd))
            key = key_of(os.fstat(opened.fd))
            dress(opened.fd, source, source.stat(), marks(node, origin, self._tree), self._tree.xattrs)
            try:
                above = self.publish(node, parent, temporary, bool(origin), caller)
            except FileExistsError:
                upper.discard(temporary)
                return self._found(node, parent)
        made = above.child(node.name, key)
        made.hold(opened)
        node.copied_up(made)
        self._tree.claim(node.ino, key)
        self._hooks.changed(node)
        upper.emit(Action.COPY_UP, node, caller, lower.layer.label, detail="directory")
        return made

    def _found(self, node: DirNode, parent: DirNode) -> UpperDir:
        """Return the upper's directory that was made behind the view where the copy should go.

        ESTALE if something other than a directory is there.
        """
        self._tree.child(parent, node.name)
        if node.upper is None:
            raise stale(node.name)
        return node.upper

    def publish(self, node: Node, parent: DirNode, temporary: bytes, impure: bool, caller: Caller) -> UpperDir:
        """Move a finished copy to the node's name, and return the upper's directory that holds it now.

        A copy-up does not change the view, so the directory keeps its times.
        """
        above = self.copied(parent, caller)
        if impure:
            mark_impure(above, self._tree)
        before = os.fstat(above.open().fd)
        self._tree.writable().publish(temporary, above, node.name, False, node.is_directory)
        restore_times(above, before)
        return above

    def name(self, node: FileNode, parent: DirNode, name: bytes, caller: Caller) -> None:
        """Give a file in the index this name in the upper, if it lacks it."""
        above = self.copied(parent, caller)
        if above.stat(name) is not None:
            return
        assert self._tree.index is not None and node.links is not None
        mark_impure(above, self._tree)
        before = os.fstat(above.open().fd)
        # Before and after the link, so that the count is right whenever we are interrupted (ovl_link_up).
        self._tree.index.note_links_to_lower(node.place, node.place_name, node.links)
        self._tree.writable().link(node.pin(), above, name, False, caller)
        restore_times(above, before)
        self._tree.index.note_links(node.place, node.place_name, node.links)


def restore_times(directory: UpperDir, before: os.stat_result) -> None:
    """Give the directory its times back, ignoring errors because the change is done by then (ovl_do_copy_up)."""
    try:
        os.utime(directory.open().fd, ns=(before.st_atime_ns, before.st_mtime_ns))
    except OSError:
        pass
