"""The changes that a container's upper makes to its image; `diff` prints them, and `commit` writes them as a layer.

The image's view and the container's are two overlays, and `Differences` compares them directory by directory.
Everything in the upper counts as changed, even if it is the same as before: a file whose mode was changed and changed
back has been copied up, and the layer ships it. Docker itself disagrees here: `docker commit` writes whatever the upper
holds, but `docker diff` leaves out what has the same mode, owner, size and time as before. We follow the layer.

The views are compared, and not the upper's files, because an upper can express what a layer cannot: a renamed directory
brings its lower parts along, a metacopy has its data below, a hard link may exist only in the index. Sockets count as
absent, because no tar has them: a program that wants one makes it.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum

from overlayfs_demo.images.view_compare import find, in_upper, is_another, opened
from overlayfs_demo.named_tuple import NamedTuple
from overlayfs_demo.overlay.engine import Overlay
from overlayfs_demo.overlay.node import DirNode, Node
from overlayfs_demo.overlay.stack import Stack
from overlayfs_demo.overlay.types import Attrs


class Kind(Enum):
    """The kind of a change; the value is the letter that Docker prints."""

    ADDED = "A"
    CHANGED = "C"
    DELETED = "D"


class Change(NamedTuple):
    """One changed path, starting at the container's root."""

    kind: Kind
    path: bytes


@dataclass(frozen=True, slots=True)
class Member:
    """One name that a layer must list, because it is new or in the upper. `below` is None for a file."""

    kind: Kind
    name: bytes
    node: Node
    attrs: Attrs
    below: Differences | None


class Differences:
    """What the directory `new` of one view adds to, changes in or removes from the directory `old` of another.

    Without an `old`, everything is an addition. `replaced` says that it is below an opaque directory, where a layer
    must list every name. The caller keeps ownership of the views. Raises OSError.
    """

    def __init__(
        self, before: Overlay, old: DirNode | None, after: Overlay, new: DirNode, *, replaced: bool = False
    ) -> None:
        self._before, self._old = before, old
        self._after, self._new = after, new
        self._names = _names(after, new)
        # Nothing that was here before is visible: the directory was made again, or was renamed to this place.
        self.opaque = not replaced and old is not None and is_another(old, new)
        self._replaced = replaced or self.opaque
        # Names that are no longer there.
        self.gone = [] if old is None else sorted(set(_names(before, old)) - set(self._names))

    @property
    def whiteouts(self) -> list[bytes]:
        """The names that a layer must hide one by one."""
        return [] if self._replaced else self.gone

    def members(self) -> Iterator[Member]:
        """Yield what a layer must list, sorted by name."""
        for name in self._names:
            node, attrs = self._after.lookup(self._new, name)
            found = find(self._before, self._old, name)
            if found is None or self._replaced or in_upper(node):
                below = None
                if isinstance(node, DirNode):
                    old = found[0] if found is not None and isinstance(found[0], DirNode) else None
                    below = Differences(self._before, old, self._after, node, replaced=self._replaced)
                yield Member(Kind.ADDED if found is None else Kind.CHANGED, name, node, attrs, below)


def _names(view: Overlay, directory: DirNode) -> list[bytes]:
    listed = view.names(directory).names.values()
    return sorted(entry.name for entry in listed if entry.kind != stat.S_IFSOCK)


@contextmanager
def compared(stack: Stack) -> Iterator[tuple[Overlay, Overlay]]:
    """Open the views of a stack without its upper and with it. Nothing is written, and the upper may be in use.

    Raises OSError.
    """
    with opened(stack._replace(upper=None, work=None)) as before, opened(stack._replace(read_only=True)) as after:
        yield before, after


def root_differs(before: Overlay, after: Overlay) -> bool:
    """Return True if the root has a different mode or owner.

    Its time does not count, because it changes with every name that is added to or removed from the root.
    """
    old, new = before.attrs(before.root), after.attrs(after.root)
    return (old.mode, old.uid, old.gid) != (new.mode, new.uid, new.gid)


def changes(stack: Stack) -> list[Change]:
    """Return what the upper of `stack` changes, as `docker diff` lists it. Raises OSError.

    A deleted directory stands for everything in it. In each directory, what is there comes first, then what is gone,
    each sorted by name. (Docker lists siblings in no fixed order.)
    """
    with compared(stack) as (before, after):
        root = [Change(Kind.CHANGED, b"/")] if root_differs(before, after) else []
        return root + list(_listed(b"/", Differences(before, before.root, after, after.root)))


def _listed(path: bytes, found: Differences) -> Iterator[Change]:
    for member in found.members():
        here = path + member.name
        yield Change(member.kind, here)
        if member.below is not None:
            yield from _listed(here + b"/", member.below)
    yield from (Change(Kind.DELETED, path + name) for name in found.gone)
