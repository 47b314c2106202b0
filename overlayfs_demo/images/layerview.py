"""What is seen through a stack of layers, and what does each layer take away from it?

The layers are laid one on another, from the bottom up, and each time the merge rule (`decide`) is asked
about the new layer and what was seen before. Nothing is read here: memory and time go with the paths.
"""

from __future__ import annotations

import enum
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from overlayfs_demo.images.survey import Thing
from overlayfs_demo.overlay.merge import Says, decide


class Why(enum.Enum):
    """Why a file is not seen any more."""

    OVERWRITTEN = "overwritten"
    METADATA_ONLY = "metadata only: overwritten by a copy with the same data"
    DELETED = "deleted by a whiteout"
    OPAQUE = "hidden by an opaque directory"


class Node:
    """Something that is seen: the number of the layer that shows it, and for a directory what is in it by name."""

    __slots__ = ("children", "layer", "thing")

    def __init__(self, layer: int, thing: Thing, children: dict[bytes, Node] | None) -> None:
        self.layer = layer
        self.thing = thing
        self.children = children


@dataclass(frozen=True, slots=True)
class Gone:
    """Something that a layer hid; `why` holds unless the layer has the same path anew."""

    thing: Thing
    layer: int
    why: Why


@dataclass(frozen=True, slots=True)
class Laid:
    """What was seen before at the paths that a layer speaks of, or hides: merged with it, or gone."""

    merged: Mapping[bytes, Node]
    gone: Mapping[bytes, Gone]

    def layer_before(self, path: bytes) -> int | None:
        """The number of the layer that showed this path before, None if none did."""
        found = self.merged.get(path) or self.gone.get(path)
        return found.layer if found is not None else None


class View:
    """The merged view of the layers that have been laid so far."""

    def __init__(self) -> None:
        self._root = Node(0, _ROOT, {})

    def lay(self, number: int, things: Mapping[bytes, Thing]) -> Laid:
        """Lay a layer on top: its number, and what it says, directories before what is in them."""
        merged: dict[bytes, Node] = {}
        gone: dict[bytes, Gone] = {}
        directories = {b"": self._root}
        for path, thing in things.items():
            above, _, name = path.rpartition(b"/")
            siblings = directories[above].children
            assert siblings is not None
            below = siblings.pop(name, None)
            verdict = decide((thing.says, below.thing.says if below is not None else Says.ABSENT))
            children: dict[bytes, Node] | None = {}
            if below is not None and 1 in verdict.positions:
                merged[path] = below
                children = below.children
            elif below is not None:
                why = _REASONS.get(thing.says, Why.OVERWRITTEN)
                gone.update((one, Gone(node.thing, node.layer, why)) for one, node in _paths(path, below))
            if 0 in verdict.positions:
                siblings[name] = node = Node(number, thing, children if verdict.directory else None)
                if verdict.directory:
                    directories[path] = node
        return Laid(merged, gone)

    def paths(self) -> Iterator[tuple[bytes, Node]]:
        """Everything that is seen, but for the root."""
        return ((path, node) for path, node in _paths(b"", self._root) if path)

    def shows(self, path: bytes) -> bool:
        """True if something is seen at this path."""
        node: Node | None = self._root
        for name in path.split(b"/"):
            node = node.children.get(name) if node is not None and node.children is not None else None
        return node is not None


# The root belongs to every layer, and no layer's word about it counts.
_ROOT = Thing(Says.DIRECTORY, stat.S_IFDIR, 0, 0, 0, 0, 0, 0)
_REASONS = {Says.WHITEOUT: Why.DELETED, Says.OPAQUE_DIRECTORY: Why.OPAQUE}


def _paths(path: bytes, node: Node) -> Iterator[tuple[bytes, Node]]:
    """A node that is seen at `path`, and all below it."""
    pending = [(path, node)]
    while pending:
        at, one = pending.pop()
        yield at, one
        prefix = at + b"/" if at else b""
        pending.extend((prefix + name, child) for name, child in (one.children or {}).items())
