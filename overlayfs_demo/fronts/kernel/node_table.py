"""The table of the nodes that the kernel holds, with their ids.

The kernel counts a lookup for every entry it is told of, and takes counts back with FORGET. The table
holds each node until its count is zero. The engine has only weak references, so the node is then freed.
"""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Callable, Iterable, Mapping

from overlayfs_demo.fronts.kernel import wire
from overlayfs_demo.fronts.kernel.directory_offsets import DirectoryStream
from overlayfs_demo.fronts.kernel.ledger import Ledger, NotedNode, Place
from overlayfs_demo.linux.failure import failure
from overlayfs_demo.overlay.layer import Key, stale
from overlayfs_demo.overlay.node import DirNode, Node
from overlayfs_demo.overlay.types import Attrs

# No tree is deeper in practice. A damaged ledger must not keep anyone busy for ever.
_DEEPEST = 100_000
# So many nodes take no memory worth giving back.
_FEW = 10_000


def _nothing(_: DirNode, name: bytes) -> tuple[Node, Attrs]:
    raise failure(errno.ENOENT, name)


class _Nodes(dict[int, Node]):
    """Nodes by id. One that is missing is looked for once."""

    __slots__ = ("_find",)

    def __init__(self, nodes: Mapping[int, Node], find: Callable[[int], Node]) -> None:
        super().__init__(nodes)
        self._find = find

    def copy(self) -> _Nodes:
        return _Nodes(self, self._find)

    def __missing__(self, nodeid: int) -> Node:
        return self._find(nodeid)


