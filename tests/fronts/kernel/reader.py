"""How does a test read directories as the kernel does, and see what the engine is asked for it?"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable

from overlayfs_demo.fronts.kernel.cache_policy import Trust
from overlayfs_demo.fronts.kernel.node_table import NodeTable
from overlayfs_demo.fronts.kernel.readdir import Directories
from overlayfs_demo.overlay.listing import Listed, Snapshot
from overlayfs_demo.overlay.node import DirNode, Node
from overlayfs_demo.overlay.tree import Completed
from overlayfs_demo.overlay.types import Attrs
from tests.contract.engine_subject import Engine
from tests.fronts.kernel import replies
from tests.fronts.kernel.replies import Entry

DOTS = (b".", b"..")
LONG = 60.0


class Asked:
    """What was asked of the engine since, in order: whose names, and how many lookups at once.

    `meanwhile`, if set, is called once, as soon as names are asked for.
    """

    def __init__(self, view: Engine) -> None:
        self.names: list[bytes] = []
        self.lookups: list[int] = []
        self.meanwhile: Callable[[], None] | None = None
        self._names = view.overlay.names
        self._lookup_listed = view.overlay.lookup_listed
        view.overlay.names = self._note_names  # type: ignore[method-assign]
        view.overlay.lookup_listed = self._note_lookups  # type: ignore[method-assign]

    def _note_names(self, node: DirNode, at_most: int = sys.maxsize, *, quietly: bool = False) -> Snapshot:
        self.names.append(node.path())
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile:
            meanwhile()
        return self._names(node, at_most, quietly=quietly)

    def _note_lookups(self, parent: DirNode, snapshot: Snapshot, names: Iterable[Listed]) -> list[Completed]:
        wanted = list(names)
        if wanted:
            self.lookups.append(len(wanted))
        return self._lookup_listed(parent, snapshot, wanted)


class Mount:
    """One front's directories. Like the kernel, it keeps the nodes that it was told of."""

    def __init__(self, view: Engine, timeout: float = LONG) -> None:
        self.view = view
        self.nodes = NodeTable(view.overlay.root)
        self.directories = Directories(view.overlay, self.nodes, Trust(view.overlay, timeout))

    def directory(self, path: str) -> tuple[DirNode, int]:
        """A directory and its id; it and those above it are looked up if they are not known."""
        node: Node = self.view.overlay.root
        for name in filter(None, path.split("/")):
            assert isinstance(node, DirNode)
            node = self.view.overlay.lookup(node, os.fsencode(name))[0]
            if self.nodes.id_of(node) is None:
                self.nodes.remember([node])
        assert isinstance(node, DirNode)
        nodeid = self.nodes.id_of(node)
        assert nodeid is not None
        return node, nodeid

    def begin(self, path: str = "", *, plus: bool = True, size: int = 4096) -> Reader:
        """Somebody opens the directory."""
        return Reader(self, path, plus, size)

    def read(self, path: str = "", *, plus: bool = True, size: int = 4096) -> list[Entry]:
        """All entries, after which the next directory is made ready."""
        return self.begin(path, plus=plus, size=size).rest()

    def attrs(self, path: str = "") -> dict[bytes, Attrs | None]:
        """What a listing says of each name; the times of access are left out, for reading changes them."""
        return {
            entry.name: entry.attrs._replace(atime_ns=0) if entry.attrs else None
            for entry in self.read(path)
            if entry.name not in DOTS
        }


class Reader:
    """Somebody who reads a directory, portion by portion. `had_last`: one was said to be the last with names."""

    def __init__(self, mount: Mount, path: str, plus: bool, size: int) -> None:
        self._mount = mount
        self._node, self._nodeid = mount.directory(path)
        self._plus = plus
        self._size = size
        self._offset = 0
        self.had_last = False

    def portion(self) -> list[Entry]:
        """The entries of one reply; none at the end."""
        directories = self._mount.directories
        ask = directories.readdirplus if self._plus else directories.readdir
        reply, is_last = ask(self._node, self._nodeid, self._offset, self._size)
        assert len(reply) <= self._size
        assert reply or not is_last
        entries = replies.plus(reply) if self._plus else replies.plain(reply)
        if entries:
            assert self._offset < entries[0].offset  # Else this would not end.
            self._offset = entries[-1].offset
        self.had_last = self.had_last or is_last
        return entries

    def rest(self) -> list[Entry]:
        """The entries up to the end; then the front reads ahead."""
        found: list[Entry] = []
        while entries := self.portion():
            found += entries
        self._mount.directories.read_ahead(self._node)
        return found


def names_of(entries: Iterable[Entry]) -> list[bytes]:
    """Their names, without `.` and `..`."""
    return [entry.name for entry in entries if entry.name not in DOTS]


def in_view(view: Engine, path: str) -> dict[bytes, Attrs]:
    """What the engine says of each name in a directory, asked one by one, as `Mount.attrs` has it."""
    found = {}
    for name in view.names(path):
        found[name] = replies.encoded(view.stat(os.path.join(os.fsencode(path), name)))._replace(atime_ns=0)
    return found
