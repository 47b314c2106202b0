"""The table of the nodes that the kernel holds, with their ids.

The kernel counts a lookup for every entry it is told of, and takes counts back with FORGET. The table
holds each node until its count is zero. The engine has only weak references, so the node is then freed.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterable
from itertools import count

from overlayfs_demo.fronts.kernel import wire
from overlayfs_demo.fronts.kernel.directory_offsets import DirectoryStream
from overlayfs_demo.linux.failure import failure
from overlayfs_demo.overlay.node import DirNode, Node


class _Known:
    __slots__ = ("lookups", "node", "stamp", "stored", "stream")

    def __init__(self, node: Node) -> None:
        self.node = node
        self.lookups = 0
        self.stored = False
        self.stamp: object = None
        self.stream: DirectoryStream | None = None


class NodeTable:
    """Nodes by id and ids by node. An id is never used again, so a stale one cannot mean another file."""

    __slots__ = ("_by_id", "_ids", "_lock", "_serial")

    def __init__(self, root: DirNode) -> None:
        self._lock = threading.Lock()
        self._serial = count(wire.ROOT_ID + 1)
        known = _Known(root)
        known.lookups = 1
        self._by_id: dict[int, _Known] = {wire.ROOT_ID: known}
        self._ids: dict[Node, int] = {root: wire.ROOT_ID}

    def __len__(self) -> int:
        return len(self._by_id)

    def remember(self, nodes: Iterable[Node]) -> list[int]:
        """Return the id of each node, and count one more lookup for each."""
        ids, by_id, numbers = self._ids, self._by_id, []
        with self._lock:
            for node in nodes:
                nodeid = ids.get(node)
                if nodeid is None:
                    nodeid = next(self._serial)
                    ids[node] = nodeid
                    by_id[nodeid] = _Known(node)
                by_id[nodeid].lookups += 1
                numbers.append(nodeid)
        return numbers

    def node(self, nodeid: int) -> Node:
        """Return the node of an id that the kernel still holds. Raises KeyError for any other id."""
        return self._by_id[nodeid].node

    def directory(self, nodeid: int) -> DirNode:
        """Return the directory of an id. Raises KeyError like `node`, and NotADirectoryError if it is not one."""
        node = self._by_id[nodeid].node
        if not isinstance(node, DirNode):
            raise failure(errno.ENOTDIR)
        return node

    def id_of(self, node: Node) -> int | None:
        """Return the id of a node, or None if the kernel does not hold it."""
        return self._ids.get(node)

    def stream(self, nodeid: int) -> DirectoryStream:
        """Return the directory stream of a node, which lives as long as the table holds the node."""
        with self._lock:
            known = self._by_id[nodeid]
            if known.stream is None:
                known.stream = DirectoryStream()
            return known.stream

    def first_store(self, nodeid: int) -> bool:
        """Return whether a node's data still has to be put into the kernel's cache: True once, then False."""
        known = self._by_id[nodeid]
        first, known.stored = not known.stored, True
        return first

    def forget_stored(self, nodeid: int) -> None:
        """Note that the node's data in the kernel's cache is outdated, so that `first_store` is True again."""
        known = self._by_id.get(nodeid)
        if known is not None:
            known.stored = False

    def is_same(self, nodeid: int, stamp: object) -> bool:
        """Return whether the stamp equals that of the last call for this node, and remember it.

        Before the first call it is None.
        """
        known = self._by_id[nodeid]
        before, known.stamp = known.stamp, stamp
        return before == stamp

    def ids(self) -> list[int]:
        """Return all ids that the kernel holds."""
        with self._lock:
            return list(self._by_id)

    def names(self) -> list[tuple[int, bytes]]:
        """Return the directory's id and the name of every node that the kernel holds."""
        with self._lock:
            nodes = [(node.parent, node.name) for node in self._ids if node.parent is not None]
            return [(self._ids[parent], name) for parent, name in nodes if parent in self._ids]

    def forget(self, nodeid: int, lookups: int) -> None:
        """Take back this many lookups of a node, and drop the node when none is left. The root stays."""
        with self._lock:
            known = self._by_id[nodeid]
            known.lookups -= lookups
            if known.lookups <= 0 and nodeid != wire.ROOT_ID:
                del self._by_id[nodeid]
                del self._ids[known.node]
