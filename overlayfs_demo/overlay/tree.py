"""The tree of nodes: one node for each file of the view.

The tree turns the result of a lookup into a node, the same one as before if it is still the same file,
and gives every file an inode number that it keeps across copy-up and remount.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import threading
from collections.abc import Sequence

from overlayfs_demo.linux import proc, xattr
from overlayfs_demo.linux.failure import failure
from overlayfs_demo.overlay import interruption, questions, revalidate
from overlayfs_demo.overlay.budget import kept
from overlayfs_demo.overlay.hooks import Hooks
from overlayfs_demo.overlay.index import Index, IndexEntry
from overlayfs_demo.overlay.layer import Descriptor, Key, Layer, LayerDir, LowerDir, key_of
from overlayfs_demo.overlay.listing import Listed, Snapshot, is_empty, snapshot
from overlayfs_demo.overlay.lookup import Lookup, Part
from overlayfs_demo.overlay.lower_names import LowerNames
from overlayfs_demo.overlay.name_table import NameTable
from overlayfs_demo.overlay.node import Data, DirNode, FileNode, Node, WeakNodes
from overlayfs_demo.overlay.origin import Origins
from overlayfs_demo.overlay.ownership import Ownership
from overlayfs_demo.overlay.passed_writes import PassedWrites
from overlayfs_demo.overlay.pinned import Pinned, Way
from overlayfs_demo.overlay.types import Attrs, Dirent
from overlayfs_demo.overlay.upper import Upper
from overlayfs_demo.overlay.whiteout import USER, PrivateXattrs

# The upper bits of an inode number tell the layers' filesystems apart, like the kernel's "xino".
_FILESYSTEM_SHIFT = 56

# A listed name after its lookup: its node; the entry as it was listed if the lookup fails; None if it has disappeared.
Completed = tuple[Node, Attrs] | Dirent | None


class Tree:
    """The nodes of one mount, and the state that all parts of the engine share.

    `lock` guards the nodes and all changes of names; it is held for short calls only, never while file
    data is copied. `upper` is None for a read-only mount. `lowers` are topmost first. `index` is None if a copy-up
    breaks hard links. `lower_names` is None unless all changes of the lowers are noticed. `beside` holds names in the
    root that no layer has and that are never listed. `hooks` are the front's. `passed_writes` are the files that are
    written past the engine. `may_stall`: one of the layers may.
    """

    __slots__ = (
        "_claims",
        "_devices",
        "_linked",
        "beside",
        "hooks",
        "index",
        "lock",
        "lookup",
        "lower_names",
        "lowers",
        "may_stall",
        "origins",
        "ownership",
        "passed_writes",
        "root",
        "upper",
        "xattrs",
    )

    def __init__(
        self,
        lowers: Sequence[Layer],
        data_layers: Sequence[Layer],
        upper: Upper | None,
        xattrs: PrivateXattrs,
        origins: Origins,
        index: Index | None,
        ownership: Ownership,
        hooks: Hooks,
    ) -> None:
        self.lowers = tuple(lowers)
        self.upper = upper
        self.xattrs = xattrs
        self.lock = threading.RLock()
        self.lookup = Lookup(lowers, data_layers)
        self.lower_names: LowerNames | None = None
        self.origins = origins
        self.index = index
        self.ownership = ownership
        self.hooks = hooks
        layers = [*([upper.layer] if upper else []), *lowers, *data_layers]
        self.may_stall = any(layer.may_stall for layer in (*lowers, *data_layers))
        self._devices: dict[int, int] = {}
        for layer in layers:
            self._devices.setdefault(layer.device, len(self._devices))
        # Lower files with several names, and all files of the upper, which may get more names behind the view. Each
        # has one node, whichever name led to it, so that the kernel has one inode for it. After a copy-up it is also
        # found by the key of the lower file.
        self._linked: WeakNodes[Key, FileNode] = WeakNodes()
        # By the inode number of a lower object: the upper's object that is shown with it.
        self._claims: dict[int, int] = {}
        self.beside: dict[bytes, DirNode] = {}
        self.passed_writes = PassedWrites()
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
        """Return the upper. Raises EROFS for a mount without one."""
        if self.upper is None:
            raise failure(errno.EROFS)
        return self.upper

    def attrs(self, node: Node, status: os.stat_result) -> Attrs:
        """Return the node's attributes as the view shows them, given the real ones. Call with `lock` held.

        All attributes leave the engine through here.
        """
        return self.ownership.shown(node, node.attrs_on_disk(status))

    def know_attrs(self, node: Node, pinned: Pinned) -> None:
        """Get to know what `attrs` will ask layers that may stall, because after a change it is too late for that."""
        if self.may_stall:
            self.attrs(node, pinned.stat())

    def identity(self, status: os.stat_result) -> int:
        """Return the inode number that the view shows for a real file."""
        return self.identity_of(status.st_ino, status.st_dev)

    def identity_of(self, ino: int, device: int) -> int:
        """Return the view's inode number for a real one on the given device."""
        filesystem = self._devices.setdefault(device, len(self._devices))
        return ino ^ filesystem << _FILESYSTEM_SHIFT if filesystem else ino

    def claim(self, ino: int, key: Key) -> bool:
        """Give the upper's object `key` the inode number of the lower object it came from.

        Return False if another object has it: anyone who copies files inside an upper may copy their origins as well.
        """
        return self._claims.setdefault(ino, key[1]) == key[1]

    def hand_over(self, ino: int, key: Key) -> None:
        """Give the upper's object `key` the inode number of the object whose place it took."""
        self._claims[ino] = key[1]

    def _inherited(self, status: os.stat_result, lower: os.stat_result) -> int:
        """Return the inode number of an upper object that came from a lower one: the lower's if it is free."""
        ino = self.identity(lower)
        return ino if self.claim(ino, key_of(status)) else self.identity(status)

    def find(self, parent: DirNode, name: bytes) -> tuple[Node, Attrs]:
        """Return the node called `name` in `parent`, and its attributes. Raises ENOENT. Call with `lock` held."""
        if parent.gone:
            raise failure(errno.ENOENT, name)
        parts = self.lookup.find(parent.sources, name, self._table(parent))
        if not parts:
            if parent is self.root and name in self.beside:
                found = self.beside[name]
                return found, self.attrs(found, found.stat())
            known = parent.children.get(name)
            if known is not None:
                revalidate.displace(known, parent, name)
            raise failure(errno.ENOENT, name)
        return self._settle(parent, name, parts)

    def find_listed(self, parent: DirNode, listed: Listed, current: bool) -> Completed:
        """Like `find`, for a name that was listed. `current`: no name in `parent` was changed since."""
        try:
            return self._find_listed(parent, listed, current)
        except FileNotFoundError:
            return None
        except OSError:
            return self._as_listed(listed)

    def dirent(self, parent: DirNode, listed: Listed) -> Dirent | None:
        """Return the directory entry of a name that was listed, or None if it has disappeared since."""
        if listed.certain:
            return self._as_listed(listed)
        found = self.find_listed(parent, listed, False)
        if found is None or isinstance(found, Dirent):
            return found
        return Dirent(listed.name, found[0].kind, found[0].ino)

    def _as_listed(self, listed: Listed) -> Dirent:
        return Dirent(listed.name, listed.kind, self.identity_of(listed.ino, listed.source.layer.device))

    def _find_listed(self, parent: DirNode, listed: Listed, current: bool) -> tuple[Node, Attrs]:
        name, kind, _, source, _ = listed
        if current and kind != stat.S_IFDIR:
            status = source.stat(name)
            known = status is not None and stat.S_IFMT(status.st_mode) == kind
            if known and status is not None and not source.layer.is_metacopy(name, status, source):
                return self._settle(parent, name, (Part(source, name, status, None),))
        return self.find(parent, name)

    def _settle(self, parent: DirNode, name: bytes, parts: Sequence[Part]) -> tuple[Node, Attrs]:
        """Return the node for what was found as `name`: the known one if it is still the same file, else a new one."""
        status = parts[0].status
        if parts[0].metacopy and len(parts) == 1 and not self.lookup.may_lack_data(parent.sources, name):
            raise failure(errno.EIO, name)
        known = node = parent.children.get(name)
        if node is None or not revalidate.follow(node, parts):
            if stat.S_ISDIR(status.st_mode):
                node = self._make_directory(parent, name, parts)
            else:
                node = self._make_file(parent, name, parts)
            if known is not None and known is not node:
                revalidate.displace(known, parent, name)
            parent.children.put(name, node)
            if node.key != key_of(status):
                status = node.stat()  # This name leads to a lower file that was copied up under another name.
        if parts[0].metacopy and isinstance(node, FileNode) and node.key == key_of(parts[0].status):
            node.metacopy, node.data = True, _data_of(parts)
        return node, self.attrs(node, status)

    def open(self, node: FileNode, flags: int) -> int:
        """Open a regular file's data; the caller owns the descriptor. Raises OSError, ESTALE.

        Call without `lock`: opening a file of a layer may take long, and other callers must not wait for it.
        """
        while True:
            with self.lock:
                where, way = node.where, node.way()
            try:
                return self._open(way, flags) if node.place.layer.may_stall else way.open(flags)
            except OSError as error:
                # The file may have been renamed or copied up in the meantime: then try again.
                if error.errno != errno.ESTALE or node.where == where:
                    raise

    def _open(self, way: Way, flags: int) -> int:
        """Open a file of a layer that may stall. The caller may leave meanwhile: then raises EINTR."""
        call = interruption.current()
        with call:
            fd = way.open(flags)
        return kept(fd, lambda _: call.check())

    def snapshot(self, node: DirNode, at_most: int = sys.maxsize, *, quietly: bool = False) -> Snapshot:
        """Return the names in a directory. Raises TooManyNamesError if there are more than `at_most`."""
        return snapshot(node.sources, at_most, quietly=quietly, below=self._listed(node, at_most))

    def is_empty(self, node: DirNode) -> bool:
        """Return whether a directory has no names in the view. Raises OSError."""
        return is_empty(node.sources, self._listed(node, 0))

    def _listed(self, node: DirNode, at_most: int) -> dict[bytes, Listed] | None:
        """Return the names that the directory's lowers show, if there is a table of them now."""
        if self.lower_names is None or len(node.lowers) < 2:
            return None
        table = self.lower_names.for_listing(node, at_most)
        return None if table is None else table.listed

    def _table(self, parent: DirNode) -> NameTable | None:
        """Return the table of the directory's lowers for a lookup, if there is one."""
        if self.lower_names is None or len(parent.lowers) < 2:
            return None
        return self.lower_names.for_lookup(parent)

    def child(self, parent: DirNode, name: bytes) -> Node | None:
        """Return the node called `name`, or None. Call with `lock` held."""
        try:
            return self.find(parent, name)[0]
        except FileNotFoundError:
            return None

    def _make_directory(self, parent: DirNode, name: bytes, parts: Sequence[Part]) -> DirNode:
        sources = tuple(part.directory for part in parts if part.directory)
        first = sources[0]
        redirect = first.marks.redirect if first.layer.is_upper else None
        status = parts[0].status
        merged = first.layer.is_upper and len(parts) > 1
        ino = self._inherited(status, parts[1].status) if merged else self.identity(status)
        return DirNode(parent, name, sources, status, ino, redirect, revalidate.keys_of(parts))

    def _make_file(self, parent: DirNode, name: bytes, parts: Sequence[Part]) -> FileNode:
        part = parts[0]
        status = part.status
        linked = status.st_nlink > 1
        in_upper = part.place.layer.is_upper
        if linked or in_upper:
            known = self._linked.get(key_of(status))
            if known is not None and known.kind == stat.S_IFMT(status.st_mode) and _is_alive(known):
                self._meet(known, parent, name, part)
                return known
        lower: os.stat_result | None = status
        if in_upper:
            origin, lower = self._origin(part)
        else:
            origin = self.linked_origin(part) if linked else None
        entry = self.index.find(origin, stat.S_IFMT(status.st_mode)) if self.index and origin else None
        if entry and (not in_upper or key_of(entry.status) == key_of(status)):
            node = self._from_index(parent, name, parts, entry, lower)
        else:
            ino = self.identity(status)
            # Other names of a hard-linked lower file may show the lower file itself, or have another copy.
            if in_upper and lower and lower.st_nlink == 1 and not entry:
                ino = self._inherited(status, lower)
            node = FileNode(parent, name, part.place, part.name, status, ino)
        if in_upper or (linked and (origin or self.upper is None)):
            self.share(node, key_of(status))
        return node

    def _origin(self, part: Part) -> tuple[bytes | None, os.stat_result | None]:
        """Return the origin of an upper object, if it has one, and the status of the lower file, if that exists."""
        if not part.place.marks.impure:
            return None, None
        origin = xattr.get(proc.path_of(part.place.open().fd, part.name), self.xattrs.origin)
        decode = self.origins.decode
        lower = None
        if origin:
            lower = questions.ask(decode, origin) if self.may_stall else decode(origin)
        if lower is not None and stat.S_IFMT(lower.st_mode) != stat.S_IFMT(part.status.st_mode):
            return None, None  # The origin is wrong: a copy-up keeps the type (ovl_check_origin_fh).
        return origin, lower

    def linked_origin(self, part: Part) -> bytes | None:
        """Return the origin of a hard-linked lower file if its names stay together after a copy-up, else None."""
        return self.origin_of(part.place, part.name, part.status) if self.index else None

    def origin_of(self, place: LayerDir, name: bytes, status: os.stat_result) -> bytes | None:
        """Return the origin that a copy of this lower file gets.

        None where there are no file handles, and for a copy that could not hold it: symbolic links and special files
        have no attributes in `user.`, see xattr(7).
        """
        if self.xattrs is USER and not stat.S_ISREG(status.st_mode):
            return None
        return self.encode_origin(place.layer, place.open(), name)

    def encode_origin(self, layer: Layer, directory: Descriptor, name: bytes) -> bytes | None:
        """Return the origin of an object in a lower's directory, or of the directory itself, see `Origins.encode`."""
        if layer.may_stall:
            return questions.ask(_encode, self.origins, layer, directory, name)
        return self.origins.encode(layer, directory.fd, name)

    def _from_index(
        self, parent: DirNode, name: bytes, parts: Sequence[Part], entry: IndexEntry, lower: os.stat_result | None
    ) -> FileNode:
        """Return the node of the index's copy that `name` leads to, as a hard link in the upper or from a lower."""
        assert self.index is not None
        status = entry.status
        known = self._linked.get(key_of(status))
        if known is not None:
            self._meet(known, parent, name, parts[0])
            return known
        node = FileNode(parent, name, entry.place, entry.name, status, self.identity(lower or status))
        self.claim(node.ino, node.key)
        node.links = self.index.links(entry, lower.st_nlink if lower else None)
        if not parts[0].place.layer.is_upper and self.index.is_metacopy(entry):
            node.metacopy, node.data = True, _data_of(parts)
        self.share(node, node.key)
        return node

    def _meet(self, node: FileNode, parent: DirNode, name: bytes, part: Part) -> None:
        """Record that `name` led to a hard-linked file whose node is known already."""
        self.settle(node, parent, name)
        if node.links is not None and not part.place.layer.is_upper:
            node.links = node.links.met(part.status.st_nlink)

    def share(self, node: FileNode, key: tuple[int, int]) -> None:
        """Let every name of the file with the (device, inode) `key` lead to `node`."""
        self._linked.put(key, node)

    def prune(self, parent: DirNode, name: bytes, key: Key) -> None:
        """Remove what is left of a node that nothing holds any more, given the name and key that it had."""
        with self.lock:
            parent.children.prune(name)
            self._linked.prune(key)

    def settle(self, node: FileNode, parent: DirNode, name: bytes) -> None:
        """Give a node whose known name was removed the name that now led to it."""
        if node.gone:
            node.parent, node.name = parent, name
            node.anchor = None
            node.gone = False
            if node.links is None and parent.upper is not None:
                node.place, node.place_name = parent.upper, name
            self.hooks.moved(node)

    def loses_a_name(self, node: FileNode) -> bool:
        """Whether a lower file must be copied into the index before one of its names goes, so that the view can count
        the others."""
        return self.index is not None and not node.in_upper and self._linked.get(node.key) is node

    def below(self, parent: DirNode, name: bytes) -> tuple[Part, ...]:
        """Return what the lowers would show as `name` if the upper had nothing there. Raises OSError like `find`."""
        return self.lookup.find(parent.lowers, name, self._table(parent)) if parent.lowers else ()

    def covered(self, parent: DirNode, name: bytes) -> str:
        """Return the label of the lower layer that would show `name` if the upper had nothing there; "" if none."""
        try:
            parts = self.below(parent, name)
        except OSError:
            # A name that cannot be looked up exists all the same (fs/overlayfs/namei.c, ovl_lower_positive).
            return parent.lowers[0].layer.label
        return parts[0].place.layer.label if parts else ""


def _encode(origins: Origins, layer: Layer, directory: Descriptor, name: bytes) -> bytes | None:
    return origins.encode(layer, directory.fd, name)


def _is_alive(node: FileNode) -> bool:
    """Whether the node's object still exists. If not, another object may have its inode number by now."""
    if node.handles or node.anchor is not None:
        return True
    try:
        node.stat()
    except OSError:
        return False
    return True


def _data_of(parts: Sequence[Part]) -> Data | None:
    """Return where the data of a file with these parts is; None if no layer has it."""
    last = parts[-1]
    return None if last.metacopy else Data(last.place, last.name, key_of(last.status))