class NodeTable:
    """Nodes by id and ids by node. An id is not used again soon, so a stale one cannot mean another file.

    A node itself has its id, because there may be millions. What only few nodes have is in dictionaries by id: the
    stream of a directory that was read, the ids of files whose data was put into the kernel's cache, and the stamp of a
    file, see `is_same`. The ledger has what another process needs to know to take over. Such a process looks a node up
    by its name when it is first asked about it.
    """

    __slots__ = (
        "_find",
        "_ledger",
        "_lock",
        "_most",
        "_nodes",
        "_prune",
        "_stamps",
        "_stored",
        "_streams",
        "_took_over",
        "_unmet",
    )

    def __init__(
        self,
        root: DirNode,
        prune: Callable[[DirNode, bytes, Key], None] = lambda *_: None,
        ledger: Ledger | None = None,
        find: Callable[[DirNode, bytes], tuple[Node, Attrs]] = _nothing,
    ) -> None:
        """Begin with the root and what is in the ledger, by default nothing.

        `prune` is called with the parent, name and key of each node that was let go, and `find` looks a name up.
        """
        self._prune = prune
        self._find = find
        self._lock = threading.Lock()
        self._ledger = Ledger() if ledger is None else ledger
        root.front_id = wire.ROOT_ID
        self._nodes = _Nodes({wire.ROOT_ID: root}, self._find_again)
        self._most = _FEW
        self._streams: dict[int, DirectoryStream] = {}
        self._stored: set[int] = set()
        self._stamps: dict[int, object] = {}
        self._took_over = len(self._ledger) > 0
        # Nodes of the process before that this one has not met yet: their ids by inode number.
        self._unmet = {noted.ino: nodeid for nodeid, noted in self._ledger.nodes() if noted.place is not None}

    def __len__(self) -> int:
        return 1 + len(self._ledger)

    def remember(self, nodes: Iterable[Node]) -> list[int]:
        """Return the id of each node, and count one more lookup for each. Raises OSError."""
        ids = []
        if self._unmet:
            nodes = list(nodes)
            self.meet_again(nodes)
        with self._lock:
            for node in nodes:
                nodeid = node.front_id
                if nodeid == wire.ROOT_ID:
                    pass
                elif nodeid:
                    self._ledger.count(nodeid, 1)
                else:
                    nodeid = self._enter(node)
                ids.append(nodeid)
        return ids

    def _enter(self, node: Node) -> int:
        """Enter a node, and return its id."""
        parent = node.parent.front_id if node.parent is not None else 0
        nodeid = self._ledger.enter(parent, node.name, node.ino)
        if node.gone:
            self._ledger.lose_name(nodeid)
        self._adopt(nodeid, node)
        return nodeid

    @property
    def all_met(self) -> bool:
        """Whether this process has met all nodes of the process before."""
        return not self._unmet

    def meet_again(self, nodes: Iterable[Node]) -> None:
        """Give nodes the ids by which the kernel knows them from the process before.

        An inode number alone does not tell that a node is the same: its file may have been removed since, and the
        number used again. So a node is the same only if it is found where that process has last known it.
        """
        for node in nodes:
            nodeid = 0 if node.front_id else self._unmet.get(node.ino, 0)
            if nodeid:
                with contextlib.suppress(OSError, KeyError):
                    self._find_again(nodeid)

    def meet(self, node: Node) -> None:
        """Do the same for a node that the process before has just moved, and note where it is."""
        with self._lock:
            nodeid = 0 if node.front_id else self._unmet.pop(node.ino, 0)
            if nodeid and node.parent is not None:
                self._ledger.move(nodeid, node.parent.front_id, node.name)
                self._adopt(nodeid, node)

    def _adopt(self, nodeid: int, node: Node) -> None:
        node.front_id = nodeid
        self._nodes[nodeid] = node
        if node.parent is not None:
            node.parent.children.hold(node)

    def _find_again(self, nodeid: int) -> Node:
        """Find the node that the process before knew by this id, where it was last known.

        Raises KeyError for an id that the kernel does not hold, and OSError (ESTALE) if another file is there now.
        """
        path: list[tuple[int, NotedNode]] = []
        node: Node | None
        while (node := self._nodes.get(nodeid)) is None:
            with self._lock:
                try:
                    noted = self._ledger.node(nodeid)
                except KeyError:
                    if not path and not self._took_over:
                        raise
                    # The kernel has let go of the directory. Or else it resolves the path again.
                    raise stale(b"") from None
            if noted.place is None or len(path) > _DEEPEST:
                raise stale(b"")
            path.append((nodeid, noted))
            nodeid = noted.place.parent
        for nodeid, noted in reversed(path):
            assert noted.place is not None
            node = self._found(node, noted.place.name, noted.ino)
            with self._lock:
                self._unmet.pop(noted.ino, None)
                if not node.front_id:
                    self._adopt(nodeid, node)
        return node

    def _found(self, parent: Node, name: bytes, ino: int) -> Node:
        try:
            node, _ = self._find(_directory(parent), name)
        except (FileNotFoundError, NotADirectoryError):
            raise stale(name) from None
        if node.ino != ino:
            raise stale(name)
        return node

    def adopt(self, nodeid: int, node: Node) -> None:
        """Give a node without a name the id by which the kernel knows it from the process before."""
        with self._lock:
            self._unmet.pop(node.ino, None)
            self._ledger.lose_name(nodeid)
            self._adopt(nodeid, node)

    def moved(self, node: Node) -> None:
        """Note that a node has another name now."""
        with self._lock:
            if node.front_id and node.parent is not None:
                self._ledger.move(node.front_id, node.parent.front_id, node.name)

    def renumbered(self, node: Node) -> None:
        """Note that a node has another inode number now."""
        with self._lock:
            if node.front_id:
                self._ledger.renumber(node.front_id, node.ino)

    def lost_name(self, node: Node) -> None:
        """Note that a node has no name any more."""
        with self._lock:
            if node.front_id:
                self._ledger.lose_name(node.front_id)

    def node(self, nodeid: int) -> Node:
        """Return the node of an id that the kernel still holds.

        Raises KeyError for any other id, and OSError (ESTALE) if the process before knew the node, but it is not where
        it was.
        """
        return self._nodes[nodeid]

    def directory(self, nodeid: int) -> DirNode:
        """Return the directory of an id. Raises what `node` raises, and NotADirectoryError if it is not one."""
        return _directory(self._nodes[nodeid])

    def id_of(self, node: Node) -> int | None:
        """Return the id of a node, or None if the kernel does not hold it."""
        return node.front_id or None

    def stream(self, nodeid: int) -> DirectoryStream:
        """Return the directory stream of a node, which lives as long as the table holds the node.

        Raises what `node` raises.
        """
        self.node(nodeid)
        with self._lock:
            stream = self._streams.get(nodeid)
            if stream is None:
                if nodeid not in self._nodes:
                    raise KeyError(nodeid)  # It has just been forgotten.
                stream = self._streams[nodeid] = DirectoryStream(self._ledger.stream(nodeid))
            return stream

    def keep_stream(self, nodeid: int) -> None:
        """Let another process go on in the middle of a directory that is being read. Raises what `stream` raises."""
        packed = self.stream(nodeid).packed()
        with self._lock:
            if nodeid in self._nodes:
                self._ledger.keep_stream(nodeid, packed)

    def drop_stream(self, nodeid: int) -> None:
        """Note that a directory was read to its end."""
        with self._lock:
            self._ledger.drop_stream(nodeid)

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
            return [wire.ROOT_ID, *(nodeid for nodeid, _ in self._ledger.nodes())]

    def names(self) -> list[Place]:
        """Return the directory's id and the name of every node that the kernel holds."""
        with self._lock:
            return [noted.place for _, noted in self._ledger.nodes() if noted.place is not None and noted.place.parent]

    def forget(self, nodeid: int, lookups: int) -> None:
        """Take back this many lookups of a node, and drop the node when none is left. The root stays.

        So does a directory that is the place of nodes that the kernel holds by other names: hard links.
        """
        with self._lock:
            if nodeid == wire.ROOT_ID or self._ledger.count(nodeid, -lookups) > 0:
                return
            node = self._nodes.get(nodeid)
            if node is None:
                self._drop_unmet(nodeid)
                return
            if not self._dropped(node):
                return
        # `del` normally drops the last reference.
        while (parent := node.parent) is not None:
            name, key = node.name, node.key
            del node
            self._prune(parent, name, key)
            with self._lock:
                if not self._dropped(parent):
                    return
            node = parent

    def _dropped(self, node: Node) -> bool:
        """Drop a node if the kernel does not hold it, or anything in it, and return whether it is not in the table now.

        Call with the lock held.
        """
        nodeid = node.front_id
        if not nodeid:
            return True
        is_needed = nodeid == wire.ROOT_ID or self._ledger.count(nodeid, 0) > 0
        if is_needed or (isinstance(node, DirNode) and node.children.holds_any):
            return False
        self._most = max(self._most, len(self._nodes))
        del self._nodes[nodeid]
        if len(self._nodes) < self._most // 8:
            # A dictionary never gives memory back by itself.
            self._nodes, self._most = self._nodes.copy(), _FEW
        self._ledger.remove(nodeid)
        node.front_id = 0
        if node.parent is not None:
            node.parent.children.release(node)
        self._streams.pop(nodeid, None)
        self._stamps.pop(nodeid, None)
        self._stored.discard(nodeid)
        return True

    def _drop_unmet(self, nodeid: int) -> None:
        """Drop a node of the process before that this one never met. Call with the lock held."""
        with contextlib.suppress(KeyError):  # A process that was killed may have dropped it, and not have said so.
            ino = self._ledger.node(nodeid).ino
            if self._unmet.get(ino) == nodeid:
                del self._unmet[ino]
            self._ledger.remove(nodeid)


def _directory(node: Node) -> DirNode:
    if not isinstance(node, DirNode):
        raise failure(errno.ENOTDIR)
    return node
