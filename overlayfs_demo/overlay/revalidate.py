"""What becomes of a node when its real object was changed behind the view's back?

Each lookup compares what it found with what is remembered. A file that was replaced (as most editors do
it) is another file: the old node lives on only for those who have it open. A directory stays the same one
as long as any of the real directories in it does, and takes the others in or lets them go.
"""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Sequence

from overlayfs_demo.overlay.layer import Key, LayerDir, LowerDir, UpperDir, key_of
from overlayfs_demo.overlay.lookup import Part
from overlayfs_demo.overlay.node import DirNode, FileNode, Node


def keys_of(parts: Sequence[Part]) -> tuple[Key, ...]:
    """The (device, inode) of each real object."""
    return tuple([key_of(part.status) for part in parts])


def follow(node: Node, parts: Sequence[Part]) -> bool:
    """Does the node known by a name stand for what was now found there? It is made to, if it can be."""
    status = parts[0].status
    if node.kind != stat.S_IFMT(status.st_mode):
        return False
    if isinstance(node, DirNode):
        keys = keys_of(parts)
        return node.keys == keys or _refit(node, parts, keys)
    if isinstance(node, FileNode) and node.metacopy != parts[0].metacopy:
        return False
    return node.key == key_of(status)


def _refit(node: DirNode, parts: Sequence[Part], keys: tuple[Key, ...]) -> bool:
    """Merge a directory from other parts than before, if it has one of them still."""
    if not set(keys) & set(node.keys):
        return False
    upper = node.upper if node.upper is not None and node.upper.layer is parts[0].place.layer else None
    sources: list[LayerDir] = [part.directory for part in parts if part.directory is not None]
    if upper is not None and node.keys[0] == keys[0]:
        # Those of the upper know their parents, so this one stays the same object.
        upper.forget_marks()
        sources[0] = upper
    node.sources = tuple(sources)
    node.upper = next((source for source in sources if isinstance(source, UpperDir)), None)
    node.lowers = tuple(source for source in sources if isinstance(source, LowerDir))
    node.redirect = node.upper.marks.redirect if node.upper else None
    node.keys = keys
    node.key = keys[0]
    node.watched = None
    return True


def displace(node: Node, parent: DirNode, name: bytes) -> None:
    """The node is no longer what stands as `name` in `parent`: only those who hold it still have it."""
    parent.children.drop(name, node)
    if node.parent is not parent or node.name != name:
        return
    node.gone = True
    if node.anchor is not None:
        return
    # Without an anchor the node answers ESTALE: so it is where nothing leads to its object any more.
    with contextlib.suppress(OSError):
        if isinstance(node, FileNode) and node.handles:
            node.anchor = node.handles[0].opened
        elif isinstance(node, DirNode):
            node.anchor = node.front()
