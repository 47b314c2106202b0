"""Copy-up: who copies a file or directory of a lower to the upper, and when.

File data is copied without the tree's lock, so a large copy-up does not block other callers; two callers that need the
same file share one copy-up. How a copy is made: `copyup_file`, `copyup_directory`, `copyup_metacopy`.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator

from overlayfs_demo.events import Action
from overlayfs_demo.overlay.budget import Budget
from overlayfs_demo.overlay.copyup_directory import Directories
from overlayfs_demo.overlay.copyup_file import FileCopy
from overlayfs_demo.overlay.copyup_limits import Limits
from overlayfs_demo.overlay.copyup_metacopy import DataCopy
from overlayfs_demo.overlay.copyup_plan import Cut, Request, Settings
from overlayfs_demo.overlay.hooks import Hooks
from overlayfs_demo.overlay.layer import UpperDir
from overlayfs_demo.overlay.node import DirNode, FileNode, Node
from overlayfs_demo.overlay.tree import Tree
from overlayfs_demo.overlay.types import Caller
from overlayfs_demo.overlay.upper import Upper


class CopyUp:
    """Copies nodes up, each at most once.

    `metacopy`: a change of metadata alone copies no data. `rehearsal`: see `Stack.rehearsal`.
    """

    __slots__ = ("_directories", "_running", "_settings", "_tree")

    def __init__(
        self, tree: Tree, metacopy: bool, hooks: Hooks, limits: Limits, budget: Budget, rehearsal: bool
    ) -> None:
        self._tree = tree
        self._settings = Settings(metacopy, rehearsal, limits, hooks, budget)
        self._directories = Directories(tree, hooks)
        self._running: dict[Node, threading.Event] = {}

    def node(self, node: Node, caller: Caller, *, data: bool = True) -> Upper:
        """Copy `node` up if the upper does not have it. Return the upper, for the change that follows.

        Without `data`, only metadata will be changed, so data need not be copied. Raises EROFS without an upper.
        For a regular file, call without the tree's lock.
        """
        upper = self._tree.writable()
        if isinstance(node, DirNode):
            with self._tree.lock:
                self.directory(node, caller)
        else:
            assert isinstance(node, FileNode)
            if not node.in_upper:
                self._file(node, caller, Request(data=data))
            if data and node.metacopy:
                self._complete(node, caller)
        return upper

    def truncated(self, node: FileNode, caller: Caller, cut: Cut) -> int:
        """Change a regular file's size and open it; the caller owns the descriptor.

        If the file is a lower one, only the data that remains is copied. The copy is opened and cut before it appears
        in the upper, so a failure leaves the file as it was. Call without the tree's lock.
        """
        upper = self._tree.writable()
        fd = None
        if not node.in_upper:
            fd = self._file(node, caller, Request(cut=cut))
        if fd is None and node.metacopy:
            fd = self._complete(node, caller, cut)
        if fd is not None:
            upper.emit(Action.TRUNCATE, node.path(), caller, size=cut.size)
            return fd
        fd = cut.admitted(self._tree.open(node, cut.flags))
        try:
            upper.truncate(fd, node.path() if upper.events.listening else b"", cut.size, caller, by_path=cut.by_path)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def linked(self, node: FileNode, caller: Caller) -> None:
        """Make the copy that all names of a hard-linked lower file share. Call without the tree's lock."""
        self._file(node, caller, Request(data=False, with_name=False))

    def directory(self, node: DirNode, caller: Caller) -> UpperDir:
        """Copy the directory and its ancestors up where the upper lacks them. Call with the tree's lock held."""
        return self._directories.copied(node, caller)

    def name(self, node: FileNode, parent: DirNode, name: bytes, caller: Caller) -> None:
        """Give a file in the index this name in the upper, if it lacks it. Call with the tree's lock held."""
        self._directories.name(node, parent, name, caller)

    def _file(self, node: FileNode, caller: Caller, request: Request) -> int | None:
        """Copy a lower file up, unless another caller has. Return the open copy if it was cut, else None."""
        with self._alone(node):
            if node.in_upper:
                return None
            return FileCopy(node, request, caller, self._tree, self._directories, self._settings).run()

    def _complete(self, node: FileNode, caller: Caller, cut: Cut | None = None) -> int | None:
        """Copy a metacopy's data up, unless another caller has. Return the open file if it was `cut`, else None."""
        with self._alone(node):
            if not node.metacopy:
                return None
            return DataCopy(node, cut, caller, self._tree, self._settings).run()

    @contextlib.contextmanager
    def _alone(self, node: Node) -> Iterator[None]:
        """Keep all other callers from copying this node up in the meantime."""
        while True:
            with self._tree.lock:
                running = self._running.get(node)
                if running is None:
                    self._running[node] = done = threading.Event()
                    break
            self._settings.hooks.before_wait()
            running.wait()
        try:
            yield
        finally:
            with self._tree.lock:
                del self._running[node]
            done.set()
