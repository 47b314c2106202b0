"""Copy-up: who copies a file or directory of a lower to the upper, and when.

File data is copied without the tree's lock, so a large copy-up does not block other callers; two callers that need the
same file share one copy-up, see `copy_in_progress`. How a copy is made: `copyup_file`, `copyup_directory`,
`copyup_metacopy`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from overlayfs_demo.events import Action
from overlayfs_demo.overlay.budget import Budget
from overlayfs_demo.overlay.copy_in_progress import CopyInProgress
from overlayfs_demo.overlay.copyup_directory import Directories
from overlayfs_demo.overlay.copyup_file import Copied, FileCopy
from overlayfs_demo.overlay.copyup_limits import Limits
from overlayfs_demo.overlay.copyup_metacopy import DataCopy
from overlayfs_demo.overlay.copyup_plan import Cut, Request, Settings
from overlayfs_demo.overlay.hooks import Hooks
from overlayfs_demo.overlay.layer import UpperDir
from overlayfs_demo.overlay.node import DirNode, FileNode, Node
from overlayfs_demo.overlay.pinned import Pinned
from overlayfs_demo.overlay.tree import Tree
from overlayfs_demo.overlay.types import Caller


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
        self._running: dict[Node, CopyInProgress] = {}

    def node(self, node: Node, caller: Caller, *, data: bool = True, tell: bool = True) -> Pinned | None:
        """Copy `node` up if the upper does not have it. Return the copy of a regular file if one was made just now.

        Without `data`, only metadata will be changed, so data need not be copied. `tell`: call `Hooks.changed` for a
        file that was copied; a verb whose result shows all attributes need not. Raises EROFS without an upper. For a
        regular file, call without the tree's lock.
        """
        self._tree.writable()
        if isinstance(node, DirNode):
            with self._tree.lock:
                self.directory(node, caller)
            return None
        assert isinstance(node, FileNode)
        copied = None if node.in_upper else self._file(node, caller, Request(data=data))
        if copied is not None and tell:
            self._settings.hooks.changed(node)
        if data and node.metacopy:
            self._complete(node, caller)
        return copied.copy if copied is not None else None

    def truncated(self, node: FileNode, caller: Caller, cut: Cut, *, tell: bool = True) -> int:
        """Change a regular file's size and open it; the caller owns the descriptor. `tell`: see `node`.

        If the file is a lower one, only the data that remains is copied. The copy is opened and cut before it appears
        in the upper, so a failure leaves the file as it was. Call without the tree's lock.
        """
        upper = self._tree.writable()
        fd = None
        if not node.in_upper:
            copied = self._file(node, caller, Request(cut=cut))
            if copied is not None:
                fd = copied.cut
                if tell:
                    self._settings.hooks.changed(node)
        if fd is None and node.metacopy:
            fd = self._complete(node, caller, cut)
        if fd is not None:
            upper.emit(Action.TRUNCATE, node, caller, size=cut.size)
            return fd
        fd = cut.admitted(self._tree.open(node, cut.flags))
        try:
            upper.truncate(fd, node, cut.size, caller, by_path=cut.by_path)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def linked(self, node: FileNode, caller: Caller) -> None:
        """Make the copy that all names of a hard-linked lower file share. Call without the tree's lock."""
        if self._file(node, caller, Request(data=False, with_name=False)) is not None:
            self._settings.hooks.changed(node)

    def directory(self, node: DirNode, caller: Caller) -> UpperDir:
        """Copy the directory and its ancestors up where the upper lacks them. Call with the tree's lock held."""
        return self._directories.copied(node, caller)

    def name(self, node: FileNode, parent: DirNode, name: bytes, caller: Caller) -> None:
        """Give a file in the index this name in the upper, if it lacks it. Call with the tree's lock held."""
        self._directories.name(node, parent, name, caller)

    def _file(self, node: FileNode, caller: Caller, request: Request) -> Copied | None:
        """Copy a lower file up. Return None if another caller has."""
        with self._begun(node) as progress:
            if node.in_upper:
                return None
            copy = FileCopy(node, request, caller, self._tree, self._directories, self._settings, progress)
            return copy.run().unless_left(progress)

    def _complete(self, node: FileNode, caller: Caller, cut: Cut | None = None) -> int | None:
        """Copy a metacopy's data up, unless another caller has. Return the open file if it was `cut`, else None."""
        with self._begun(node) as progress:
            if not node.metacopy:
                return None
            fd = DataCopy(node, cut, caller, self._tree, self._settings, progress).run()
            return Copied(None, fd).unless_left(progress).cut

    @contextlib.contextmanager
    def _begun(self, node: Node) -> Iterator[CopyInProgress]:
        """Keep all other callers from copying this node up. First wait for the one who does it now, if any."""
        mine = CopyInProgress()
        while True:
            with self._tree.lock:
                progress = self._running.setdefault(node, mine)
            if progress is mine:
                break
            self._settings.hooks.before_wait(progress)
            progress.wait()
        try:
            yield mine
        finally:
            with self._tree.lock:
                del self._running[node]
            mine.end()
