"""The table of the nodes that the kernel holds, with their ids.

The kernel counts a lookup for every entry it is told of, and takes counts back with FORGET. The table
holds each node until its count is zero. The engine has only weak references, so the node is then freed.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterable

from overlayfs_demo.fronts.kernel import wire
from overlayfs_demo.fronts.kernel.directory_offsets import DirectoryStream
from overlayfs_demo.linux.failure import failure
from overlayfs_demo.overlay.layer import Key
from overlayfs_demo.overlay.node import DirNode, Node


class NodeTable:
    """Nodes by id and ids by node. An id is never used again, so a stale one cannot mean another file.

    A node itself has its id and the number of its lookups, because there may be millions. What only few nodes have is
    in dictionaries by id: the stream of a directory that was read, the ids of files whose data was put into the
    kernel's cache, and the stamp of a file, see `is_same`.
    """

    __slots__ = ("_lock", "_next", "_nodes", "_prune", "_stamps", "_stored", "_streams")

    def __init__(self, root: DirNode, prune: Callable[[DirNode, bytes, Key], None] = lambda *_: None) -> None:
        """Begin with the root. `prune` is called with the parent, name and key of each node that was let go."""
        self._prune = prune
        self._lock = threading.Lock()
        self._next = wire.ROOT_ID + 1
        root.front_id, root.front_lookups = wire.ROOT_ID, 1
        self._nodes: dict[int, Node] = {wire.ROOT_ID: root}
        self._streams: dict[int, DirectoryStream] = {}
        self._stored: set[int] = set()
        self._stamps: dict[int, object] = {}

    def __len__(self) -> int:
        return len(self._nodes)

    def remember(self, nodes: Iterable[Node]) -> list[int]:
        """Return the id of each node, and count one more lookup for each."""
        ids = []
        with self._lock:
            for node in nodes:
                if not node.front_id:
                    node.front_id = self._next
                    self._next += 1
                    self._nodes[node.front_id] = node
                    if node.parent is not None:
                        node.parent.children.hold(node)
                node.front_lookups += 1
                ids.append(node.front_id)
        return ids

    def node(self, nodeid: int) -> Node:
        """Return the node of an id that the kernel still holds. Raises KeyError for any other id."""
        return self._nodes[nodeid]

    def directory(self, nodeid: int) -> DirNode:
        """Return the directory of an id. Raises KeyError like `node`, and NotADirectoryError if it is not one."""
        node = self._nodes[nodeid]
        if not isinstance(node, DirNode):
            raise failure(errno.ENOTDIR)
        return node

    def id_of(self, node: Node) -> int | None:
        """Return the id of a node, or None if the kernel does not hold it."""
        return node.front_id or None

    def stream(self, nodeid: int) -> DirectoryStream:
        """Return the directory stream of a node, which lives as long as the table holds the node.

        Raises KeyError like `node`.
        """
        with self._lock:
            stream = self._streams.get(nodeid)
            if stream is None:
                self.node(nodeid)
                stream = self._streams[nodeid] = DirectoryStream()
            return stream

    def first_store(self, nodeid: int) -> bool:
        """Return whether a node's data still has to be put into the kernel's cache: True once, then False."""
        with self._lock:
            if nodeid in self._stored or nodeid not in self._nodes:
                return False
            self._stored.add(nodeid)
            return True

    def forget_stored(self, nodeid: int) -> None:
        """Note that the node's data in the kernel's cache is outdated, so that `first_store` is True again."""
        with self._lock:
            self._stored.discard(nodeid)

    def is_same(self, nodeid: int, stamp: object) -> bool:
        """Return whether the stamp equals that of the last call for this node, and remember it.

        Before the first call it is None.
        """
        with self._lock:
            before = self._stamps.get(nodeid)
            if nodeid in self._nodes:
                self._stamps[nodeid] = stamp
            return before == stamp

    def ids(self) -> list[int]:
        """Return all ids that the kernel holds."""
        with self._lock:
            return list(self._nodes)

    def names(self) -> list[tuple[int, bytes]]:
        """Return the directory's id and the name of every node that the kernel holds."""
        with self._lock:
            held = list(self._nodes.values())
        return [(node.parent.front_id, node.name) for node in held if node.parent is not None and node.parent.front_id]

    def forget(self, nodeid: int, lookups: int) -> None:
        """Take back this many lookups of a node, and drop the node when none is left. The root stays."""
        with self._lock:
            node = self._nodes[nodeid]
            node.front_lookups -= lookups
            if node.front_lookups > 0 or nodeid == wire.ROOT_ID:
                return
            del self._nodes[nodeid]
            node.front_id = node.front_lookups = 0
            self._streams.pop(nodeid, None)
            self._stamps.pop(nodeid, None)
            self._stored.discard(nodeid)
        # A directory without an id was held by what was in it. `del` normally drops the last reference.
        while not node.front_id and (parent := node.parent) is not None:
            name, key = node.name, node.key
            parent.children.release(node)
            del node
            self._prune(parent, name, key)
            node = parent
