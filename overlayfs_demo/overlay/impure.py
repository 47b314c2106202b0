"""Impure directories: those of the upper that hold an object with a lower's inode number, data or merged directory.

They have the mark `overlay.impure`, so that a listing of any other directory need not look at each object
(fs/overlayfs/dir.c, ovl_rename; overlayfs.rst, "Inode properties").
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection

from overlayfs_demo.linux import proc, xattr
from overlayfs_demo.overlay.layer import UpperDir
from overlayfs_demo.overlay.node import DirNode, FileNode, Node
from overlayfs_demo.overlay.tree import Tree


def is_impure(node: Node, tree: Tree) -> bool:
    """Return whether an object of the upper shows the inode number or the data of a lower one."""
    if isinstance(node, FileNode) and node.metacopy:
        return True
    device, ino = node.key
    return node.ino != tree.identity_of(ino, device)


def mark_impure(directory: UpperDir, tree: Tree) -> None:
    """Mark the directory as impure. Call it before an impure object gets a name there, so that no listing misses it."""
    if not directory.marks.impure:
        tree.writable().mark_impure(directory)


def drop_mark(node: DirNode, names: Collection[bytes], tree: Tree) -> None:
    """Remove the mark from a directory that holds these names if none of them is impure any more.

    As in the kernel (fs/overlayfs/readdir.c, ovl_cache_get_impure), this happens when the directory is listed, only
    for directories that are not merged, and errors are ignored.
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
            tree.writable().unmark_impure(directory)


def _is_marked(directory: UpperDir, name: bytes, tree: Tree) -> bool:
    """Return whether an object of the upper has a mark that refers to a lower one. True if that cannot be read."""
    xattrs = tree.xattrs
    try:
        found = xattr.names(proc.path_of(directory.open().fd, name), False)
    except OSError:
        return True
    return not {xattrs.origin, xattrs.metacopy, xattrs.redirect}.isdisjoint(found)
