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
from collections.abc import Sequence

from overlayfs_demo import syscalls
from overlayfs_demo.overlay.merge import Says
from overlayfs_demo.overlay.node import Node
from overlayfs_demo.overlay.testimony import Statement, testify
from overlayfs_demo.overlay.tree import Tree
from overlayfs_demo.overlay.types import Caller
from overlayfs_demo.overlay.whiteout import VIRTUAL

_READER = "getfattr"


class Provenance:
    """What the layers of a tree say about its nodes. Call with `Tree.lock` held."""

    __slots__ = ("_tree",)

    def __init__(self, tree: Tree) -> None:
        self._tree = tree

    def statements(self, path: bytes) -> list[Statement]:
        """What each layer, from the top down, says about an absolute path of the view, and who wins."""
        tree = self._tree
        upper = [tree.upper.layer] if tree.upper else []
        return testify(tree.lookup, [*upper, *tree.lowers], tree.root.sources, path)

    def listed(self, node: Node, caller: Caller) -> list[str]:
        """The names of the node's virtual attributes, if the caller is to see them: xattr(7), "user.", has them
        of regular files and directories only."""
        if node.kind not in (stat.S_IFREG, stat.S_IFDIR) or syscalls.command_name(caller.pid) != _READER:
            return []
        return [VIRTUAL + name for name in self._values(node)]

    def value(self, node: Node, name: str) -> bytes:
        """The value of a virtual attribute. ENODATA where there is none."""
        value = self._values(node).get(name.removeprefix(VIRTUAL))
        if value is None:
            raise OSError(errno.ENODATA, os.strerror(errno.ENODATA), node.name)
        return os.fsencode(value)

    def _values(self, node: Node) -> dict[str, str]:
        if node.gone:
            return {}
        statements = self.statements(node.path())
        values = {
            "layer": ", ".join(one.layer for one in statements if one.wins),
            "origin": self._origin(node),
            "why": why(statements),
            "shadowed": ", ".join(_hidden(statements)),
        }
        return {name: value for name, value in values.items() if value}

    def _origin(self, node: Node) -> str:
        """"" for what is no copy, and for a copy whose origin cannot be found any more."""
        if not node.in_upper:
            return ""
        value = syscalls.get_xattr(node.target().xattr_path(), self._tree.xattrs.origin)
        if value is None:
            return ""
        for source in node.parent.lowers if node.parent else ():
            # Origins can be compared by anybody, but only root may open one: open_by_handle_at(2).
            if source.stat(node.name) and value == self._tree.origins.encode(
                source.layer, source.open().fd, node.name
            ):
                return source.layer.label
        found = self._tree.origins.find(value)
        return f"{found[0].label}: {os.fsdecode(found[1])}" if found else ""


# --- the sentence ----------------------------------------------------------------------------------


def why(statements: Sequence[Statement]) -> str:
    """In one sentence: which layer wins, why, and what is hidden. Names may hold any character."""
    winners = [one.layer for one in statements if one.wins]
    hidden = _hidden(statements)
    tail = f"; what {_and(hidden)} {'has' if len(hidden) == 1 else 'have'} is hidden" if hidden else ""
    if not winners:
        return f"Not seen: {_why_not(statements)}{tail}."
    first = next(one for one in statements if one.wins)
    if first.says is Says.METACOPY:
        data = f", and its data from {winners[1]}" if len(winners) > 1 else "; no layer below has its data"
        return f"Seen with the owner, mode and times from {winners[0]}{data}{tail}."
    if len(winners) > 1:
        return f"Merged from {_and(winners)}, whose names are seen together{tail}."
    if first.says in (Says.DIRECTORY, Says.OPAQUE_DIRECTORY):
        alone = "hides all below" if first.says is Says.OPAQUE_DIRECTORY else "is not merged with another"
        return f"Seen from {winners[0]}, whose directory {alone}{tail}."
    return f"Seen from {winners[0]}, the topmost layer that has it{tail}."


def _hidden(statements: Sequence[Statement]) -> list[str]:
    return [one.layer for one in statements if one.hidden_by and one.status is not None]


def _and(words: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def _why_not(statements: Sequence[Statement]) -> str:
    for one in statements:
        if one.deleted_at and not one.hidden_by:
            return f"{os.fsdecode(one.deleted_at)} is deleted in {one.layer}"
    for one in statements:
        if one.hidden_by:
            return f"{os.fsdecode(one.hidden_at)} in {one.hidden_by} hides what is below"
    return "no layer has it"
