"""Where does a file of the view come from, in one sentence and as virtual extended attributes?

The attributes `user.overlayfs_demo.*` exist for whoever asks for them by name, and are stored nowhere, so they cost
nothing until then and a copy-up knows nothing of them. Programs that copy files take along whatever attributes
listxattr(2) names. So it names these to getfattr(1) alone, which shows what it lists.

    layer     which layers it is seen from, topmost first
    origin    where a copy in the upper was copied up from, and under which name, if it had another
    why       the verdict in one sentence
    shadowed  which layers have something of that name that is hidden
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from overlayfs_demo.linux import syscalls
from overlayfs_demo.overlay.layer_statements import Statement, testify
from overlayfs_demo.overlay.merge import Says
from overlayfs_demo.overlay.node import Node
from overlayfs_demo.overlay.tree import Tree
from overlayfs_demo.overlay.types import Caller
from overlayfs_demo.overlay.whiteout import VIRTUAL

_READER = "getfattr"


@dataclass(frozen=True, slots=True)
class Explanation:
    """The answer to a question about a path: what each layer says about it, from the top down."""

    statements: tuple[Statement, ...]

    @property
    def seen_from(self) -> list[str]:
        """The labels of the layers that are seen there: several of a merged directory, none if nothing is."""
        return [one.layer for one in self.statements if one.wins]

    @property
    def hidden(self) -> list[str]:
        """The labels of the layers whose object is hidden."""
        return [one.layer for one in self.statements if one.hidden_by and one.mode is not None]

    @property
    def why(self) -> str:
        """In one sentence: which layer wins, why, and what is hidden. Names in it may hold any character."""
        hidden = self.hidden
        tail = f"; what {_and(hidden)} {'has' if len(hidden) == 1 else 'have'} is hidden" if hidden else ""
        return f"{_verdict(self.statements, self.seen_from)}{tail}."


def explain(tree: Tree, path: bytes) -> Explanation:
    """What each layer says about an absolute path of the view. Raises OSError. Call with the tree's lock held."""
    upper = [tree.upper.layer] if tree.upper else []
    return Explanation(tuple(testify(tree.lookup, [*upper, *tree.lowers], tree.root.sources, path)))


def are_listed(node: Node, caller: Caller) -> bool:
    """Is the caller to see the virtual attributes? Only regular files and directories have some: xattr(7), "user."."""
    return node.kind in (stat.S_IFREG, stat.S_IFDIR) and syscalls.command_name(caller.pid) == _READER


def attributes(tree: Tree, node: Node, explanation: Explanation) -> dict[str, str]:
    """The virtual attributes of a node that has a name, given its explanation. Call with the tree's lock held."""
    values = {
        "layer": ", ".join(explanation.seen_from),
        "origin": _origin(tree, node),
        "why": explanation.why,
        "shadowed": ", ".join(explanation.hidden),
    }
    return {VIRTUAL + name: value for name, value in values.items() if value}


def value(attributes: Mapping[str, str], name: str) -> bytes:
    """One of them as it is read. ENODATA where there is none."""
    if name not in attributes:
        raise OSError(errno.ENODATA, os.strerror(errno.ENODATA), name)
    return os.fsencode(attributes[name])


def _origin(tree: Tree, node: Node) -> str:
    """What a copy in the upper was copied up from; "" for what is none, and where it cannot be found any more."""
    origin = node.pin().xattr(tree.xattrs.origin) if node.in_upper else None
    if origin is None:
        return ""
    for source in node.parent.lowers if node.parent else ():
        # Origins can be compared by anybody, but only root may open one: open_by_handle_at(2).
        if source.stat(node.name) and origin == tree.origins.encode(source.layer, source.open().fd, node.name):
            return source.layer.label
    if not tree.xattrs.follows:
        return ""  # Whoever forges an origin would be told the name of any file, in directories closed to all, too.
    found = tree.origins.find(origin)
    return f"{found[0].label}: {os.fsdecode(found[1])}" if found else ""


# --- the sentence ----------------------------------------------------------------------------------


def _verdict(statements: Sequence[Statement], winners: Sequence[str]) -> str:
    if not winners:
        return f"Not seen: {_why_not(statements)}"
    first = next(one for one in statements if one.wins)
    if first.says is Says.METACOPY:
        data = f", and its data from {winners[1]}" if len(winners) > 1 else "; no layer below has its data"
        return f"Seen with the owner, mode and times from {winners[0]}{data}"
    if len(winners) > 1:
        return f"Merged from {_and(winners)}, whose names are seen together"
    if first.says in (Says.DIRECTORY, Says.OPAQUE_DIRECTORY):
        alone = "hides all below" if first.says is Says.OPAQUE_DIRECTORY else "is not merged with another"
        return f"Seen from {winners[0]}, whose directory {alone}"
    return f"Seen from {winners[0]}, the topmost layer that has it"


def _why_not(statements: Sequence[Statement]) -> str:
    for one in statements:
        if one.deleted_at and not one.hidden_by:
            return f"{os.fsdecode(one.deleted_at)} is deleted in {one.layer}"
    for one in statements:
        if one.hidden_by:
            return f"{os.fsdecode(one.hidden_at)} in {one.hidden_by} hides what is below"
    return "no layer has it"


def _and(words: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))
