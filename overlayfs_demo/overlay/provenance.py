"""The provenance of a file in the view, as one sentence and as virtual extended attributes.

The attributes `user.overlayfs_demo.*` can be read by name but are not stored anywhere, so they cost nothing until
they are read, and a copy-up does not copy them. Programs that copy files also copy all attributes that
listxattr(2) lists, so these are listed only for getfattr(1), which shows what is listed.

    layer     the layers it is seen from, topmost first
    origin    the layer a copy in the upper was copied up from, and its path there if its name was different
    why       the verdict in one sentence
    shadowed  the layers that have a hidden object of that name
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Mapping, Sequence

from overlayfs_demo.linux import proc
from overlayfs_demo.linux.failure import failure
from overlayfs_demo.named_tuple import NamedTuple
from overlayfs_demo.overlay.layer import Layer
from overlayfs_demo.overlay.layer_statements import Statement, StatementsInside, names_of, statements_about
from overlayfs_demo.overlay.merge import Says
from overlayfs_demo.overlay.node import Node
from overlayfs_demo.overlay.tree import Tree
from overlayfs_demo.overlay.types import Caller
from overlayfs_demo.overlay.whiteout import VIRTUAL

_READER = "getfattr"


class Provenance(NamedTuple):
    """What each layer has at a path, from the top down."""

    statements: tuple[Statement, ...]

    @property
    def seen_from(self) -> list[str]:
        """The labels of the layers that are seen there: several for a merged directory, none if nothing is there."""
        return [statement.layer for statement in self.statements if statement.wins]

    @property
    def hidden(self) -> list[str]:
        """The labels of the layers whose object is hidden."""
        return [statement.layer for statement in self.statements if statement.hidden_by and statement.mode is not None]

    @property
    def why(self) -> str:
        """One sentence that says which layer wins, why, and what is hidden. Names in it may hold any character."""
        hidden = self.hidden
        verdict = _verdict(self.statements, self.seen_from)
        if not hidden:
            return f"{verdict}."
        return (
            f"{verdict}; {f'the one in {hidden[0]} is' if len(hidden) == 1 else f'those in {_and(hidden)} are'} hidden."
        )


def which(tree: Tree, path: bytes) -> Provenance:
    """Return what each layer has at an absolute path of the view. Raises OSError. Call with the tree's lock held."""
    return Provenance(tuple(statements_about(tree.lookup, _layers(tree), tree.root.sources, path)))


def inside(tree: Tree, directory: bytes) -> Callable[[bytes], Provenance]:
    """Return a function that returns what each layer has at a name in a directory of the view. Both raise OSError.

    The directory is looked up only once, so use it only while the layers do not change. Call this with the tree's lock
    held; the function takes it.
    """
    statements = StatementsInside(tree.lookup, _layers(tree), tree.root.sources, names_of(directory))

    def which(name: bytes) -> Provenance:
        with tree.lock:
            return Provenance(tuple(statements.about(name)))

    return which


def _layers(tree: Tree) -> list[Layer]:
    return [*([tree.upper.layer] if tree.upper else []), *tree.lowers]


def are_listed(node: Node, caller: Caller) -> bool:
    """Return whether the virtual attributes are listed for the caller.

    Only regular files and directories have any, because they are in `user.`: xattr(7).
    """
    return node.kind in (stat.S_IFREG, stat.S_IFDIR) and proc.command_name(caller.pid) == _READER


def attributes(tree: Tree, node: Node, found: Provenance) -> dict[str, str]:
    """Return the virtual attributes of a node that has a name, given its provenance. Call with the tree's lock held."""
    values = {
        "layer": ", ".join(found.seen_from),
        "origin": _origin(tree, node),
        "why": found.why,
        "shadowed": ", ".join(found.hidden),
    }
    return {VIRTUAL + name: value for name, value in values.items() if value}


def value(attributes: Mapping[str, str], name: str) -> bytes:
    """Return the value of one virtual attribute as getxattr(2) does. ENODATA if there is none."""
    if name not in attributes:
        raise failure(errno.ENODATA, name)
    return os.fsencode(attributes[name])


def _origin(tree: Tree, node: Node) -> str:
    """Return what a copy in the upper was copied up from; "" if it is not a copy, or its origin cannot be found."""
    origin = node.pin().xattr(tree.xattrs.origin) if node.in_upper else None
    if origin is None:
        return ""
    for source in node.parent.lowers if node.parent else ():
        # Any user can compare origins, but only root may open one: open_by_handle_at(2).
        if source.stat(node.name) and origin == tree.encode_origin(source.layer, source.open(), node.name):
            return source.layer.label
    if not tree.xattrs.follows:
        return ""  # A forged origin would reveal the path of any file, even in directories that the forger cannot read.
    found = tree.origins.find(origin)
    return f"{found[0].label}: {os.fsdecode(found[1])}" if found else ""


# --- the sentence ----------------------------------------------------------------------------------


def _verdict(statements: Sequence[Statement], winners: Sequence[str]) -> str:
    if not winners:
        return f"Not visible: {_why_not(statements)}"
    first = next(statement for statement in statements if statement.wins)
    if first.says is Says.METACOPY:
        data = f", data from {winners[1]}" if len(winners) > 1 else "; no layer below has the data"
        return f"Owner, mode and times come from {winners[0]}{data}"
    if len(winners) > 1:
        return f"Merged from {_and(winners)}, whose entries appear together"
    if first.says in (Says.DIRECTORY, Says.OPAQUE_DIRECTORY):
        alone = "hides everything below it" if first.says is Says.OPAQUE_DIRECTORY else "is not merged with any other"
        return f"Comes from {winners[0]}, whose directory {alone}"
    return f"Comes from {winners[0]}, the topmost layer that has it"


def _why_not(statements: Sequence[Statement]) -> str:
    for statement in statements:
        if statement.deleted_at and not statement.hidden_by:
            return f"{os.fsdecode(statement.deleted_at)} is deleted in {statement.layer}"
    for statement in statements:
        if statement.hidden_by:
            return f"{os.fsdecode(statement.hidden_at)} in {statement.hidden_by} hides everything below it"
    return "no layer has it"


def _and(words: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))
