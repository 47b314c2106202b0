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
from functools import partial
from typing import NamedTuple

from overlayfs_demo.fronts.kernel import wire
from overlayfs_demo.fronts.kernel.cache_policy import Trust
from overlayfs_demo.fronts.kernel.directory_offsets import DOT, DOT_DOT, Numbered, Numbering
from overlayfs_demo.fronts.kernel.node_table import NodeTable
from overlayfs_demo.overlay.engine import Overlay
from overlayfs_demo.overlay.listing import TooManyNamesError
from overlayfs_demo.overlay.node import DirNode
from overlayfs_demo.overlay.tree import Completed
from overlayfs_demo.overlay.types import Dirent

# A larger directory is not read ahead, nor are more names of one looked up than a reply holds.
_AHEAD_NAMES = 1000
_AHEAD_LOOKUPS = 150
# What was read ahead is good for as many seconds, if the kernel may trust names for as long.
_AHEAD_SECONDS = 1.0

_Answers = Sequence[Completed]


class _Ahead(NamedTuple):
    """A directory made ready: its numbering, what a lookup said of its first names, and when (monotonic).

    `age` is that of all that was made ready before something changed behind the view.
    """

    directory: DirNode
    numbering: Numbering
    answers: _Answers
    when: float
    age: int


class Portion(NamedTuple):
    """One reply's part of a listing; `is_last` says that it holds the directory's last name."""

    payload: bytes
    is_last: bool


class Directories:
    """Lists the directories of one mount. Safe to use from several threads."""

    def __init__(self, overlay: Overlay, nodes: NodeTable, trust: Trust) -> None:
        """`trust`: for how long the kernel may trust an answer."""
        self._overlay = overlay
        self._nodes = nodes
        self._trust = trust
        self._reads_ahead = trust.shortest >= _AHEAD_SECONDS
        self._age = 0
        self._next: DirNode | None = None
        self._ahead: _Ahead | None = None
        self._preparing = threading.Lock()

    def readdir(self, directory: DirNode, nodeid: int, offset: int, size: int) -> Portion:
        """As many entries as fit into `size` bytes behind the name numbered `offset`; none at the end."""
        self._trust.inside(directory)
        numbering, _ = self._numbering(directory, nodeid, offset)

        def pack(names: Sequence[Numbered]) -> list[bytes]:
            entries = ((number, self._overlay.dirent(directory, listed)) for number, listed in names)
            return [wire.dirent(entry.ino, number, entry.name, entry.kind) for number, entry in entries if entry]

        dots = [wire.dirent(ino, number, name, stat.S_IFDIR) for ino, number, name in _dots(directory, offset)]
        return _filled(numbering, offset, size, dots, wire.dirent_size, pack)

    def readdirplus(self, directory: DirNode, nodeid: int, offset: int, size: int) -> Portion:
        """The same, each with what LOOKUP would answer."""
        inside, trust = self._trust.inside(directory), self._trust
        numbering, answers = self._numbering(directory, nodeid, offset)
        known = list(answers)

        def pack(names: Sequence[Numbered]) -> list[bytes]:
            found = known[: len(names)]
            del known[: len(names)]
            rest = [entry.listed for entry in names[len(found) :]]
            found += self._overlay.lookup_listed(directory, numbering.snapshot, rest)
            shown = [answer[0] for answer in found if answer and not isinstance(answer, Dirent)]
            ids = iter(self._nodes.remember(shown))
            return [
                wire.bare_direntplus(answer.ino, number, answer.name, answer.kind)
                if isinstance(answer, Dirent)
                else wire.direntplus(next(ids), answer[1], trust.entry(inside, answer[0]), number, listed.name)
                for (number, listed), answer in zip(names, found, strict=True)
                if answer
            ]

        dots = [wire.bare_direntplus(ino, number, name, stat.S_IFDIR) for ino, number, name in _dots(directory, offset)]
        return _filled(numbering, offset, size, dots, wire.direntplus_size, pack)

    def _numbering(self, directory: DirNode, nodeid: int, offset: int) -> tuple[Numbering, _Answers]:
        """The names, read anew by whoever begins, and what is known already of the first of them."""
        stream = self._nodes.stream(nodeid)
        if offset and stream.current is not None:
            return stream.current, ()
        if offset == 0 and self._next is directory:
            ahead = self._take_ahead(directory)
            # The kernel may have forgotten the directory meanwhile, and its numbers with it.
            if ahead is not None and ahead.numbering is stream.current:
                self._overlay.note_reading(directory)
                return ahead.numbering, ahead.answers
        return stream.refresh(partial(self._overlay.names, directory)), ()

    # --- read-ahead --------------------------------------------------------------------------------

    def _take_ahead(self, directory: DirNode) -> _Ahead | None:
        """What was made ready for this directory, if it still holds."""
        with self._preparing:
            ahead, self._ahead, self._next = self._ahead, None, None
        if ahead is None or ahead.directory is not directory or ahead.age != self._age:
            return None
        if time.monotonic() > ahead.when + _AHEAD_SECONDS:
            return None
        return ahead if ahead.numbering.snapshot.is_current(directory.sources) else None

    def forget_ahead(self) -> None:
        """Something was changed behind the view: what was made ready, or is just being, may be old."""
        self._age += 1

    def read_ahead(self, finished: DirNode) -> None:
        """Make ready the directory that a reader who has `finished` this one will ask for next."""
        if not self._reads_ahead or self._overlay.is_past(finished) or not self._preparing.acquire(blocking=False):
            return
        try:
            directory = self._following(finished)
            if directory is None or (nodeid := self._nodes.id_of(directory)) is None:
                return
            self._next = directory
            age = self._age
            self._trust.inside(directory)
            take = partial(self._overlay.names, directory, at_most=_AHEAD_NAMES, quietly=True)
            numbering = self._nodes.stream(nodeid).refresh(take)
            names = [entry.listed for entry in numbering.entries[:_AHEAD_LOOKUPS]]
            # A file of the upper may change before it is asked for; of the lowers' we would hear.
            answers = () if directory.in_upper else self._overlay.lookup_listed(directory, numbering.snapshot, names)
            self._ahead = _Ahead(directory, numbering, answers, time.monotonic(), age)
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


def _dots(directory: DirNode, offset: int) -> list[tuple[int, int, bytes]]:
    """The inode number, the number and the name of `.` and `..`, as far as they are behind the offset."""
    dots = ((directory.ino, DOT, b"."), ((directory.parent or directory).ino, DOT_DOT, b".."))
    return [dot for dot in dots if offset < dot[1]]


def _filled(
    numbering: Numbering,
    offset: int,
    size: int,
    dots: list[bytes],
    size_of: Callable[[bytes], int],
    pack: Callable[[Sequence[Numbered]], list[bytes]],
) -> Portion:
    """The dots, and as many of the names behind `offset` as fit. Empty only at the end of the directory:
    where all names of a portion turn out to be gone, the next ones take their place.

    What fits is settled before it is packed, for an entry of READDIRPLUS counts a lookup, which must then
    reach the kernel.
    """
    size -= sum(map(len, dots))
    while True:
        names = []
        room = size
        for entry in numbering.after(offset):
            room -= size_of(entry.listed.name)
            if room < 0:
                break
            names.append(entry)
        packed = dots + pack(names)
        if packed or not names:
            reached = names[-1].number if names else offset
            more = bool(numbering.entries) and numbering.entries[-1].number > reached
            return Portion(b"".join(packed), bool(packed) and not more)
        offset = names[-1].number
