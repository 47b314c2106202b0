"""Redirects, which tell where the lower part of a renamed object is.

`overlay.redirect` on the upper's object holds a name in the same directory, or a path from the roots of the layers
below. A directory merges with the directory it names, and a metacopy has its data there (overlayfs.rst, "redirect_dir"
and "Metadata only copy up"; fs/overlayfs/dir.c, ovl_set_redirect).
"""

from __future__ import annotations

import errno
import stat

from overlayfs_demo.linux.failure import failure
from overlayfs_demo.overlay.node import DirNode, FileNode, Node
from overlayfs_demo.overlay.tree import Tree
from overlayfs_demo.overlay.types import Caller

# The kernel's limit for a path, in bytes (fs/overlayfs/overlayfs.h, OVL_REDIRECT_MAX).
_LONGEST_PATH = 256


class Redirects:
    """Writes the redirects of one tree. Everything here runs with the tree's lock held.

    `metacopy`: a file that moves leaves its data below. The methods take the `parent` and `name` of a node before it
    moves. `same_parent`: it stays in that directory, and gets no second name.
    """

    __slots__ = ("_metacopy", "_tree")

    def __init__(self, tree: Tree, metacopy: bool) -> None:
        self._tree = tree
        self._metacopy = metacopy

    def wants_data(self, node: FileNode, parent: DirNode, name: bytes, same_parent: bool) -> bool | None:
        """Return whether a file must be copied up with its data before it moves; None if it can move as it is."""
        if node.in_upper and not node.metacopy:
            return None
        if not self._metacopy or node.kind != stat.S_IFREG:
            return True
        redirect = self._wanted(node, parent, name, same_parent)
        if redirect is not None and len(redirect) > _LONGEST_PATH:
            return True
        return None if node.in_upper else False

    def refuse(self, node: Node) -> None:
        """Raise EXDEV for a directory that needs a redirect to move where redirects are not followed (ovl_can_move)."""
        if isinstance(node, DirNode) and node.lowers and not self._tree.xattrs.follows:
            raise failure(errno.EXDEV, node.name)

    def write(self, node: Node, parent: DirNode, name: bytes, same_parent: bool, caller: Caller) -> None:
        """Write the redirect of an object in the upper, if it has a lower part. EXDEV if the path is too long."""
        redirect = self._wanted(node, parent, name, same_parent) if _has_lower_part(node) else None
        if redirect is None:
            return
        if len(redirect) > _LONGEST_PATH:
            raise failure(errno.EXDEV, name)
        self._tree.writable().set_xattr(node.pin(), node, self._tree.xattrs.redirect, redirect, 0, caller)
        if isinstance(node, DirNode):
            node.redirect = redirect
            assert node.upper is not None
            node.upper.forget_marks()

    def _wanted(self, node: Node, parent: DirNode, name: bytes, same_parent: bool) -> bytes | None:
        """Return the redirect to write; None if the present one stays true."""
        known = self._known(node)
        if isinstance(node, FileNode) and same_parent:
            # A hard-linked file may have other names in other directories, now or later, so it needs an absolute path.
            data = node.data_place()
            status = data.place.stat(data.name)
            same_parent = status is not None and status.st_nlink == 1
        if known is not None and (same_parent or known.startswith(b"/")):
            return None
        return name if same_parent else b"%s/%s" % (_lower_path(parent), known or name)

    def _known(self, node: Node) -> bytes | None:
        """Return the redirect that the upper's object has now."""
        if isinstance(node, DirNode):
            return node.redirect
        return node.pin().xattr(self._tree.xattrs.redirect) if node.in_upper else None


def _has_lower_part(node: Node) -> bool:
    """Return whether it is a merged directory or a metacopy."""
    return bool(node.lowers) if isinstance(node, DirNode) else isinstance(node, FileNode) and node.metacopy


def _lower_path(directory: DirNode) -> bytes:
    """Return the path of a directory in the merged lowers, without the upper; empty for the root.

    For directories that were renamed in the upper, their redirect is used (fs/overlayfs/dir.c, ovl_get_redirect).
    """
    below = b""
    while directory.parent is not None:
        if directory.redirect is not None and directory.redirect.startswith(b"/"):
            return directory.redirect + below
        below = b"/%s%s" % (directory.redirect or directory.name, below)
        directory = directory.parent
    return below
