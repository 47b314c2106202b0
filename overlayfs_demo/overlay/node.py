"""What does the engine remember about one file or directory of the view?

A node is the engine's object for one file: the same object for as long as anybody holds it. A node
holds its parent; a parent knows its children only weakly, so a front keeps a node alive by holding it
and lets it go by dropping it.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import NamedTuple
from weakref import ref

from overlayfs_demo import syscalls
from overlayfs_demo.overlay.handle import Handle
from overlayfs_demo.overlay.layer import Descriptor, LayerDir, LowerDir, UpperDir
from overlayfs_demo.overlay.types import Attrs, Links


class Target(NamedTuple):
    """Where the `os` functions find a node's real file: their `path`, `dir_fd` and `follow_symlinks`.

    `held` keeps the descriptor behind it open while the target is in use.
    """

    held: Descriptor
    path: bytes | int
    dir_fd: int | None
    follow: bool

    def stat(self) -> os.stat_result:
        """stat(2) of the real file."""
        return os.stat(self.path, dir_fd=self.dir_fd, follow_symlinks=self.follow)

    def open(self, flags: int) -> int:
        """open(2) of the real file, links not followed; the caller owns the descriptor."""
        assert isinstance(self.path, bytes)
        flags |= os.O_CLOEXEC | (0 if self.follow else os.O_NOFOLLOW)
        return os.open(self.path, flags, dir_fd=self.dir_fd)

    def open_lower(self, flags: int) -> int:
        """Like `open`, for a file of a lower: reading must not change the layer, not even an access time."""
        try:
            return self.open(flags | os.O_NOATIME)
        except PermissionError:
            return self.open(flags)  # Only the owner and root may ask for O_NOATIME: open(2).

    def readlink(self) -> bytes:
        """readlink(2) of the real symbolic link."""
        assert isinstance(self.path, bytes)
        if self.follow:
            return os.readlink(b"", dir_fd=self.held.fd)
        return os.readlink(self.path, dir_fd=self.dir_fd)

    def xattr_path(self) -> bytes | int:
        """The same place for the calls that take no directory descriptor."""
        if self.dir_fd is None or isinstance(self.path, int):
            return self.path
        return syscalls.path_of(self.dir_fd, self.path)


class Node:
    """What files and directories have in common.

    `kind` is the S_IFMT part of the mode, `ino` the identity the view shows, `key` the (device, inode)
    of the real object now in front. `anchor` keeps a removed object reachable; `gone` says that the
    name under which we knew it was removed.
    """

    __slots__ = ("__weakref__", "anchor", "gone", "ino", "key", "kind", "name", "parent")

    def __init__(self, parent: DirNode | None, name: bytes, kind: int, ino: int, key: tuple[int, int]) -> None:
        self.parent = parent
        self.name = name
        self.kind = kind
        self.ino = ino
        self.key = key
        self.anchor: Descriptor | None = None
        self.gone = False

    @property
    def in_upper(self) -> bool:
        """Whether the upper holds this object: a change to it needs no copy-up."""
        raise NotImplementedError

    @property
    def is_directory(self) -> bool:
        """Whether this is a `DirNode`."""
        return self.kind == stat.S_IFDIR

    def target(self) -> Target:
        """The real object in front: in the upper if it is there, else in its lower layer."""
        raise NotImplementedError

    def attrs_from(self, status: os.stat_result) -> Attrs:
        """The view's attributes, given the real ones."""
        raise NotImplementedError

    def path(self) -> bytes:
        """The path in the view, for messages and events; for a removed node, where it was."""
        parts = []
        node: Node = self
        while node.parent is not None:
            parts.append(node.name)
            node = node.parent
        return b"/" + b"/".join(reversed(parts))


class FileNode(Node):
    """Anything but a directory: it comes from exactly one layer, at `place`/`place_name`.

    `handles` are the open handles, which follow a copy-up. If the file is one of the index's copies,
    `place` is the index, whichever names it has, and `links` is their number; else it is None.
    A `metacopy` has its metadata there, and its data at `data` (None if the layers below lack it).
    """

    __slots__ = ("data", "handles", "links", "metacopy", "place", "place_name")

    def __init__(
        self, parent: DirNode, name: bytes, place: LayerDir, place_name: bytes, status: os.stat_result, ino: int
    ) -> None:
        # Not through super(): most nodes are made while directories are listed, which is where it shows.
        self.parent = parent
        self.name = name
        self.kind = stat.S_IFMT(status.st_mode)
        self.ino = ino
        self.key = (status.st_dev, status.st_ino)
        self.anchor = None
        self.gone = False
        self.place = place
        self.place_name = place_name
        self.handles: list[Handle] = []
        self.links: Links | None = None
        self.metacopy = False
        self.data: tuple[LayerDir, bytes] | None = None

    @property
    def in_upper(self) -> bool:
        return self.place.layer.is_upper

    def target(self) -> Target:
        anchor = self.anchor
        if anchor is not None:
            return Target(anchor, syscalls.fd_path(anchor.fd), None, True)
        directory = self.place.open()
        return Target(directory, self.place_name, directory.fd, False)

    def data_target(self) -> Target:
        """The real file that the data is read from. Raises EIO if a metacopy's is missing."""
        if not self.metacopy:
            return self.target()
        if self.data is None:
            raise OSError(errno.EIO, os.strerror(errno.EIO), self.name)
        place, name = self.data
        directory = place.open()
        return Target(directory, name, directory.fd, False)

    def attrs_from(self, status: os.stat_result) -> Attrs:
        # A removed lower file still stands in its layer, with the links it has there.
        nlink = 0 if self.gone and not self.in_upper else status.st_nlink
        if self.links is not None:
            nlink = self.links.view
        attrs = Attrs.of(status, self.ino, nlink)
        return attrs._replace(blocks=self.data_target().stat().st_blocks) if self.data else attrs


