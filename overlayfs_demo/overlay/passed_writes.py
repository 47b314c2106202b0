"""Files of the upper that are written past the engine, by callers who have the real file.

The engine does not see such writes. It still reports them, once for each handle that was used, and still tells them
from changes behind the view: by the process that made them, which is the one that opened the file. If it is another
one, such as a child, the file only costs as much as if it had been changed behind the view.
"""

from __future__ import annotations

import os

from overlayfs_demo.named_tuple import NamedTuple
from overlayfs_demo.overlay.handle import Handle, Passed
from overlayfs_demo.overlay.layer import Key, key_of
from overlayfs_demo.overlay.node import FileNode
from overlayfs_demo.overlay.types import Caller

# If nobody takes notice of changes, no more than this many files are remembered.
_MOST = 10_000


class _Left(NamedTuple):
    """The state of a file when it was released, and the processes that wrote it."""

    state: tuple[int, ...]
    pids: frozenset[int]


class PassedWrites:
    """The files of one tree that are, or just were, written past the engine. Call all methods with the tree's lock."""

    __slots__ = ("_before", "_left")

    def __init__(self) -> None:
        self._left: dict[Key, _Left] = {}
        self._before: dict[Key, _Left] = {}

    def begin(self, node: FileNode, handle: Handle, caller: Caller, *, maps: bool) -> None:
        """Note that `caller` may write past the engine through this handle of a node from now on.

        `maps`: also through a mapping. The kernel does not say when that ends: it keeps the real file, not the handle,
        so the file may be written for as long as the node lives.
        """
        handle.passed = Passed(caller, _state(os.fstat(handle.opened.fd)))
        node.mapped_past |= maps

    def end(self, handle: Handle) -> Caller | None:
        """Note that nobody has the handle any more. Return who wrote through it; None if nobody did."""
        passed = handle.passed
        if passed is None:
            return None
        status = os.fstat(handle.opened.fd)
        left = _state(status)
        if left == passed.before:
            return None
        if len(self._left) < _MOST:
            key = key_of(status)
            earlier = self._left.get(key)
            pids = earlier.pids if earlier is not None else frozenset[int]()
            self._left[key] = _Left(left, pids | {passed.caller.pid})
        return passed.caller

    def explain(self, node: FileNode, pid: int) -> bool:
        """Whether a change of the node's data by this process, noticed since the last `next_round`, is explained by a
        write past the engine. Raises OSError."""
        if any(handle.passed is not None and handle.passed.caller.pid == pid for handle in node.handles):
            return True
        left = self._left.get(node.key) or self._before.get(node.key)
        return left is not None and pid in left.pids and left.state == _state(node.stat())

    def next_round(self) -> None:
        """Begin another round of noticing changes. Those of files released before the last one are all known."""
        self._before, self._left = self._left, {}


def _state(status: os.stat_result) -> tuple[int, ...]:
    """Return a value that differs once somebody has changed the file's data."""
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns
