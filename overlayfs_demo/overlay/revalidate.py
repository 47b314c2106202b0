"""Revalidation of nodes whose real objects were changed behind the view.

Each lookup compares what it found with the known node. A file that was replaced (as most editors do)
is another file: the old node remains only for those who have it open. A directory stays the same
as long as any one of its real directories does; the others are added or removed.
"""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Sequence

from overlayfs_demo.overlay.layer import Key, LayerDir, LowerDir, UpperDir, key_of
from overlayfs_demo.overlay.lookup import Part
from overlayfs_demo.overlay.node import DirNode, FileNode, Node
from overlayfs_demo.overlay.questions import AskFirstError


def keys_of(parts: Sequence[Part]) -> tuple[Key, ...]:
    """Return the (device, inode) of each real object."""
    return tuple([key_of(part.status) for part in parts])


def follow(node: Node, parts: Sequence[Part]) -> bool:
    """Update the known node of a name for what was found there now. Return False if it needs another node."""
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
    """Merge a directory from new parts. Return False, and change nothing, if none of the old parts is among them."""
    if not set(keys) & set(node.keys):
        return False
    upper = node.upper if node.upper is not None and node.upper.layer is parts[0].place.layer else None
    sources: list[LayerDir] = [part.directory for part in parts if part.directory is not None]
    if upper is not None and node.keys[0] == keys[0]:
        # Keep the same object: other directories of the upper refer to it as their parent.
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
    """Detach a node from `name` in `parent`, which now leads to something else. Its holders can still use it."""
    parent.children.drop(name, node)
    if node.parent is not parent or node.name != name:
        return
    node.gone = True
    if node.anchor is not None:
        return
    # If this fails, nothing leads to the node's object any more, and without an anchor the node raises ESTALE.
    with contextlib.suppress(OSError, AskFirstError):
        if isinstance(node, FileNode) and node.handles:
            node.anchor = node.handles[0].opened
        elif isinstance(node, DirNode):
            node.anchor = node.front()
