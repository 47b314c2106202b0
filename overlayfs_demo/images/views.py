"""How are images looked at as the trees that they are, without a mount, and how are two such views compared?

Of an image's view, and that of a container with an upper on top of it, both show the same where the upper has no say.
So only the rest has to be looked at.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from overlayfs_demo.images.store import Store, StoredImage
from overlayfs_demo.overlay.engine import Overlay
from overlayfs_demo.overlay.node import DirNode, FileNode, Node
from overlayfs_demo.overlay.open import open_overlay
from overlayfs_demo.overlay.stack import Stack
from overlayfs_demo.overlay.types import Attrs
from overlayfs_demo.overlay.whiteout import USER

# path_resolution(7)
_MOST_LINKS = 40


def image_stack(store: Store, image: StoredImage) -> Stack:
    """An image's layers, each with what made it, to be looked at as one tree; an empty directory if it has none."""
    directories = [layer.directory for layer in image.layers[::-1]] or [store.empty_directory()]
    return Stack(
        tuple(map(os.fsencode, directories)), user_xattrs=store.marks is USER,
        image_whiteouts=False, titles=image.value.titles[::-1],
    )


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


def resolve(view: Overlay, path: bytes) -> bytes:
    """The absolute path without `.`, `..` and symbolic links, as a process finds it whose root directory the view is.

    A link at the end is what is meant, unless a slash follows. What does not exist, cannot be looked up, or is one link
    too many is taken as it is written, like the rest of the path from there on.
    """
    names = path.split(b"/")[::-1]
    trail: list[tuple[bytes, Node | None]] = [(b"", view.root)]
    links = 0
    while names:
        name = names.pop()
        if name in (b"", b"."):
            continue
        if name == b"..":
            del trail[max(1, len(trail) - 1) :]
            continue
        node = _child(view, trail[-1][1], name)
        if node is None or node.kind != stat.S_IFLNK or not names or links == _MOST_LINKS:
            trail.append((name, node))
            continue
        links += 1
        target = view.readlink(node)
        if target.startswith(b"/"):
            del trail[1:]
        names += target.split(b"/")[::-1]
    return b"/" + b"/".join(name for name, _ in trail[1:])


def _child(view: Overlay, above: Node | None, name: bytes) -> Node | None:
    if not isinstance(above, DirNode):
        return None
    try:
        return view.lookup(above, name)[0]
    except OSError:  # Whoever asks about the path is told why.
        return None
