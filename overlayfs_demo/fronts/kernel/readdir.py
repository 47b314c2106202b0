"""Directory listings, with read-ahead of the directory that comes next.

A reply holds as many names as fit. After the last name of a directory, a reader that walks a tree
goes on to the first subdirectory, or to the next one beside it. That directory is prepared while
the reader is still busy with the names it got, as read-ahead does with the data of a file.
"""

from __future__ import annotations

import stat
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

from overlayfs_demo.fronts.kernel import wire
from overlayfs_demo.fronts.kernel.cache_policy import Trust
from overlayfs_demo.fronts.kernel.directory_offsets import DOT, DOT_DOT, Numbered, Numbering
from overlayfs_demo.fronts.kernel.node_table import NodeTable
from overlayfs_demo.named_tuple import NamedTuple
from overlayfs_demo.overlay.engine import Overlay
from overlayfs_demo.overlay.listing import TooManyNamesError
from overlayfs_demo.overlay.node import DirNode
from overlayfs_demo.overlay.questions import AskFirstError
from overlayfs_demo.overlay.tree import Completed
from overlayfs_demo.overlay.types import Dirent

# A directory with more names is not read ahead, and no more names are looked up than a reply holds.
_AHEAD_NAMES = 1000
_AHEAD_LOOKUPS = 150
# For how many seconds the result of reading ahead is valid, if the kernel may trust names that long.
_AHEAD_SECONDS = 1.0

_Answers = Sequence[Completed]


class _Ahead(NamedTuple):
    """A directory that was read ahead: its numbering and the lookups of its first names.

    `when` is the monotonic time in seconds. `age` is the number of changes behind the view until then, so after
    another change it no longer matches.
    """

    directory: DirNode
    numbering: Numbering
    answers: _Answers
    when: float
    age: int


class Portion(NamedTuple):
    """One reply's part of a listing; `is_last` says whether it holds the directory's last name."""

    payload: bytes
    is_last: bool


class Directories:
    """The directory listings of one mount. Safe to use from several threads."""

    def __init__(self, overlay: Overlay, nodes: NodeTable, trust: Trust) -> None:
        """Set up the listings of one mount. `trust` says how long the kernel may trust an answer."""
        self._overlay = overlay
        self._nodes = nodes
        self._trust = trust
        self._reads_ahead = trust.shortest >= _AHEAD_SECONDS
        self._age = 0
        self._next: DirNode | None = None
        self._ahead: _Ahead | None = None
        self._preparing = threading.Lock()

    def readdir(self, directory: DirNode, nodeid: int, offset: int, size: int) -> Portion:
        """Return as many entries after the name numbered `offset` as fit into `size` bytes; none at the end."""
        self._trust.inside(directory)
        numbering, _ = self._numbering(directory, nodeid, offset)

        def pack(names: Sequence[Numbered]) -> list[bytes]:
            entries = ((number, self._overlay.dirent(directory, listed)) for number, listed in names)
            return [wire.dirent(entry.ino, number, entry.name, entry.kind) for number, entry in entries if entry]

        dots = [wire.dirent(ino, number, name, stat.S_IFDIR) for ino, number, name in _dots(directory, offset)]
        return self._delivered(nodeid, offset, _filled(numbering, offset, size, dots, wire.dirent_size, pack))

    def readdirplus(self, directory: DirNode, nodeid: int, offset: int, size: int) -> Portion:
        """Return the same as `readdir`, each entry with the answer that LOOKUP would give."""
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
                else wire.direntplus(next(ids), answer[1], trust.entry(inside, *answer), number, listed.name)
                for (number, listed), answer in zip(names, found, strict=True)
                if answer
            ]

        dots = [wire.bare_direntplus(ino, number, name, stat.S_IFDIR) for ino, number, name in _dots(directory, offset)]
        return self._delivered(nodeid, offset, _filled(numbering, offset, size, dots, wire.direntplus_size, pack))

    def _delivered(self, nodeid: int, offset: int, portion: Portion) -> Portion:
        """Return the portion. If it is empty, a reader has come to the end, and most of the numbering is dropped.

        If it is the first of several, another process can go on with the next ones.
        """
        if not portion.payload:
            self._nodes.stream(nodeid).rest()
            self._nodes.drop_stream(nodeid)
        elif not offset and not portion.is_last:
            self._nodes.keep_stream(nodeid)
        return portion

    def _numbering(self, directory: DirNode, nodeid: int, offset: int) -> tuple[Numbering, _Answers]:
        """Return the names, and the known lookups of the first of them. At offset 0 the names are read again."""
        stream = self._nodes.stream(nodeid)
        current = stream.current
        if offset and current is not None:
            return current, ()
        if offset == 0 and self._next is directory:
            ahead = self._take_ahead(directory)
            # The kernel may have forgotten the directory meanwhile, and with it the numbers.
            if ahead is not None and ahead.numbering is stream.current:
                self._overlay.note_reading(directory)
                return ahead.numbering, ahead.answers
        return stream.refresh(partial(self._overlay.names, directory)), ()

    # --- read-ahead --------------------------------------------------------------------------------

    def _take_ahead(self, directory: DirNode) -> _Ahead | None:
        """Return what was read ahead of this directory, if it is still valid."""
        with self._preparing:
            ahead, self._ahead, self._next = self._ahead, None, None
        if ahead is None or ahead.directory is not directory or ahead.age != self._age:
            return None
        if time.monotonic() > ahead.when + _AHEAD_SECONDS:
            return None
        return ahead if ahead.numbering.snapshot.is_current(directory.sources) else None

    def forget_ahead(self) -> None:
        """Drop what was read ahead, or is being read, because something changed behind the view."""
        self._age += 1

    def read_ahead(self, finished: DirNode) -> None:
        """Read the directory that a reader who has `finished` this one will ask for next."""
        if not self._reads_ahead or self._overlay.is_past(finished) or not self._preparing.acquire(blocking=False):
            return
        try:
            directory = self._following(finished)
            if directory is None or (nodeid := self._nodes.id_of(directory)) is None:
                return
            self._next = directory
            # Taken before the names are read, so that a change while they are read makes the result outdated.
            age = self._age
            self._trust.inside(directory)
            take = partial(self._overlay.names, directory, at_most=_AHEAD_NAMES, quietly=True)
            numbering = self._nodes.stream(nodeid).refresh(take)
            names = [entry.listed for entry in numbering.entries[:_AHEAD_LOOKUPS]]
            # A file of the upper may change before the kernel asks for it; a change of a lower's would be noticed.
            answers = () if directory.in_upper else self._overlay.lookup_listed(directory, numbering.snapshot, names)
            self._ahead = _Ahead(directory, numbering, answers, time.monotonic(), age)
        except (OSError, KeyError, TooManyNamesError, AskFirstError):
            # The directory is too large, is in a layer that must not be waited for, or was removed or forgotten by the
            # kernel meanwhile. A request for it will meet the error again, if it is one.
            self._ahead = None
        finally:
            self._preparing.release()

    def _following(self, directory: DirNode | None) -> DirNode | None:
        """Return the next subdirectory, of this directory or of one above it, that was not read ahead yet."""
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
    """Return the inode number, the number and the name of `.` and `..`, if they come after the offset."""
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
    """Return the dots, and as many of the names after `offset` as fit.

    The portion is empty only at the end of the directory: if all names of a portion turn out to be gone, the next
    ones take their place.
    """
    # What fits is decided before it is packed, because packing an entry of READDIRPLUS counts a lookup, and that
    # entry must then reach the kernel.
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
