"""The plan of a copy-up: what it copies and what it reports, worked out before anything is made."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable

from overlayfs_demo.named_tuple import NamedTuple
from overlayfs_demo.overlay.budget import Budget, kept
from overlayfs_demo.overlay.copyup_attributes import marks
from overlayfs_demo.overlay.copyup_limits import Limits
from overlayfs_demo.overlay.hooks import Hooks
from overlayfs_demo.overlay.layer import Descriptor
from overlayfs_demo.overlay.node import Data, FileNode
from overlayfs_demo.overlay.pinned import Pinned
from overlayfs_demo.overlay.tree import Tree
from overlayfs_demo.overlay.types import Links
from overlayfs_demo.overlay.upper_attributes import resize


class Cut(NamedTuple):
    """A new size for a file, in bytes, and the `flags` of open(2) to open it with.

    The copy of a lower file is made with what is left of the data, and `apply` gives it its final size and modification
    time. If the size changes, the file is modified now; so it must not get its old times back before, see
    `keeps_times`. If it stays the same, the call decides: ftruncate(2) and O_TRUNC always set the time, but with
    `by_path`, which is for truncate(2), the filesystem decides (fs/open.c, do_truncate).

    `admit` may refuse the open file by raising OSError: then nothing is cut.
    """

    size: int
    flags: int
    by_path: bool = False
    admit: Callable[[int], None] = lambda _fd: None

    def open(self, path: bytes, dir_fd: int) -> int:
        """Open the unfinished copy; the caller owns the descriptor."""
        fd = os.open(path, self.flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
        return self.admitted(fd)

    def keeps_times(self, status: os.stat_result) -> bool:
        """Whether the copy of a file with this status gets that file's times before `apply`."""
        return self.size == status.st_size

    def apply(self, fd: int) -> None:
        """Give a file that is open for writing as `fd` the new size."""
        resize(fd, self.size, self.by_path)

    def admitted(self, fd: int) -> int:
        """Return the descriptor, or close it and raise OSError if `admit` refuses it."""
        return kept(fd, self.admit)


class Settings(NamedTuple):
    """How one mount copies up.

    `metacopy`: a change of metadata alone copies no data. `rehearsal`: see `Stack.rehearsal`.
    """

    metacopy: bool
    rehearsal: bool
    limits: Limits
    hooks: Hooks
    budget: Budget


class Request(NamedTuple):
    """What one caller needs of a lower file's copy.

    `data`: more than the metadata will be changed. `with_name`: a file of the index also gets the node's name in the
    upper. `cut`: the copy is opened and gets another size before it appears.
    """

    data: bool = True
    with_name: bool = True
    cut: Cut | None = None


class Plan(NamedTuple):
    """What a copy-up of a file copies.

    `source` is the file to copy, with this `status`; use it without the tree's lock. `origin` is None if the copy gets
    none, and `private` are the overlay's own attributes of the copy, its origin among them. The copy is published in
    the index with as many names as `links` counts, and at the node's name if `links` is None. `below` is where the data
    of a metacopy stays, None for a copy with data. `length` is the file's size before a cut lengthens it, and `size`
    the bytes of data to copy. `counted` are the bytes that the event reports and the limits apply to, and `label` is
    the layer they come from.
    """

    source: Pinned
    status: os.stat_result
    origin: bytes | None
    private: list[tuple[str, bytes]]
    links: Links | None
    below: Data | None
    length: int
    size: int
    counted: int
    label: str

    @classmethod
    def of_file(cls, node: FileNode, request: Request, tree: Tree, settings: Settings) -> Plan:
        """Return the plan for a lower file. Call without the tree's lock. Raises OSError: ESTALE, ENOENT."""
        leaves_data = not request.data and node.kind == stat.S_IFREG and tree.xattrs.follows
        metacopy = leaves_data and settings.metacopy
        keeps_below = leaves_data and (settings.metacopy or settings.rehearsal)
        # Opened for its data if that is copied: one descriptor then serves for everything. Without the lock, because
        # opening a file of a layer may take long.
        opened = None if keeps_below or (request.cut and not request.cut.size) else _opened(node, tree)
        with tree.lock:
            if opened is None:
                pinned = node.pin()
                opened = pinned.directly(), pinned.stat()
            source, status = opened
            origin, links = _identity(node, status, tree)
            data = node.data_place()
            length = _length(node, status, request.cut)
            counted, label = _cost(node, 0 if metacopy else length, request, settings)
            below = data if keeps_below else None
            private = marks(node, origin, tree, metacopy=keeps_below)
            size = 0 if keeps_below else length
            return cls(source, status, origin, private, links, below, length, size, counted, label)

    @classmethod
    def of_data(cls, node: FileNode, cut: Cut | None, settings: Settings) -> Plan:
        """Return the plan for the data of a metacopy in the upper. Call with the tree's lock held."""
        copy = node.pin()
        status = copy.stat()
        length = _length(node, status, cut)
        label = node.data.place.layer.label if node.data else ""
        # The rehearsed mount would have copied the data together with the metadata.
        counted = 0 if settings.rehearsal and not settings.metacopy else length
        return cls(copy, status, None, [], None, None, length, length, counted, label)


def _opened(node: FileNode, tree: Tree) -> tuple[Pinned, os.stat_result] | None:
    """Return a regular file open for reading, and its status; None if its data is elsewhere, or it may not be read.

    That is no failure yet: the file may be empty.
    """
    if node.kind != stat.S_IFREG or node.metacopy:
        return None
    try:
        pinned = Pinned.opened(Descriptor(tree.open(node, os.O_RDONLY)))
        return pinned, pinned.stat()
    except (PermissionError, BlockingIOError):  # EAGAIN: somebody has a lease on it, fcntl(2).
        return None


def _identity(node: FileNode, status: os.stat_result, tree: Tree) -> tuple[bytes | None, Links | None]:
    """Return the origin that the copy gets, and the number of its names if it belongs in the index."""
    index = tree.index if status.st_nlink > 1 else None
    # Without an index, the copy of a hard-linked file is a new file, so it gets no origin.
    if node.gone or not (index or status.st_nlink == 1):
        return None, None
    origin = tree.origin_of(node.place, node.place_name, status)
    return origin, Links(status.st_nlink, status.st_nlink) if index and origin else None


def _length(node: FileNode, status: os.stat_result, cut: Cut | None) -> int:
    """Return how many bytes of the file remain; 0 for anything but a regular file."""
    if node.kind != stat.S_IFREG:
        return 0
    return status.st_size if cut is None else min(cut.size, status.st_size)


def _cost(node: FileNode, size: int, request: Request, settings: Settings) -> tuple[int, str]:
    """Return how many of `size` bytes the copy's event reports, and the label of the layer they come from."""
    layer = node.place.layer
    if not (settings.rehearsal and layer.depth == 1):
        return size, layer.label
    # The rehearsed mount has the file in its upper already, except the data of a metacopy.
    if node.data and request.data:
        return size, node.data.place.layer.label
    return 0, layer.label
