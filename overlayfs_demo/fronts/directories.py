"""How are directories listed, and which one will be asked for next?

A reply holds as many names as fit. When the last of a directory's names has been handed out, whoever
walks a tree goes on to its first subdirectory, or to the next one beside it: that one is made ready while
the reader is still busy with the names it got, as read-ahead does with the data of a file.
"""

from __future__ import annotations

import stat
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from overlayfs_demo.fronts import wire
from overlayfs_demo.fronts.directory_stream import DOT, DOT_DOT, Numbered, Numbering
from overlayfs_demo.fronts.node_table import NodeTable
from overlayfs_demo.overlay.engine import Overlay
from overlayfs_demo.overlay.listing import TooManyNamesError
from overlayfs_demo.overlay.node import DirNode, Node
from overlayfs_demo.overlay.types import Attrs

_DOTS = ((DOT, b"."), (DOT_DOT, b".."))

# A larger directory is not read ahead, nor are more names of one looked up than a reply holds.
_AHEAD_NAMES = 1000
_AHEAD_LOOKUPS = 150
# What was read ahead is good for as many seconds, if the kernel may trust names for as long.
_AHEAD_SECONDS = 1.0

_Answers = Sequence[tuple[Node, Attrs] | None]


class _Ahead(NamedTuple):
    """A directory made ready: its numbering, what a lookup said of its first names, and when (monotonic)."""

    directory: DirNode
    numbering: Numbering
    answers: _Answers
    when: float


class Directories:
    """Lists the directories of one mount. Safe to use from several threads."""

    def __init__(self, overlay: Overlay, nodes: NodeTable, timeout: float) -> None:
        """`timeout`: for how many seconds the kernel may trust an answer."""
        self._overlay = overlay
        self._nodes = nodes
        self._valid = wire.Valid(timeout)
        self._reads_ahead = timeout >= _AHEAD_SECONDS
        self._next: DirNode | None = None
        self._ahead: _Ahead | None = None
        self._preparing = threading.Lock()

    def readdir(self, directory: DirNode, nodeid: int, offset: int, size: int) -> bytes:
        """As many entries as fit into `size` bytes behind the name numbered `offset`; b"" at the end."""
        numbering, _ = self._numbering(directory, nodeid, offset)
        numbers, names = _fitting(numbering, offset, size, wire.dirent_size)
        chunks = [
            wire.dirent(_dot(directory, number).ino, number, name, stat.S_IFDIR) for number, name in numbers
        ]
        for number, listed in names:
            entry = self._overlay.dirent(directory, listed)
            if entry:
                chunks.append(wire.dirent(entry.ino, number, entry.name, entry.kind))
        return b"".join(chunks)

    def readdirplus(self, directory: DirNode, nodeid: int, offset: int, size: int) -> bytes:
        """The same, each with what LOOKUP would answer."""
        numbering, answers = self._numbering(directory, nodeid, offset)
        numbers, names = _fitting(numbering, offset, size, wire.direntplus_size)
        chunks = [
            wire.bare_direntplus(_dot(directory, number).ino, number, name, stat.S_IFDIR) for number, name in numbers
        ]
        rest = [entry.listed for entry in names[len(answers) :]]
        found = [*answers[: len(names)], *self._overlay.lookup_listed(directory, numbering.snapshot, rest)]
        ids = iter(self._nodes.remember([answer[0] for answer in found if answer]))
        valid = self._valid
        chunks += [
            wire.direntplus(next(ids), answer[1], valid, number, listed.name)
            for (number, listed), answer in zip(names, found, strict=True) if answer
        ]
        return b"".join(chunks)

    def _numbering(self, directory: DirNode, nodeid: int, offset: int) -> tuple[Numbering, _Answers]:
        """The names, read anew by whoever begins, and what is known already of the first of them."""
        stream = self._nodes.stream(nodeid)
        if offset == 0 or stream.current is None:
            if self._next is directory and (ahead := self._take_ahead(directory)):
                return ahead.numbering, ahead.answers
            return stream.refresh(self._overlay.names(directory)), ()
        return stream.current, ()

    # --- read-ahead --------------------------------------------------------------------------------

    def _take_ahead(self, directory: DirNode) -> _Ahead | None:
        """What was made ready for this directory, if it still holds."""
        with self._preparing:
            ahead, self._ahead, self._next = self._ahead, None, None
        if ahead is None or ahead.directory is not directory or time.monotonic() > ahead.when + _AHEAD_SECONDS:
            return None
        return ahead if ahead.numbering.snapshot.is_current(directory.sources) else None

    def read_ahead(self, finished: DirNode) -> None:
        """Make ready the directory that a reader who has `finished` this one will ask for next."""
        if not self._reads_ahead or not self._preparing.acquire(blocking=False):
            return
        try:
            directory = self._following(finished)
            if directory is None or (nodeid := self._nodes.id_of(directory)) is None:
                return
            self._next = directory
            snapshot = self._overlay.names(directory, at_most=_AHEAD_NAMES)
            numbering = self._nodes.stream(nodeid).refresh(snapshot)
            names = [entry.listed for entry in numbering.entries[:_AHEAD_LOOKUPS]]
            # A file of the upper may change before it is asked for; the lowers' never do.
            answers = () if directory.in_upper else self._overlay.lookup_listed(directory, snapshot, names)
            self._ahead = _Ahead(directory, numbering, answers, time.monotonic())
        except (OSError, KeyError, TooManyNamesError):
            # Removed, or forgotten by the kernel, meanwhile, or too large: whoever asks for it will be told.
            self._ahead = None
        finally:
            self._preparing.release()

    def _following(self, directory: DirNode | None) -> DirNode | None:
        """The next subdirectory, of this directory or of one above it, that was not made ready yet."""
        while directory is not None:
            nodeid = self._nodes.id_of(directory)
            if nodeid is None:
                return None
            name = self._nodes.stream(nodeid).next_directory()
            if name is not None:
                node = directory.children.get(name)
                return node if isinstance(node, DirNode) else None
            directory = directory.parent
        return None


def _dot(directory: DirNode, number: int) -> DirNode:
    """The directory that `.` or `..` stands for; of the root, both are itself."""
    return directory if number == DOT else directory.parent or directory


def _fitting(
    numbering: Numbering, offset: int, size: int, size_of: Callable[[bytes], int]
) -> tuple[list[tuple[int, bytes]], list[Numbered]]:
    """Which of `.` and `..`, and which names, fit behind the offset.

    It is settled before anything is packed, for an entry of READDIRPLUS counts a lookup, which must then
    reach the kernel.
    """
    dots = [(number, name) for number, name in _DOTS if offset < number]
    size -= sum(size_of(name) for _, name in dots)
    names = []
    for entry in numbering.after(offset):
        size -= size_of(entry.listed.name)
        if size < 0:
            break
        names.append(entry)
    return dots, names
