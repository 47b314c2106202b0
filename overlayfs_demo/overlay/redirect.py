"""How does what moved say where its lower part is?

By `overlay.redirect` on the upper's object: a name in the same directory, or a path from the roots of the layers
below. A directory merges with what that names, a metacopy has its data there (overlayfs.rst, "redirect_dir" and
"Metadata only copy up"; fs/overlayfs/dir.c, ovl_set_redirect).
"""

from __future__ import annotations

import errno
import os
import stat

from overlayfs_demo.overlay.node import DirNode, FileNode, Node
from overlayfs_demo.overlay.tree import Tree
from overlayfs_demo.overlay.types import Caller

# The kernel's limit for a path, in bytes (fs/overlayfs/overlayfs.h, OVL_REDIRECT_MAX).
_LONGEST_PATH = 256


class Redirects:
    """Writes the redirects of one tree. Everything here runs with the tree's lock held.

    `metacopy`: a file that moves leaves its data below. `parent` and `name` are where the view has the node
    before it moves; `same_parent` says that it stays in that directory, and under that name only.
    """

    __slots__ = ("_metacopy", "_tree")

    def __init__(self, tree: Tree, metacopy: bool) -> None:
        self._tree = tree
        self._metacopy = metacopy

    def wants_data(self, node: FileNode, parent: DirNode, name: bytes, same_parent: bool) -> bool | None:
        """Must a file be copied up before it moves? If so: with its data? None if it can move as it is."""
        if node.in_upper and not node.metacopy:
            return None
        if not self._metacopy or node.kind != stat.S_IFREG:
            return True
        redirect = self._wanted(node, parent, name, same_parent)
        if redirect is not None and len(redirect) > _LONGEST_PATH:
            return True
        return None if node.in_upper else False

    def refuse(self, node: Node) -> None:
        """Raise EXDEV for a directory that could not move without a redirect, where none is followed (ovl_can_move)."""
        if isinstance(node, DirNode) and node.lowers and not self._tree.xattrs.follows:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), node.name)

    def write(self, node: Node, parent: DirNode, name: bytes, same_parent: bool, caller: Caller) -> None:
        """Note where the lower part is of an object in the upper, if it has one. EXDEV if the path is too long."""
        redirect = self._wanted(node, parent, name, same_parent) if _has_lower_part(node) else None
        if redirect is None:
            return
        if len(redirect) > _LONGEST_PATH:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), name)
        self._tree.writable().set_xattr(node.pin(), node.path(), self._tree.xattrs.redirect, redirect, 0, caller)
        if isinstance(node, DirNode):
            node.redirect = redirect
            assert node.upper is not None
            node.upper.forget_marks()

    def _wanted(self, node: Node, parent: DirNode, name: bytes, same_parent: bool) -> bytes | None:
        """The redirect to write; None if the present one stays true."""
        known = self._known(node)
        if isinstance(node, FileNode) and same_parent:
            # The other names of a hard-linked file may stand, or come to stand, in other directories.
            data = node.data_place()
            status = data.place.stat(data.name)
            same_parent = status is not None and status.st_nlink == 1
        if known is not None and (same_parent or known.startswith(b"/")):
            return None
        return name if same_parent else b"%s/%s" % (_lower_path(parent), known or name)

    def _known(self, node: Node) -> bytes | None:
        """The redirect that the upper's object has already."""
        if isinstance(node, DirNode):
            return node.redirect
        return node.pin().xattr(self._tree.xattrs.redirect) if node.in_upper else None


def _has_lower_part(node: Node) -> bool:
    """Is it a merged directory, or a metacopy?"""
    return bool(node.lowers) if isinstance(node, DirNode) else isinstance(node, FileNode) and node.metacopy


def _lower_path(directory: DirNode) -> bytes:
    """Where the stack of lowers, seen without the upper, has a directory; empty for the root.

    Directories that were renamed in the upper count with their redirect (fs/overlayfs/dir.c, ovl_get_redirect).
    """
    below = b""
    while directory.parent is not None:
        if directory.redirect is not None and directory.redirect.startswith(b"/"):
            return directory.redirect + below
        below = b"/%s%s" % (directory.redirect or directory.name, below)
        directory = directory.parent
    return below
