"""The name tables of one mount: when one is made, when it may be trusted, and how many are kept.

Each lookup in a directory merged from many lowers would ask each of them, and each listing would read them all.
A table answers for the lowers, as long as every change of their names is noticed. The upper is always asked itself,
because it changes with the view.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from weakref import ref

from overlayfs_demo.linux import syscalls
from overlayfs_demo.named_tuple import NamedTuple
from overlayfs_demo.overlay.layer import LayerDir
from overlayfs_demo.overlay.listing import TooManyNamesError
from overlayfs_demo.overlay.name_table import NameTable
from overlayfs_demo.overlay.node import DirNode

# The most entries in all tables of a mount. Each takes 100 to 300 bytes.
_MOST_ENTRIES = 250_000
# What a table takes besides its entries, as a number of entries.
_TABLE = 10
# A table is made at this number of lookups, or at a multiple (a power of two) if there are many names: it reads at most
# this many entries for each question that a lookup had for a lower. Reading one takes a fraction of a question's time.
_FEW = 8
_ENTRIES_PER_QUESTION = 4
# A number of lookups after which no more tables are tried.
_NEVER = -(1 << 62)
# The magic numbers of filesystems that list every name they have, from <linux/magic.h>. Others may have names that are
# found but never listed (such as .zfs), or are changed by other machines.
_LISTING_ALL = {
    0xEF53,  # ext2, ext3, ext4
    0x58465342,  # xfs
    0x9123683E,  # btrfs
    0xF2F52010,  # f2fs
    0xCA451A4E,  # bcachefs
    0x01021994,  # tmpfs
    0x858458F6,  # ramfs
    0x794C7630,  # overlayfs
    0x73717368,  # squashfs
    0xE0F5E1E2,  # erofs
}


class _Kept(NamedTuple):
    """A table, which its directory holds, and how many entries it counts for."""

    node: ref[DirNode]
    table: ref[NameTable]
    size: int


class LowerNames:
    """The tables of one tree. Call all methods with the tree's lock held."""

    __slots__ = ("_is_noticed", "_kept", "_list_all", "_size")

    def __init__(self, is_noticed: Callable[[DirNode], bool]) -> None:
        """Begin. `is_noticed` returns whether all changes in the lowers of a directory were noticed so far."""
        self._is_noticed = is_noticed
        self._kept: deque[_Kept] = deque()
        self._size = 0
        self._list_all: dict[int, bool] = {}

    def for_lookup(self, node: DirNode) -> NameTable | None:
        """Return the directory's table if there is one, or should be by now, and it is true."""
        if node.name_table is not None:
            return self._known(node)
        node.lookups += 1
        if node.lookups < _FEW or node.lookups & (node.lookups - 1):
            return None
        return self._make(node, _MOST_ENTRIES, node.lookups * len(node.lowers) * _ENTRIES_PER_QUESTION)

    def for_listing(self, node: DirNode, at_most: int) -> NameTable | None:
        """Return the directory's table if it is true. If there is none, make one with at most this many names."""
        if node.name_table is not None:
            return self._known(node)
        return self._make(node, at_most, _MOST_ENTRIES) if node.lookups >= 0 else None

    def drop(self, node: DirNode) -> None:
        """Forget the directory's table, because something changed in its lowers."""
        node.name_table = None
        node.lookups = 0

    def drop_all(self) -> None:
        """Forget all tables."""
        while self._kept:
            self._evict(self._kept.popleft())

    def _known(self, node: DirNode) -> NameTable | None:
        table = node.name_table
        if table is None or table.lowers is not node.lowers:  # The directory was merged again, from other lowers.
            self.drop(node)
            return None
        if not self._is_noticed(node):
            return None
        table.is_used = True
        return table

    def _make(self, node: DirNode, at_most: int, most_entries: int) -> NameTable | None:
        """Make a table, or return None if that is not possible."""
        if not self._is_noticed(node):
            return None
        try:
            if not all(map(self._suits, node.lowers)):
                node.lookups = _NEVER
                return None
            table = NameTable(node.lowers, at_most, min(most_entries, _MOST_ENTRIES))
        except TooManyNamesError:
            if min(at_most, most_entries) >= _MOST_ENTRIES:
                node.lookups = _NEVER
            return None
        except OSError:
            return None  # Anyone who asks the lowers themselves is told of the error.
        self._keep(node, table)
        return table

    def _suits(self, lower: LayerDir) -> bool:
        """Whether a name that the directory does not list is not there. Raises OSError."""
        # Without a private mount, other filesystems may be mounted inside a layer.
        device = lower.layer.device if lower.key is None else lower.key[0]
        descriptor = lower.open()
        if device not in self._list_all:
            self._list_all[device] = not lower.layer.may_stall and (
                syscalls.filesystem_magic(descriptor.fd) in _LISTING_ALL
            )
        return self._list_all[device] and not syscalls.folds_case(descriptor.fd)

    def _keep(self, node: DirNode, table: NameTable) -> None:
        """Give the directory its table. If there are too many entries now, the tables not used lately go."""
        node.name_table = table
        kept = _Kept(ref(node), ref(table), table.size + _TABLE)
        self._kept.append(kept)
        self._size += kept.size
        while self._size > _MOST_ENTRIES:
            oldest = self._kept.popleft()
            held = oldest.table()
            if held is not None and held.is_used and oldest is not kept:
                held.is_used = False
                self._kept.append(oldest)
            else:
                self._evict(oldest)

    def _evict(self, kept: _Kept) -> None:
        self._size -= kept.size
        node, table = kept.node(), kept.table()
        if node is not None and table is not None and node.name_table is table:
            self.drop(node)