class Children:
    """The known nodes of a directory, by name, each only as long as somebody else holds it.

    A `weakref.WeakValueDictionary` for one purpose: it costs a fraction, and listing a directory fills one.
    """

    __slots__ = ("_references", "_sweep_at")

    def __init__(self) -> None:
        self._references: dict[bytes, ref[Node]] = {}
        self._sweep_at = 64

    def get(self, name: bytes) -> Node | None:
        """The node, if it is still held."""
        reference = self._references.get(name)
        return reference() if reference is not None else None

    def known(self) -> list[Node]:
        """All nodes that are still held."""
        held = [reference() for reference in list(self._references.values())]
        return [node for node in held if node is not None]

    def put(self, name: bytes, node: Node) -> None:
        """Know `node` by `name` from now on."""
        references = self._references
        references[name] = ref(node)
        if len(references) > self._sweep_at:
            self._references = {name: kept for name, kept in references.items() if kept() is not None}
            self._sweep_at = 2 * len(self._references) + 64

    def drop(self, name: bytes, node: Node) -> None:
        """No longer know `node` by `name`; another node there stays."""
        if self.get(name) is node:
            del self._references[name]


class DirNode(Node):
    """A directory: one real directory, or several merged.

    `lowers` are the lower directories in it, topmost first. `redirect` is the value of the upper's
    `overlay.redirect`, if it was renamed. `sources` is the upper (if any), then the lowers, and `keys` are
    the (device, inode) of each. `watched` says whether changes behind the view are noticed here (None: not
    tried), see `behind`.
    """

    __slots__ = ("children", "keys", "lowers", "redirect", "sources", "upper", "watched")

    def __init__(
        self, parent: DirNode | None, name: bytes, sources: tuple[LayerDir, ...],
        status: os.stat_result, ino: int, redirect: bytes | None = None,
        keys: tuple[tuple[int, int], ...] | None = None,
    ) -> None:
        super().__init__(parent, name, stat.S_IFDIR, ino, (status.st_dev, status.st_ino))
        self.keys = keys or (self.key,)
        self.watched: bool | None = None
        self.sources = sources
        self.upper = next((source for source in sources if isinstance(source, UpperDir)), None)
        self.lowers = tuple(source for source in sources if isinstance(source, LowerDir))
        self.redirect = redirect
        self.children = Children()

    @property
    def in_upper(self) -> bool:
        return self.upper is not None

    def front(self) -> Descriptor:
        """The topmost real directory, open."""
        return self.anchor or self.sources[0].open()

    def target(self) -> Target:
        directory = self.front()
        return Target(directory, directory.fd, None, True)

    def attrs_from(self, status: os.stat_result) -> Attrs:
        # find(1) trusts a link count above 2 to count subdirectories; 1 says "do not count", as the
        # kernel's overlayfs says for merged directories (fs/overlayfs/inode.c, ovl_getattr).
        nlink = 0 if self.gone else 1 if len(self.sources) > 1 else status.st_nlink
        return Attrs.of(status, self.ino, nlink)

    def copied_up(self, upper: UpperDir, key: tuple[int, int]) -> None:
        """The directory now has an upper part, which is in front."""
        self.upper = upper
        self.sources = (upper, *self.lowers)
        self.key = key
        self.keys = (key, *self.keys)
        self.watched = None

    def lower_path(self) -> bytes:
        """Where the stack of lowers, seen without the upper, has this directory: what a redirect names.

        Ancestors that were renamed in the upper count with their redirect (fs/overlayfs/dir.c,
        ovl_get_redirect).
        """
        below = b""
        node = self
        while node.parent is not None:
            if node.redirect is not None and node.redirect.startswith(b"/"):
                return node.redirect + below
            below = b"/%s%s" % (node.redirect or node.name, below)
            node = node.parent
        return below
