"""Translation of user and group ids between the disk and the view.

The options and their meaning are those of fuse-overlayfs (fuse-overlayfs(1), "uidmapping", "squash_to_root"): a
mapping translates in both directions, a squash changes only what is shown. An id without a mapping is shown as the
overflow id and cannot be given to a file, as with idmapped mounts (mount_setattr(2)).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from overlayfs_demo.named_tuple import NamedTuple
from overlayfs_demo.overlay.acl import ENTRY, GROUP, HEAD, USER

# The default of /proc/sys/kernel/overflowuid.
OVERFLOW = 65534


class Range(NamedTuple):
    """`length` ids that start at `disk` on disk and at `view` in the view."""

    disk: int
    view: int
    length: int


class UnmappedError(Exception):
    """An id of the view has no counterpart on disk."""


class IdMap(NamedTuple):
    """The mapping of user ids, or of group ids.

    Without `ranges`, ids are the same on both sides. `squash`, if set, is shown for all ids.
    """

    ranges: tuple[Range, ...] = ()
    squash: int | None = None

    def shown(self, disk: int) -> int:
        """Return the id that the view shows."""
        if self.squash is not None:
            return self.squash
        if not self.ranges:
            return disk
        return next((ids.view + disk - ids.disk for ids in self.ranges if 0 <= disk - ids.disk < ids.length), OVERFLOW)

    def stored(self, view: int) -> int:
        """Return the id on disk for one of the view. Raises UnmappedError."""
        if not self.ranges:
            return view
        for ids in self.ranges:
            if 0 <= view - ids.view < ids.length:
                return ids.disk + view - ids.view
        raise UnmappedError


class Ids(NamedTuple):
    """The mappings of user and group ids."""

    users: IdMap = IdMap()
    groups: IdMap = IdMap()

    def __bool__(self) -> bool:
        return self != AS_ON_DISK

    def shown_acl(self, acl: bytes) -> bytes:
        """Translate a POSIX ACL (include/uapi/linux/posix_acl_xattr.h) from the disk to the view."""
        return acl[: HEAD.size] + b"".join(
            ENTRY.pack(tag, permissions, mapping.shown(number) if mapping else number)
            for tag, permissions, number, mapping in self._entries(acl)
        )

    def stored_acl(self, acl: bytes) -> bytes:
        """Translate a POSIX ACL from the view to the disk. Raises UnmappedError."""
        return acl[: HEAD.size] + b"".join(
            ENTRY.pack(tag, permissions, mapping.stored(number) if mapping else number)
            for tag, permissions, number, mapping in self._entries(acl)
        )

    def _entries(self, acl: bytes) -> Iterator[tuple[int, int, int, IdMap | None]]:
        """Yield each entry: tag, permissions, id, and the mapping for the id (None if the tag has no id)."""
        kinds = {USER: self.users, GROUP: self.groups}
        whole = (len(acl) - HEAD.size) // ENTRY.size * ENTRY.size
        for tag, permissions, number in ENTRY.iter_unpack(acl[HEAD.size : HEAD.size + max(whole, 0)]):
            yield tag, permissions, number, kinds.get(tag)


AS_ON_DISK = Ids()
ALL_ROOT = Ids(IdMap(squash=0), IdMap(squash=0))


def parse_ranges(text: str) -> tuple[Range, ...]:
    """Parse DISK:VIEW:LENGTH[:DISK:VIEW:LENGTH...]. Raises ValueError, which says what is wrong."""
    words = text.split(":")
    if len(words) % 3 or not all(word.isascii() and word.isdigit() for word in words):
        raise ValueError("the form is DISK:VIEW:LENGTH[:DISK:VIEW:LENGTH...]")
    numbers = [int(word) for word in words]
    ranges = [Range(*numbers[start : start + 3]) for start in range(0, len(numbers), 3)]
    for ids in ranges:
        if not ids.length or max(ids.disk, ids.view) + ids.length > 2**32 - 1:
            raise ValueError(f"{ids.disk}:{ids.view}:{ids.length} is empty or exceeds the largest ID")
    for column in (0, 1):
        ordered = sorted(ranges, key=lambda ids: ids[column])
        for below, above in pairwise(ordered):
            if below[column] + below.length > above[column]:
                raise ValueError(f"{above[column]} is in two ranges")
    return tuple(ranges)
