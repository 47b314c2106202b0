"""Which node stands for which file of the view?

The tree turns what a lookup found into a node, the same one as before if it is still the same file,
and gives every file the inode number that it keeps over copy-up and remount.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import threading
from collections.abc import Sequence
from weakref import WeakValueDictionary

from overlayfs_demo import syscalls
from overlayfs_demo.overlay import drift
from overlayfs_demo.overlay.index import Index
from overlayfs_demo.overlay.layer import Layer, LayerDir, LowerDir
from overlayfs_demo.overlay.listing import Listed, Snapshot, snapshot
from overlayfs_demo.overlay.lookup import Lookup, Part
from overlayfs_demo.overlay.node import DirNode, FileNode, Node
from overlayfs_demo.overlay.origin import Origins
from overlayfs_demo.overlay.types import Attrs
from overlayfs_demo.overlay.upper import Upper
from overlayfs_demo.overlay.whiteout import PrivateXattrs

# Inode numbers of further filesystems are told apart by their upper bits, like the kernel's "xino".
_FILESYSTEM_SHIFT = 56


class Tree:
    """The nodes of one mount, and what every part of the engine shares.

    `lock` guards the nodes and all changes of names; it is held for short calls only, never while file
    data is copied. `upper` is None for a read-only mount. `lowers` are topmost first. `index` is None if
    hard links of lower files are not kept. `beside` are names in the root that are in no layer, and never listed.
    """

    __slots__ = (
        "_devices", "_linked", "beside", "index", "lock", "lookup", "lowers", "origins", "root", "upper", "xattrs",
    )

    def __init__(
        self, lowers: Sequence[Layer], data_layers: Sequence[Layer], upper: Upper | None, xattrs: PrivateXattrs,
        origins: Origins, index: Index | None,
    ) -> None:
        self.lowers = tuple(lowers)
        self.upper = upper
        self.xattrs = xattrs
        self.lock = threading.RLock()
        self.lookup = Lookup(lowers, data_layers)
        self.origins = origins
        self.index = index
        layers = [*([upper.layer] if upper else []), *lowers, *data_layers]
        self._devices: dict[int, int] = {}
        for layer in layers:
            self._devices.setdefault(layer.device, len(self._devices))
        # Files with several names: each is one node, whichever name led to it. A copied-up one is known by
        # the lower file, too.
        self._linked: WeakValueDictionary[tuple[int, int], FileNode] = WeakValueDictionary()
        self.beside: dict[bytes, DirNode] = {}
        self.root = self._make_root()

    def _make_root(self) -> DirNode:
        sources: list[LayerDir] = [self.upper.root] if self.upper else []
        for layer in self.lowers:
            sources.append(LowerDir(layer, b""))
            if sources[-1].marks.opaque:
                break
        statuses = [os.fstat(source.open().fd) for source in sources]
        return DirNode(None, b"", tuple(sources), statuses[0], self.identity(statuses[bool(self.upper)]))

    def writable(self) -> Upper:
        """The upper; raises EROFS for a mount without one."""
        if self.upper is None:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return self.upper

    def identity(self, status: os.stat_result) -> int:
        """The inode number by which the view shows a real file."""
        return self.identity_of(status.st_ino, status.st_dev)

    def identity_of(self, ino: int, device: int) -> int:
        """The inode number of the view, given the real one and the device it is on."""
        filesystem = self._devices.setdefault(device, len(self._devices))
        return ino ^ filesystem << _FILESYSTEM_SHIFT

    def find(self, parent: DirNode, name: bytes) -> tuple[Node, Attrs]:
        """The node called `name` in `parent`, and its attributes. Raises ENOENT. Call with `lock` held."""
        if parent.gone:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        parts = self.lookup.find(parent.sources, name)
        if not parts:
            if parent is self.root and name in self.beside:
                found = self.beside[name]
                return found, found.attrs_from(found.target().stat())
            known = parent.children.get(name)
            if known is not None:
                drift.displace(known, parent, name)
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        return self._settle(parent, name, parts)

    def find_listed(self, parent: DirNode, listed: Listed, current: bool) -> tuple[Node, Attrs] | None:
        """Like `find`, given how the name was listed; `current` says that no name was changed here since."""
        name, kind, _, source, _ = listed
        if current and kind != stat.S_IFDIR:
            status = source.stat(name)
            known = status is not None and stat.S_IFMT(status.st_mode) == kind
            if known and status is not None and not source.layer.is_metacopy(name, status, source):
                return self._settle(parent, name, (Part(source, name, status, None),))
        try:
            return self.find(parent, name)
        except FileNotFoundError:
            return None

    def _settle(self, parent: DirNode, name: bytes, parts: Sequence[Part]) -> tuple[Node, Attrs]:
        """The node that stands for what was found as `name`: the known one, if it is still that, or a new one."""
        status = parts[0].status
        known = node = parent.children.get(name)
        if node is None or not drift.follow(node, parts):
            if stat.S_ISDIR(status.st_mode):
                node = self._make_directory(parent, name, parts)
            else:
                node = self._make_file(parent, name, parts[0])
                if parts[0].metacopy and node.key == (status.st_dev, status.st_ino):
                    node.metacopy = True
                    node.data = (parts[1].place, parts[1].name) if len(parts) > 1 else None
            if known is not None and known is not node:
                drift.displace(known, parent, name)
            parent.children.put(name, node)
            if node.key != (status.st_dev, status.st_ino):
                status = node.target().stat()  # A name of a lower file that was copied up by another.
        return node, node.attrs_from(status)

    def snapshot(self, node: DirNode, at_most: int = sys.maxsize, *, quietly: bool = False) -> Snapshot:
        """The names in a directory. Raises TooManyNamesError if there are more than `at_most`."""
        return snapshot(node.sources, at_most, quietly=quietly)

    def child(self, parent: DirNode, name: bytes) -> Node | None:
        """The node called `name`, or None. Call with `lock` held."""
        try:
            return self.find(parent, name)[0]
        except FileNotFoundError:
            return None

    def _make_directory(self, parent: DirNode, name: bytes, parts: Sequence[Part]) -> DirNode:
        sources = tuple(part.directory for part in parts if part.directory)
        first = sources[0]
        redirect = None
        identity = parts[0].status
        if first.layer.is_upper:
            redirect = first.marks.redirect
            if len(parts) > 1:
                identity = parts[1].status
        return DirNode(parent, name, sources, parts[0].status, self.identity(identity), redirect, drift.keys_of(parts))

    def _make_file(self, parent: DirNode, name: bytes, part: Part) -> FileNode:
        status = part.status
        linked = status.st_nlink > 1
        if linked:
            known = self._linked.get((status.st_dev, status.st_ino))
            if known is not None:
                self.settle(known, parent, name)
                return known
        ino = self.identity(status)
        if part.place.layer.is_upper:
            if not part.place.marks.impure:
                origin = None
            else:
                origin = syscalls.get_xattr(syscalls.path_of(part.place.open().fd, part.name), self.xattrs.origin)
                lower = self.origins.decode(origin) if origin else None
                ino = self.identity(lower) if lower else ino
        else:
            origin = self.linked_origin(part) if linked else None
        node = None
        if linked and origin and self.index:
            node = self._from_index(parent, name, part, origin, ino)
        node = node or FileNode(parent, name, part.place, part.name, status, ino)
        if linked and (origin or part.place.layer.is_upper or self.upper is None):
            self.share(node, (status.st_dev, status.st_ino))
        return node

    def linked_origin(self, part: Part) -> bytes | None:
        """The origin of a lower file of several names, if its names are to stay together."""
        return self.origins.encode(part.place.layer, part.place.open().fd, part.name) if self.index else None

    def _from_index(self, parent: DirNode, name: bytes, part: Part, origin: bytes, ino: int) -> FileNode | None:
        """The node of the index's copy, if the name leads to that: as one of its names in the upper, or from below."""
        assert self.index is not None
        entry = self.index.find(origin)
        if entry is None:
            return None
        status = entry.status
        in_upper = part.place.layer.is_upper
        if in_upper and (status.st_dev, status.st_ino) != (part.status.st_dev, part.status.st_ino):
            return None
        known = self._linked.get((status.st_dev, status.st_ino))
        if known is not None:
            self.settle(known, parent, name)
            return known
        node = FileNode(parent, name, entry.place, entry.name, status, ino)
        node.links = self.index.links(entry, None if in_upper else part.status.st_nlink)
        self.share(node, node.key)
        return node

    def share(self, node: FileNode, key: tuple[int, int]) -> None:
        """Note that the file behind `node`, known as (device, inode) `key`, has several names."""
        self._linked[key] = node

    def settle(self, node: FileNode, parent: DirNode, name: bytes) -> None:
        """Give a file whose known name was removed another name that it is reached by."""
        if node.gone:
            node.parent, node.name = parent, name
            node.anchor = None
            node.gone = False
            if node.links is None and parent.upper is not None:
                node.place, node.place_name = parent.upper, name

    def loses_a_name(self, node: FileNode) -> bool:
        """Must a lower file be in the index before one of its names can go, for the others to be counted?"""
        return self.index is not None and not node.in_upper and self._linked.get(node.key) is node

    def covered(self, parent: DirNode, name: bytes) -> str:
        """The label of the lower layer that would show `name` if the upper said nothing; "" if none would."""
        if not parent.lowers:
            return ""
        parts = self.lookup.find(parent.lowers, name)
        return parts[0].place.layer.label if parts else ""
