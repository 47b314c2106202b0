"""What does a container's upper change on its image? `diff` prints that, and `commit` writes it as a layer.

The image's view and the container's are two overlays, and `Differences` compares them directory by directory. What
the upper holds is changed, even if it is as it was: a file whose mode was changed and changed back has been copied up,
and the layer ships it. Docker's own two answers disagree here: `docker commit` writes whatever the upper holds, but
`docker diff` leaves out what has the same mode, owner, size and time as before. We follow the layer.

The views are compared and not the upper's files, because an upper has words that a layer lacks: a renamed directory
brings its lower parts along, a metacopy has its data below, a hard link may stand in the index alone. Sockets count as
absent, since no tar has them: a program that wants one makes it.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import Enum
from typing import NamedTuple

from overlayfs_demo.images.view_compare import find, in_upper, is_another, opened
from overlayfs_demo.overlay.engine import Overlay
from overlayfs_demo.overlay.node import DirNode, Node
from overlayfs_demo.overlay.stack import Stack
from overlayfs_demo.overlay.types import Attrs


class Kind(Enum):
    """The letter that Docker prints."""

    ADDED = "A"
    CHANGED = "C"
    DELETED = "D"


class Change(NamedTuple):
    """One path, from the container's root on."""

    kind: Kind
    path: bytes


@dataclass(frozen=True, slots=True)
class Member:
    """One name that a layer must list, because it is new or the upper holds it. `below` is None for a file."""

    kind: Kind
    name: bytes
    node: Node
    attrs: Attrs
    below: Differences | None


class Differences:
    """What the directory `new` of one view has more, other, or less than the directory `old` of another.

    All of it is more if there is no `old`. `replaced`: it stands below a directory that is opaque, where a layer must
    list every name. The views stay the caller's. Raises OSError.
    """

    def __init__(
        self, before: Overlay, old: DirNode | None, after: Overlay, new: DirNode, *, replaced: bool = False
    ) -> None:
        self._before, self._old = before, old
        self._after, self._new = after, new
        self._names = _names(after, new)
        # Nothing of what was here before is seen: it is made anew, or was renamed to here.
        self.opaque = not replaced and old is not None and is_another(old, new)
        self._replaced = replaced or self.opaque
        # Names that are not there any more.
        self.gone = [] if old is None else sorted(set(_names(before, old)) - set(self._names))

    @property
    def whiteouts(self) -> list[bytes]:
        """The names that a layer must hide one by one."""
        return [] if self._replaced else self.gone

    def members(self) -> Iterator[Member]:
        """What a layer must list, in order of the names."""
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
    return sorted(one.name for one in listed if one.kind != stat.S_IFSOCK)


@contextmanager
def compared(stack: Stack) -> Iterator[tuple[Overlay, Overlay]]:
    """The views of a stack without its upper, and with it. Nothing is written, and the upper may be in use.

    Raises OSError.
    """
    with opened(replace(stack, upper=None, work=None)) as before, opened(replace(stack, read_only=True)) as after:
        yield before, after


def root_differs(before: Overlay, after: Overlay) -> bool:
    """Has the root itself another mode or owner? Its time is nobody's: it changes with every name in it."""
    old, new = before.attrs(before.root), after.attrs(after.root)
    return (old.mode, old.uid, old.gid) != (new.mode, new.uid, new.gid)


def changes(stack: Stack) -> list[Change]:
    """What the upper of `stack` changes, as `docker diff` lists it. Raises OSError.

    A deleted directory stands for all that was in it. In each directory what is there comes first, then what is gone,
    each in order of the names. (Docker leaves the order of siblings to chance.)
    """
    with compared(stack) as (before, after):
        root = [Change(Kind.CHANGED, b"/")] if root_differs(before, after) else []
        return root + list(_listed(b"/", Differences(before, before.root, after, after.root)))


def _listed(path: bytes, found: Differences) -> Iterator[Change]:
    for one in found.members():
        here = path + one.name
        yield Change(one.kind, here)
        if one.below is not None:
            yield from _listed(here + b"/", one.below)
    yield from (Change(Kind.DELETED, path + name) for name in found.gone)
