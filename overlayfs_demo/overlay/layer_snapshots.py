"""Read-only snapshots of the view: as it was before each layer was added, and what that layer hides.

With `Stack.time_machine` the view's root has one more directory, which can be looked up but is never listed:

    .layers/N/only      layer N alone, as it is on disk: whiteouts are character devices 0/0
    .layers/N/upto      layer N merged with the layers below it
    .layers/N/hidden    what the layers below N show and N hides
    .layers/upper/...   the same for the upper (except `upto`, which is the view itself)

Each of these is a separate tree on the layers of the live one, made when it is first looked up. It has no upper,
so it is read-only. It shares no nodes with other trees, and its inode numbers differ from all others: find(1) reports
a loop if a directory has the same number as one above it, and cp(1) refuses to copy a file onto itself.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import count
from weakref import WeakKeyDictionary

from overlayfs_demo.linux.failure import failure
from overlayfs_demo.overlay import listing
from overlayfs_demo.overlay.layer import Descriptor, Layer, LayerDir, LowerDir, Marks
from overlayfs_demo.overlay.listing import Listed, Snapshot
from overlayfs_demo.overlay.lookup import judge
from overlayfs_demo.overlay.merge import Says
from overlayfs_demo.overlay.node import DirNode, Node
from overlayfs_demo.overlay.tree import Completed, Tree
from overlayfs_demo.overlay.types import Attrs
from overlayfs_demo.overlay.whiteout import PrivateXattrs

NAME = b".layers"

# Real inode numbers do not reach this bit on all but the largest filesystems; the bits from here on number the trees.
_TREE_SHIFT = 40
# A namespace that no attribute has: a layer shown alone also shows its overlay attributes.
_NOTHING_PRIVATE = PrivateXattrs("none")


class LayerSnapshots:
    """The trees beside a live one, whose lock they share. Call all methods with the lock held.

    `layers` are those in which the live tree looks names up, topmost first, including the upper; `data_layers` are
    below them.
    """

    def __init__(self, live: Tree, layers: Sequence[Layer], data_layers: Sequence[Layer]) -> None:
        self._live = live
        self._layers = layers
        self._data_layers = data_layers
        self._serial = count(1)
        # By its root directory: the tree that everything below that directory belongs to.
        self._trees: WeakKeyDictionary[DirNode, Tree] = WeakKeyDictionary()
        numbers = range(len(layers) + len(data_layers) - bool(live.upper), len(data_layers), -1)
        names = [*([b"upper"] if live.upper else []), *[b"%d" % number for number in numbers]]
        shelves = {name: partial(self._shelf, place) for place, name in enumerate(names)}
        live.beside[NAME] = self._begin(_Shelf(live, next(self._serial), layers[0], shelves), live.root, NAME)

    def tree_of(self, node: Node) -> Tree:
        """Return the tree that a node belongs to."""
        above: Node | None = node
        while above is not None:
            if isinstance(above, DirNode) and (tree := self._trees.get(above)) is not None:
                return tree
            above = above.parent
        return self._live

    def split(self, path: bytes) -> tuple[Tree, bytes]:
        """Return the tree that an absolute path leads into, and the path in that tree. Raises OSError."""
        tree, inside = self._live, path
        names = [name for name in path.split(b"/") if name]
        node: Node = tree.root
        for depth, name in enumerate(names[:3]):
            if names[0] != NAME or not isinstance(node, DirNode):
                break
            node = tree.find(node, name)[0]
            tree, inside = self.tree_of(node), b"/" + b"/".join(names[depth + 1 :])
        return tree, inside

    def _begin(self, tree: Tree, above: DirNode, name: bytes) -> DirNode:
        root = tree.root
        root.parent, root.name = above, name
        self._trees[root] = tree
        return root

    def _shelf(self, place: int, above: DirNode, name: bytes) -> DirNode:
        """Return the directory with the trees of one layer, given its position in `layers`."""
        layer, below = self._layers[place], self._layers[place + 1 :]
        trees: dict[bytes, Callable[[int], Tree]] = {
            b"only": lambda number: _Past(self._live, number, [_Alone(layer)], (), _NOTHING_PRIVATE),
            b"upto": lambda number: _Past(self._live, number, [layer, *below], self._data_layers),
            b"hidden": lambda number: _Hidden(self._live, number, layer, below, self._data_layers),
        }
        if layer.is_upper:
            del trees[b"upto"]
        if not below:
            del trees[b"hidden"]
        entries = {entry: partial(self._enter, make) for entry, make in trees.items()}
        return self._begin(_Shelf(self._live, next(self._serial), layer, entries), above, name)

    def _enter(self, make: Callable[[int], Tree], above: DirNode, name: bytes) -> DirNode:
        return self._begin(make(next(self._serial)), above, name)


class _Alone(Layer):
    """A layer shown as it is on disk: no mark in it has a meaning. The original layer still owns the root."""

    __slots__ = ()

    def __init__(self, layer: Layer) -> None:
        for name in Layer.__slots__:
            setattr(self, name, getattr(layer, name))
        # Not the upper: nothing can be changed here.
        self.depth, self.image_dialect, self.last = 1, False, True

    def hides(self, name: bytes, status: os.stat_result, parent: LayerDir) -> bool:
        return False

    def is_metacopy(self, name: bytes, status: os.stat_result, parent: LayerDir) -> bool:
        return False

    def read_marks(self, directory: Descriptor) -> Marks:
        return Marks(opaque=False, has_xattr_whiteouts=False, redirect=None, impure=False)


class _Past(Tree):
    """A tree without an upper, on layers of the live tree."""

    def __init__(
        self,
        live: Tree,
        number: int,
        layers: Sequence[Layer],
        data_layers: Sequence[Layer] = (),
        xattrs: PrivateXattrs | None = None,
    ) -> None:
        self._salt = number << _TREE_SHIFT
        xattrs = xattrs or live.xattrs
        super().__init__(layers, data_layers, None, xattrs, live.origins, None, live.ownership, live.hooks)
        self.lock = live.lock

    def identity_of(self, ino: int, device: int) -> int:
        return super().identity_of(ino, device) ^ self._salt


_Make = Callable[[DirNode, bytes], DirNode]


class _Shelf(_Past):
    """A directory that holds the roots of other trees. It has the attributes of the root of `layer`."""

    def __init__(self, live: Tree, number: int, layer: Layer, entries: Mapping[bytes, _Make]) -> None:
        super().__init__(live, number, [layer])
        self._entries = entries
        self._made: dict[bytes, DirNode] = {}

    def find(self, parent: DirNode, name: bytes) -> tuple[Node, Attrs]:
        if name not in self._entries:
            raise failure(errno.ENOENT, name)
        if name not in self._made:
            self._made[name] = self._entries[name](parent, name)
        node = self._made[name]
        return node, self.attrs(node, node.stat())

    def find_listed(self, parent: DirNode, listed: Listed, current: bool) -> Completed:
        return self.find(parent, listed.name)

    def snapshot(self, node: DirNode, at_most: int = sys.maxsize, *, quietly: bool = False) -> Snapshot:
        source = node.sources[0]
        names = {name: Listed(name, stat.S_IFDIR, 0, source, certain=False) for name in self._entries}
        return Snapshot(names, node.sources, 0)


class _Hidden(_Past):
    """The merged layers `below`, restricted to what the layer `over` hides or replaces."""

    def __init__(
        self, live: Tree, number: int, over: Layer, below: Sequence[Layer], data_layers: Sequence[Layer]
    ) -> None:
        super().__init__(live, number, below, data_layers)
        root = LowerDir(over, b"")
        # The directories that both sides share, with that of `over`. In any other directory everything is hidden.
        self._over: WeakKeyDictionary[DirNode, LayerDir] = WeakKeyDictionary()
        if not root.marks.opaque:
            self._over[self.root] = root

    def find(self, parent: DirNode, name: bytes) -> tuple[Node, Attrs]:
        node, attrs = super().find(parent, name)
        over = self._over.get(parent)
        says, shared = _said(over, name) if over is not None else (Says.WHITEOUT, None)
        hidden = says is not Says.ABSENT
        if isinstance(node, DirNode):
            if shared is None:
                self._over.pop(node, None)
            else:
                self._over[node] = shared
                hidden = self._hides(node, shared)
        if not hidden:
            raise failure(errno.ENOENT, name)
        return node, attrs

    def find_listed(self, parent: DirNode, listed: Listed, current: bool) -> Completed:
        return super().find_listed(parent, listed, False)

    def snapshot(self, node: DirNode, at_most: int = sys.maxsize, *, quietly: bool = False) -> Snapshot:
        found = super().snapshot(node, at_most, quietly=quietly)
        if node not in self._over:
            return found
        return found._replace(
            names={name: listed for name, listed in found.names.items() if self.find_listed(node, listed, False)}
        )

    def _hides(self, node: DirNode, over: LayerDir) -> bool:
        """Whether the layer hides anything below a directory that it shares. Not recursive: such trees may be deep."""
        waiting = [(node, over)]
        while waiting:
            node, over = waiting.pop()
            for name in listing.merged_names(node.sources):
                says, shared = _said(over, name)
                if says is Says.ABSENT:
                    continue
                try:
                    child = super().find(node, name)[0]
                except OSError:
                    return True  # It exists, although it cannot be looked up.
                if shared is None or not isinstance(child, DirNode):
                    return True
                waiting.append((child, shared))
        return False


def _said(over: LayerDir, name: bytes) -> tuple[Says, LayerDir | None]:
    """Return what a layer says about a name, and its directory there if that merges with the same name below."""
    answer = judge(over, name, over.stat(name))
    directory = answer.part.directory if answer.part and answer.says is Says.DIRECTORY else None
    # A renamed directory merges with one of another name, and hides the one of this name.
    shared = directory if directory is not None and directory.marks.redirect in (None, name) else None
    return answer.says, shared
