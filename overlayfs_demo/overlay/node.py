"""Nodes: the engine's objects for the files and directories of the view.

A file has one node, the same object for as long as anything holds it. A node holds its parent; a parent
references its children only weakly, so a front keeps a node alive by holding it and frees it by dropping it.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from typing import Generic, TypeVar
from weakref import ref

from overlayfs_demo.linux import syscalls
from overlayfs_demo.linux.failure import failure
from overlayfs_demo.linux.syscalls import Statx
from overlayfs_demo.named_tuple import NamedTuple
from overlayfs_demo.overlay import questions
from overlayfs_demo.overlay.handle import Handle
from overlayfs_demo.overlay.layer import Descriptor, Key, Layer, LayerDir, LowerDir, UpperDir, key_of, stale
from overlayfs_demo.overlay.name_table import NameTable
from overlayfs_demo.overlay.pinned import Pinned, PinnedElsewhere, Way, check_same, hold
from overlayfs_demo.overlay.types import Attrs, Links

# Kinds and devices, each once: equal numbers from different calls are different objects.
_ONE_OF_EACH: dict[int, int] = {}
# Most files are not open: they share this.
_NO_HANDLES: Sequence[Handle] = []


class Data(NamedTuple):
    """Where the data of a metacopy is: `name` in a lower directory, and the identity of that file at its lookup."""

    place: LayerDir
    name: bytes
    key: Key


class Node:
    """The common part of files and directories.

    `kind` is the S_IFMT part of the mode, `ino` the inode number in the view. `anchor` keeps a removed object
    reachable. `gone`: the name by which we knew it was removed. `protection` caches the result of
    `inode_flags.protection` (None: not read yet). `front_id` is for the front that shows the node: the id it
    has there (0: none).
    """

    __slots__ = (
        "__weakref__",
        "_device",
        "_real_ino",
        "anchor",
        "front_id",
        "gone",
        "ino",
        "kind",
        "name",
        "parent",
        "protection",
    )

    def __init__(self, parent: DirNode | None, name: bytes, kind: int, ino: int, key: Key) -> None:
        self.parent = parent
        self.name = name
        self.kind = kind
        self.ino = ino
        self.key = key
        self.anchor: Descriptor | None = None
        self.gone = False
        self.protection: bytes | None = None
        self.front_id = 0

    @property
    def key(self) -> Key:
        """The (device, inode) of the topmost real object."""
        # Not kept as a tuple: there may be millions of nodes, few devices, and mostly the inode number of the view.
        return self._device, self._real_ino

    @key.setter
    def key(self, key: Key) -> None:
        device, ino = key
        self._device = _ONE_OF_EACH.setdefault(device, device)
        self._real_ino = self.ino if ino == self.ino else ino

    @property
    def in_upper(self) -> bool:
        """Whether the upper has this object, so that a change to it needs no copy-up."""
        raise NotImplementedError

    @property
    def layer(self) -> Layer:
        """The layer of the topmost real object."""
        raise NotImplementedError

    @property
    def is_directory(self) -> bool:
        """Whether this is a `DirNode`."""
        return self.kind == stat.S_IFDIR

    def stat(self) -> os.stat_result:
        """Return stat(2) of the topmost real object: the upper's if there is one, else the lower's.

        Raises OSError, ESTALE if another object is there now.
        """
        raise NotImplementedError

    def statx(self) -> Statx:
        """Return statx(2) of the same object. Raises OSError, ESTALE."""
        raise NotImplementedError

    def pin(self) -> Pinned:
        """Return the topmost real object, held open for reading or changing it. Raises OSError, ESTALE."""
        raise NotImplementedError

    def pinned(self, pinned: Pinned) -> Pinned:
        """Return the real object as one of the layer that it belongs to."""
        return PinnedElsewhere.like(pinned) if self.layer.may_stall else pinned

    def attrs_on_disk(self, status: os.stat_result) -> Attrs:
        """Return the attributes of the node, given the real ones. `Tree.attrs` shows the owner and mode of the view."""
        raise NotImplementedError

    def path(self) -> bytes:
        """Return the path in the view, for messages and events; for a removed node, its last path."""
        parts = []
        node: Node = self
        while node.parent is not None:
            parts.append(node.name)
            node = node.parent
        return b"/" + b"/".join(reversed(parts))


class FileNode(Node):
    """Anything but a directory: it comes from exactly one layer, at `place`/`place_name`.

    `handles` are the open handles, which follow a copy-up. If the file is one of the index's copies,
    `place` is the index, whatever names the file has, and `links` counts them; else `links` is None.
    A `metacopy` has its metadata at `place`, and its data at `data` (None if a data layer should have it but does not).
    `mapped_past`: a caller may be writing to it past the engine through a mapping, which outlives the handle.
    """

    __slots__ = ("data", "handles", "links", "mapped_past", "metacopy", "place", "place_name")

    def __init__(
        self, parent: DirNode, name: bytes, place: LayerDir, place_name: bytes, status: os.stat_result, ino: int
    ) -> None:
        # Not through super(): listing a directory creates a node for each entry, and the call would be noticeable.
        self.parent = parent
        self.name = name
        kind = stat.S_IFMT(status.st_mode)
        self.kind = _ONE_OF_EACH.setdefault(kind, kind)
        self.ino = ino
        self.key = key_of(status)
        self.anchor = None
        self.gone = False
        self.protection = None
        self.front_id = 0
        self.place = place
        self.place_name = place_name
        self.handles: Sequence[Handle] = _NO_HANDLES
        self.links: Links | None = None
        self.metacopy = False
        self.mapped_past = False
        self.data: Data | None = None

    @property
    def in_upper(self) -> bool:
        return self.place.layer.is_upper

    @property
    def written_past(self) -> bool:
        """Whether a caller may be writing to it past the engine."""
        return any(handle.passed for handle in self.handles)

    @property
    def layer(self) -> Layer:
        return self.place.layer

    def add_handle(self, handle: Handle) -> None:
        """Note that the file was opened."""
        self.handles = [*self.handles, handle]

    def drop_handle(self, handle: Handle) -> None:
        """Note that a handle is no longer in use."""
        self.handles = [other for other in self.handles if other is not handle] or _NO_HANDLES

    def _held(self) -> Descriptor | None:
        """Return the descriptor that keeps a removed file's object open, if there is one."""
        if self.anchor is None and self.gone and self.handles and not self.metacopy:
            return self.handles[0].opened
        return self.anchor

    def data_place(self) -> Data:
        """Return where the data is. Raises ENOENT if a data layer lacks it, as the kernel does."""
        if not self.metacopy:
            return Data(self.place, self.place_name, self.key)
        if self.data is None:
            raise failure(errno.ENOENT, self.name)
        return self.data

    def stat(self) -> os.stat_result:
        if (self.gone or self.anchor is not None) and (held := self._held()) is not None:
            return self.pinned(Pinned.through(held)).stat() if self.place.layer.may_stall else os.fstat(held.fd)
        status = self.place.stat(self.place_name)
        if status is None:
            raise stale(self.name)
        check_same(status, self.key, self.kind, self.name)
        return status

    def statx(self) -> Statx:
        held, name = self._held(), b""
        if held is None:
            held, name = self.place.open(), self.place_name
        try:
            found = questions.ask(_statx, held, name) if self.place.layer.may_stall else _statx(held, name)
        except FileNotFoundError:
            raise stale(self.name) from None
        if not name:
            return found
        if found.key != self.key or stat.S_IFMT(found.mode) != self.kind:
            raise stale(self.name)
        return found

    def pin(self) -> Pinned:
        if (held := self._held()) is not None:
            return self.pinned(Pinned.through(held))
        if self.handles and not self.metacopy:
            self.stat()  # The name must still lead to it, as if it were opened now.
            return self.pinned(Pinned.opened(self.handles[0].opened))
        return self.pinned(Pinned.through(self.hold()))

    def hold(self) -> Descriptor:
        """Open the object at the node's name with O_PATH. Raises OSError, ESTALE."""
        directory = self.place.open()
        if self.place.layer.may_stall:
            return questions.ask(hold, directory, self.place_name, self.key, self.kind)
        return hold(directory, self.place_name, self.key, self.kind)

    def way(self) -> Way:
        """Return the way to a regular file's data. Raises OSError, ENOENT like `data_place`."""
        if self.metacopy:
            data = self.data_place()
            return Way(data.place.open(), data.name, data.key, quiet=True)
        if (held := self._held()) is not None:
            return Way(held, b"", self.key, quiet=False)
        return Way(self.place.open(), self.place_name, self.key, quiet=not self.in_upper)

    @property
    def where(self) -> tuple[object, ...]:
        """A value that changes when the node moves or stands for another object."""
        return self.place, self.place_name, self.key, self.metacopy, self.anchor

    def attrs_on_disk(self, status: os.stat_result) -> Attrs:
        # A removed lower file is still in its layer, with the links it has there.
        nlink = 0 if self.gone and not self.in_upper else status.st_nlink
        if self.links is not None:
            nlink = self.links.view
        attrs = Attrs.of(status, self.ino, nlink)
        if not self.metacopy:
            return attrs
        if self.data is None:  # Estimate the blocks from the size (fs/overlayfs/inode.c, ovl_getattr).
            return attrs._replace(blocks=-(-status.st_size // 4096) * 8)
        data = self.data.place.stat(self.data.name)
        return attrs._replace(blocks=data.st_blocks if data is not None else 0)


_K = TypeVar("_K")
_N = TypeVar("_N", bound=Node)


class WeakNodes(Generic[_K, _N]):
    """Nodes by a key, each only as long as something else holds it.

    A minimal `weakref.WeakValueDictionary`: it costs a fraction of that, and every new node is put into one or two.
    """

    __slots__ = ("_references", "_sweep_at")

    def __init__(self) -> None:
        self._references: dict[_K, ref[_N]] = {}
        self._sweep_at = 64

    def get(self, key: _K) -> _N | None:
        """Return the node if it is still held, else None."""
        reference = self._references.get(key)
        return reference() if reference is not None else None

    def known(self) -> list[_N]:
        """Return all nodes that are still held."""
        held = [reference() for reference in list(self._references.values())]
        return [node for node in held if node is not None]

    def put(self, key: _K, node: _N) -> None:
        """Record `node` under `key`."""
        references = self._references
        references[key] = ref(node)
        if len(references) > self._sweep_at:
            self._references = {key: kept for key, kept in list(references.items()) if kept() is not None}
            self._sweep_at = 2 * len(self._references) + 64

    def prune(self, key: _K) -> None:
        """Remove what is left of a node under `key` that nothing holds any more."""
        reference = self._references.get(key)
        if reference is not None and reference() is None:
            del self._references[key]

    def drop(self, key: _K, node: _N) -> None:
        """Forget `node` under `key`; another node there stays."""
        if self.get(key) is node:
            del self._references[key]


class Children(WeakNodes[bytes, Node]):
    """The known nodes of a directory, by name, each only as long as something else holds it.

    A node that the front holds is referenced directly, under the name that it knows itself by: there may be millions of
    these, and a weak reference would be a fifth of the memory that each takes. `hold` and `release` may be called by
    any thread, the other methods with the tree's lock held. So a node is always in one of the two dictionaries, and may
    for a moment be in both.
    """

    __slots__ = ("_held",)

    def __init__(self) -> None:
        super().__init__()
        self._held: dict[bytes, Node] = {}

    def get(self, key: bytes) -> Node | None:
        return self._held.get(key) or super().get(key)

    def known(self) -> list[Node]:
        return list({*list(self._held.values()), *super().known()})

    def put(self, key: bytes, node: Node) -> None:
        if self._held.get(key) is not node:
            self._held.pop(key, None)
            super().put(key, node)

    def drop(self, key: bytes, node: Node) -> None:
        if self._held.get(key) is node:
            del self._held[key]
        super().drop(key, node)

    def hold(self, node: Node) -> None:
        """Reference a node directly, because the front holds it from now on."""
        name = node.name
        if super().get(name) is node:
            self._held[name] = node
            self._references.pop(name, None)

    @property
    def holds_any(self) -> bool:
        """Whether a node is referenced directly."""
        return bool(self._held)

    def release(self, node: Node) -> None:
        """Reference a node weakly again, because the front does not hold it any more."""
        name = node.name
        if self._held.get(name) is node:
            self._references[name] = ref(node)
            del self._held[name]


def _statx(held: Descriptor, name: bytes) -> Statx:
    return syscalls.statx(held.fd, name)


class DirNode(Node):
    """A directory: one real directory, or several merged.

    `lowers` are its lower directories, topmost first. `redirect` is the upper's `overlay.redirect`, if the
    directory was renamed. `sources` is the upper (if any), then the lowers, and `keys` are the (device, inode)
    of each. `watched` says whether changes behind the view are noticed here (None: not tried), see
    `external_changes`. `name_table` is the table of the names in `lowers`, and `lookups` the number of lookups without
    one, see `lower_names`.
    """

    __slots__ = ("children", "keys", "lookups", "lowers", "name_table", "redirect", "sources", "upper", "watched")

    def __init__(
        self,
        parent: DirNode | None,
        name: bytes,
        sources: tuple[LayerDir, ...],
        status: os.stat_result,
        ino: int,
        redirect: bytes | None = None,
        keys: tuple[Key, ...] | None = None,
    ) -> None:
        super().__init__(parent, name, stat.S_IFDIR, ino, key_of(status))
        self.keys = keys or (self.key,)
        self.watched: bool | None = None
        self.name_table: NameTable | None = None
        self.lookups = 0
        self.sources = sources
        self.upper = next((source for source in sources if isinstance(source, UpperDir)), None)
        self.lowers = tuple(source for source in sources if isinstance(source, LowerDir))
        self.redirect = redirect
        self.children = Children()

    @property
    def in_upper(self) -> bool:
        return self.upper is not None

    @property
    def layer(self) -> Layer:
        return self.sources[0].layer

    def front(self) -> Descriptor:
        """Return the topmost real directory, open. ESTALE if another directory is there now."""
        return self.anchor or self.sources[0].open()

    def stat(self) -> os.stat_result:
        return self.pin().stat() if self.sources[0].layer.may_stall else os.fstat(self.front().fd)

    def statx(self) -> Statx:
        front = self.front()
        return questions.ask(_statx, front, b"") if self.sources[0].layer.may_stall else _statx(front, b"")

    def pin(self) -> Pinned:
        return self.pinned(Pinned.opened(self.front()))

    def attrs_on_disk(self, status: os.stat_result) -> Attrs:
        # find(1) derives the number of subdirectories from a link count above 2; 1 means "do not count". The kernel's
        # overlayfs also reports 1 for merged directories (fs/overlayfs/inode.c, ovl_getattr).
        nlink = 0 if self.gone else 1 if len(self.sources) > 1 else status.st_nlink
        return Attrs.of(status, self.ino, nlink)

    def copied_up(self, upper: UpperDir) -> None:
        """Put `upper`, which was just created, in front of the lowers."""
        assert upper.key is not None
        self.upper = upper
        self.sources = (upper, *self.lowers)
        self.key = upper.key
        self.keys = (upper.key, *self.keys)
        self.watched = None
