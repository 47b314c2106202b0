"""A view of a stored image as one tree, without a mount."""

from __future__ import annotations

import os
import stat

from overlayfs_demo.linux import syscalls
from overlayfs_demo.overlay.engine import Overlay
from overlayfs_demo.overlay.node import DirNode, Node
from overlayfs_demo.overlay.stack import Stack
from overlayfs_demo.overlay.whiteout import USER
from overlayfs_demo.store.store import Store
from overlayfs_demo.store.stored import StoredImage


def image_stack(store: Store, image: StoredImage) -> Stack:
    """Return a stack of an image's layers, each with the step that made it; of an empty directory if it has none."""
    directories = [layer.directory for layer in image.layers[::-1]] or [store.empty_directory()]
    return Stack(
        tuple(map(os.fsencode, directories)),
        user_xattrs=store.marks is USER,
        image_whiteouts=False,
        titles=image.layer_titles[::-1],
    )


def resolve(view: Overlay, path: bytes) -> bytes:
    """Return the absolute path without `.`, `..` and symbolic links, as a process with the view as its root finds it.

    A symbolic link at the end stays, unless a slash follows it. If a name does not exist, cannot be looked up, or is
    one link too many (path_resolution(7)), it stays as written, and so does the rest of the path.
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
        if node is None or node.kind != stat.S_IFLNK or not names or links == syscalls.MOST_LINKS:
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
    except OSError:  # The caller gets this error when it opens the path.
        return None
