"""How an image's view and the view of a container on top of it are compared.

Both show the same where the container's upper has no say, so only the rest has to be looked at.
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
    """The view of a stack. Raises OSError."""
    overlay = open_overlay(stack)
    try:
        yield overlay
    finally:
        overlay.close()


def find(view: Overlay, directory: DirNode | None, name: bytes) -> tuple[Node, Attrs] | None:
    """What the view has there; nothing if it has no such directory."""
    if directory is None:
        return None
    try:
        return view.lookup(directory, name)
    except FileNotFoundError:
        return None


def in_upper(node: Node) -> bool:
    """Does the upper say anything of it?"""
    if isinstance(node, FileNode):
        return node.in_upper
    return isinstance(node, DirNode) and node.sources[0].layer.is_upper


def is_another(old: DirNode, new: DirNode) -> bool:
    """Are there other lower directories in it than before? It is opaque then, or was renamed to here."""
    below = [source for source in new.sources if not source.layer.is_upper]
    return [(source.layer.path, source.path()) for source in below] != [
        (source.layer.path, source.path()) for source in old.sources
    ]
