"""Which user and group does a number on disk stand for in the view, and the other way round?

The options and their meaning are fuse-overlayfs's (fuse-overlayfs(1), "uidmapping", "squash_to_root"): a
mapping translates in both directions, a squash is for show only. What has no mapping is shown as the
overflow id and cannot be given to a file, as with idmapped mounts (mount_setattr(2)).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from overlayfs_demo.overlay.acl import ENTRY, GROUP, HEAD, USER

# /proc/sys/kernel/overflowuid, as it comes.
OVERFLOW = 65534


class Range(NamedTuple):
    """`length` ids, which begin with `disk` on disk and with `view` in the view."""

    disk: int
    view: int
    length: int


class UnmappedError(Exception):
    """An id of the view stands for none on disk."""


@dataclass(frozen=True, slots=True)
class IdMap:
    """The ids of users, or those of groups. Without `ranges` each id is itself; `squash` is shown for all."""

    ranges: tuple[Range, ...] = ()
    squash: int | None = None

    def shown(self, disk: int) -> int:
        """The id that the view shows."""
        if self.squash is not None:
            return self.squash
        if not self.ranges:
            return disk
        return next((one.view + disk - one.disk for one in self.ranges if 0 <= disk - one.disk < one.length), OVERFLOW)

    def stored(self, view: int) -> int:
        """The id that stands for it on disk. Raises UnmappedError."""
        if not self.ranges:
            return view
        for one in self.ranges:
            if 0 <= view - one.view < one.length:
                return one.disk + view - one.view
        raise UnmappedError


@dataclass(frozen=True, slots=True)
class Ids:
    """Both kinds."""

    users: IdMap = IdMap()
    groups: IdMap = IdMap()

    def __bool__(self) -> bool:
        return self != AS_ON_DISK

    def shown_acl(self, acl: bytes) -> bytes:
        """A POSIX ACL (include/uapi/linux/posix_acl_xattr.h) as the view shows it."""
        return acl[: HEAD.size] + b"".join(
            ENTRY.pack(tag, permissions, which.shown(number) if which else number)
            for tag, permissions, number, which in self._entries(acl)
        )

    def stored_acl(self, acl: bytes) -> bytes:
        """The inverse. Raises UnmappedError."""
        return acl[: HEAD.size] + b"".join(
            ENTRY.pack(tag, permissions, which.stored(number) if which else number)
            for tag, permissions, number, which in self._entries(acl)
        )

    def _entries(self, acl: bytes) -> Iterator[tuple[int, int, int, IdMap | None]]:
        """Each entry, and what its id is one of."""
        kinds = {USER: self.users, GROUP: self.groups}
        whole = (len(acl) - HEAD.size) // ENTRY.size * ENTRY.size
        for tag, permissions, number in ENTRY.iter_unpack(acl[HEAD.size : HEAD.size + max(whole, 0)]):
            yield tag, permissions, number, kinds.get(tag)


AS_ON_DISK = Ids()
ALL_ROOT = Ids(IdMap(squash=0), IdMap(squash=0))


def parse_ranges(text: str) -> tuple[Range, ...]:
    """Read DISK:VIEW:LENGTH[:DISK:VIEW:LENGTH...]. Raises ValueError, with what is wrong."""
    words = text.split(":")
    if len(words) % 3 or not all(word.isascii() and word.isdigit() for word in words):
        raise ValueError("the form is DISK:VIEW:LENGTH[:DISK:VIEW:LENGTH...]")
    numbers = [int(word) for word in words]
    ranges = [Range(*numbers[start : start + 3]) for start in range(0, len(numbers), 3)]
    for one in ranges:
        if not one.length or max(one.disk, one.view) + one.length > 2**32 - 1:
            raise ValueError(f"{one.disk}:{one.view}:{one.length} is empty or goes beyond the largest id")
    for column in (0, 1):
        ordered = sorted(ranges, key=lambda one: one[column])
        for below, above in pairwise(ordered):
            if below[column] + below.length > above[column]:
                raise ValueError(f"{above[column]} is in two ranges")
    return tuple(ranges)
