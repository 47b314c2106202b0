"""What the browser says in its heading and in its last lines."""

from __future__ import annotations

import stat

from overlayfs_demo.browse.census import Census
from overlayfs_demo.browse.depths import Entry
from overlayfs_demo.browse.model import Line, Tree
from overlayfs_demo.browse.subject import LayerStep
from overlayfs_demo.errors import printable
from overlayfs_demo.images.upper_diff import Kind
from overlayfs_demo.ui.text import human_size


def choice(tree: Tree, step: LayerStep | None) -> str:
    """Return in a few words what the tree shows."""
    parts = ["changes only"] if tree.only_changes else []
    parts += ["by size"] if tree.by_size else []
    parts += ["filtered"] if tree.found is not None else []
    # Last, because it is the first to be cut.
    parts += [f"as of {step.name}"] if step else []
    return f"   ({', '.join(parts)})" if parts else ""


def about_layer(step: LayerStep | None, census: Census) -> list[str]:
    """Return lines about a layer: its size, how many names it changes, and what made it."""
    if step is None:
        return ["this image has no layers"]
    size = "…" if step.size is None else human_size(step.size)
    if census.is_done:
        kinds = census.kinds
        names = f"A {kinds[Kind.ADDED]}  C {kinds[Kind.CHANGED]}  D {kinds[Kind.DELETED]} names"
        done = f"{names}; the tree as of this layer: {human_size(census.total)}"
    else:
        done = f"reading names: {census.seen} so far"
    if census.unreadable:
        done += f"; {census.unreadable} directories cannot be read"
    return [f"{step.name}, {size}; {done}", printable(step.title)]


def described(line: Line, entry: Entry) -> str:
    """Return a path with what the columns of a narrow pane leave out."""
    mode = "?" if entry.broken else stat.filemode(entry.mode)
    size = "…" if line.size is None else human_size(line.size)
    return f"{printable(line.path)}  {mode} {entry.uid}:{entry.gid} {size}"
