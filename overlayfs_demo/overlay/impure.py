"""Which directories of the upper hold what shows something of a lower: a number, data, a merged directory?

They bear the mark `overlay.impure`, so that in all others a listing need not look at each object (fs/overlayfs/dir.c,
ovl_rename; overlayfs.rst, "Inode properties").
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection

from overlayfs_demo.linux import syscalls
from overlayfs_demo.overlay.layer import UpperDir
from overlayfs_demo.overlay.node import DirNode, FileNode, Node
from overlayfs_demo.overlay.tree import Tree


def is_impure(node: Node, tree: Tree) -> bool:
    """Does an object of the upper show the inode number of a lower one, or its data?"""
    if isinstance(node, FileNode) and node.metacopy:
        return True
    return node.ino != tree.identity(node.stat())


def mark_impure(directory: UpperDir, tree: Tree) -> None:
    """Note on disk that the directory holds something impure."""
    if not directory.marks.impure:
        os.setxattr(directory.open().fd, tree.xattrs.impure, b"y")
        directory.forget_marks()


def drop_mark(node: DirNode, names: Collection[bytes], tree: Tree) -> None:
    """Take the mark off a directory that holds these names, none of them impure any more.

    As in the kernel (fs/overlayfs/readdir.c, ovl_cache_get_impure) this is done when the directory is listed, for
    directories of the upper alone, and as best it can be.
    """
    directory = node.upper
    if directory is None or node.lowers or not directory.marks.impure:
        return
    known = directory.impure_name
    if known is not None and known in names and _is_marked(directory, known, tree):
        return
    directory.impure_name = next((name for name in names if _is_marked(directory, name, tree)), None)
    if directory.impure_name is None:
        with contextlib.suppress(OSError):
            os.removexattr(directory.open().fd, tree.xattrs.impure)
            directory.forget_marks()


def _is_marked(directory: UpperDir, name: bytes, tree: Tree) -> bool:
    """Does an object of the upper say that it belongs to something below? True if that cannot be told."""
    xattrs = tree.xattrs
    try:
        found = syscalls.list_xattrs(syscalls.path_of(directory.open().fd, name), False)
    except OSError:
        return True
    return not {xattrs.origin, xattrs.metacopy, xattrs.redirect}.isdisjoint(found)
