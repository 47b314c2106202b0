"""Helpers to compare an image's view with the view of a container on top of it.

Both show the same wherever the container's upper has nothing, so only the rest must be compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from overlayfs_demo.overlay.engine import Overlay
from overlayfs_demo.overlay.factory import open_overlay
from overlayfs_demo.overlay.node import DirNode, FileNode, Node
from overlayfs_demo.overlay.stack import Stack
from overlayfs_demo.overlay.types import Attrs


@contextmanager
def opened(stack: Stack) -> Iterator[Overlay]:
    """Open the view of a stack, and close it at the end. Raises OSError."""
    overlay = open_overlay(stack)
    try:
        yield overlay
    finally:
        overlay.close()


def find(view: Overlay, directory: DirNode | None, name: bytes) -> tuple[Node, Attrs] | None:
    """Return what the view has there; None if it has nothing, or if there is no directory."""
    if directory is None:
        return None
    try:
        return view.lookup(directory, name)
    except FileNotFoundError:
        return None


def in_upper(node: Node) -> bool:
    """Return True if the upper holds a part of this node."""
    if isinstance(node, FileNode):
        return node.in_upper
    return isinstance(node, DirNode) and node.sources[0].layer.is_upper


def is_another(old: DirNode, new: DirNode) -> bool:
    """Return True if its lower directories differ from before: it is opaque, or was renamed to this place."""
    below = [source for source in new.sources if not source.layer.is_upper]
    return [(source.layer.path, source.path()) for source in below] != [
        (source.layer.path, source.path()) for source in old.sources
    ]
