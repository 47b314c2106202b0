"""A walk through several layers side by side, path by path.

What the layers have at one path comes together, and nothing is kept: memory grows with the longest directories on the
current path, not with the number of files.
"""

from __future__ import annotations

import heapq
import itertools
import os
from collections import OrderedDict
from collections.abc import Generator, Iterator, Sequence
from operator import itemgetter

from overlayfs_demo.analysis.inventory import Root, Thing, as_thing, is_opaque, unreadable
from overlayfs_demo.linux import proc, syscalls
from overlayfs_demo.overlay.merge import Says

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
# O_NONBLOCK: if a fifo has replaced a file, opening it must not wait for a writer.
_SAFE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
_OPEN_DIRECTORIES = 128


class Place:
    """One path that some layer has, and what each layer has there.

    `path` is relative and normalised. `depth` is the number of names in it. `things` holds what each layer has, keyed
    by the layer's number in ascending order; `filled` holds the numbers of the layers with a non-empty directory.
    """

    __slots__ = ("_descriptors", "_parent", "depth", "filled", "path", "things")

    def __init__(self, descriptors: Descriptors, parent: bytes, path: bytes, depth: int) -> None:
        self._descriptors = descriptors
        self._parent = parent
        self.path = path
        self.depth = depth
        self.things: dict[int, Thing] = {}
        self.filled: list[int] = []

    def open(self, number: int, flags: int) -> int:
        """Open what a layer has here without following links; the caller owns the descriptor. Raises ImageError.

        Call it before the walk continues.
        """
        name = self.path.rpartition(b"/")[2]
        try:
            return os.open(name, flags | _SAFE, dir_fd=self._descriptors.directory(number, self._parent))
        except OSError as error:
            raise unreadable(self.label(number), self.path, error) from None

    def label(self, number: int) -> str:
        """Return the layer's name in messages."""
        return self._descriptors.label(number)


def walk(roots: Sequence[Root]) -> Generator[Place, None, None]:
    """Yield every path that any layer has, except the root, in order: a directory before its contents.

    Paths are ordered by their lists of names. Layers are numbered from 1 in the given order; the caller keeps
    ownership of their descriptors. Raises ImageError.
    """
    descriptors = Descriptors(roots)
    try:
        listings = [(number, _names(label, fd)) for number, (label, fd) in enumerate(roots, start=1)]
        # The names still to visit, directory by directory, from the root down.
        pending = [(b"", _merged(listings))]
        while pending:
            parent, names = pending[-1]
            above, depth = parent + b"/" if parent else b"", len(pending)
            for name, numbers in names:
                place = Place(descriptors, parent, above + name, depth)
                inside = [listing for number in numbers if (listing := _look(place, descriptors, number, parent, name))]
                yield place
                if inside:
                    # What is in it comes before the names that follow.
                    pending.append((place.path, _merged(inside)))
                    break
            else:
                pending.pop()
    finally:
        descriptors.close()


_Listing = tuple[int, list[bytes]]


def _look(place: Place, descriptors: Descriptors, number: int, parent: bytes, name: bytes) -> _Listing | None:
    """Enter what one layer has here; return its number and names if it is a directory that is not empty."""
    try:
        parent_fd = descriptors.directory(number, parent)
        status = os.stat(name, dir_fd=parent_fd, follow_symlinks=False)
        place.things[number] = thing = as_thing(status)
        if thing.says is not Says.DIRECTORY:
            return None
        fd = os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=parent_fd)
        descriptors.keep(number, place.path, fd)
        if is_opaque(fd):
            place.things[number] = thing._replace(says=Says.OPAQUE_DIRECTORY)
        names = _listed(fd)
    except OSError as error:
        raise unreadable(descriptors.label(number), place.path, error) from None
    if not names:
        return None
    place.filled.append(number)
    return number, names


def _names(label: str, root_fd: int) -> list[bytes]:
    try:
        return _listed(root_fd)
    except OSError as error:
        raise unreadable(label, b"", error) from None


def _listed(fd: int) -> list[bytes]:
    # By a path of bytes, so that the names are bytes, too.
    return sorted(os.listdir(proc.fd_path(fd)))


def _merged(listings: Sequence[_Listing]) -> Iterator[tuple[bytes, Sequence[int]]]:
    """Return the names of all listings in order, each with the layers that have it."""
    if len(listings) == 1:
        [(number, names)] = listings
        return zip(names, itertools.repeat((number,)))
    pairs = heapq.merge(*(zip(names, itertools.repeat(number)) for number, names in listings))
    return ((name, [number for _, number in same]) for name, same in itertools.groupby(pairs, itemgetter(0)))


class Descriptors:
    """Cache of descriptors of the layers' directories: the last used stay open, others are reopened on request.

    Layers are numbered from 1; the caller keeps ownership of the descriptors of their roots.
    """

    def __init__(self, roots: Sequence[Root]) -> None:
        self._roots = roots
        self._open: OrderedDict[tuple[int, bytes], int] = OrderedDict()

    def label(self, number: int) -> str:
        """Return the layer's name in messages."""
        return self._roots[number - 1][0]

    def directory(self, number: int, path: bytes) -> int:
        """Return the descriptor of a layer's directory. Raises OSError.

        This object owns it, and may close it once `_OPEN_DIRECTORIES` others have been used.
        """
        root_fd = self._roots[number - 1][1]
        if not path:
            return root_fd
        key = (number, path)
        fd = self._open.get(key)
        if fd is None:
            fd = syscalls.open_beneath(root_fd, path, _DIRECTORY)
            self.keep(number, path, fd)
        else:
            self._open.move_to_end(key)
        return fd

    def keep(self, number: int, path: bytes, fd: int) -> None:
        """Take ownership of the descriptor of an open directory."""
        self._open[number, path] = fd
        if len(self._open) > _OPEN_DIRECTORIES:
            os.close(self._open.popitem(last=False)[1])

    def close(self) -> None:
        """Close all cached descriptors."""
        while self._open:
            os.close(self._open.popitem()[1])
