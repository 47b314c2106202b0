"""Which number does the kernel know a node by, and how long must it be kept?

The kernel counts a lookup for every entry it is told of and takes counts back with FORGET. The table
holds each node until its count is zero; then the engine's own weak references let it go.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterable
from itertools import count

from overlayfs_demo.fronts.kernel import wire
from overlayfs_demo.fronts.kernel.directory_offsets import DirectoryStream
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
    """Nodes by id and ids by node. Ids are never used again, so a stale one cannot mean another file."""

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
        """The id of each node, with one more lookup counted."""
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
        """The node of an id that the kernel still holds. KeyError otherwise."""
        return self._by_id[nodeid].node

    def directory(self, nodeid: int) -> DirNode:
        """The same for an id that must be a directory's. ENOTDIR."""
        node = self._by_id[nodeid].node
        if not isinstance(node, DirNode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return node

    def id_of(self, node: Node) -> int | None:
        """The id of a node, if the kernel holds it."""
        return self._ids.get(node)

    def stream(self, nodeid: int) -> DirectoryStream:
        """The directory stream of a node; it lives as long as the node is held."""
        with self._lock:
            known = self._by_id[nodeid]
            if known.stream is None:
                known.stream = DirectoryStream()
            return known.stream

    def first_store(self, nodeid: int) -> bool:
        """True the first time it is asked of a node: is its data still to be put into the kernel's cache?"""
        known = self._by_id[nodeid]
        first, known.stored = not known.stored, True
        return first

    def forget_stored(self, nodeid: int) -> None:
        """The data in the kernel's cache is no longer right."""
        known = self._by_id.get(nodeid)
        if known is not None:
            known.stored = False

    def is_same(self, nodeid: int, stamp: object) -> bool:
        """Was the same said of the node the last time it was asked? None is nothing."""
        known = self._by_id[nodeid]
        before, known.stamp = known.stamp, stamp
        return before == stamp

    def ids(self) -> list[int]:
        """All ids that the kernel holds."""
        with self._lock:
            return list(self._by_id)

    def names(self) -> list[tuple[int, bytes]]:
        """The id of its directory and the name of every node that the kernel holds."""
        with self._lock:
            nodes = [(node.parent, node.name) for node in self._ids if node.parent is not None]
            return [(self._ids[parent], name) for parent, name in nodes if parent in self._ids]

    def forget(self, nodeid: int, lookups: int) -> None:
        """Take `lookups` back."""
        with self._lock:
            known = self._by_id[nodeid]
            known.lookups -= lookups
            if known.lookups <= 0 and nodeid != wire.ROOT_ID:
                del self._by_id[nodeid]
                del self._ids[known.node]
