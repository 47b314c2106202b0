"""What did a container change? In `docker diff`'s words: A (added), C (changed), D (deleted).

The image's view and the container's are two overlays, compared where the container's upper has a say. A
directory that holds a change is changed, a deleted one stands for all that was in it. The order is Docker's:
in each directory first what is there, then what is gone (Docker itself leaves the order of siblings to chance;
here they are sorted).
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Iterator
from dataclasses import replace
from enum import Enum
from typing import NamedTuple

from overlayfs_demo.images.views import find, in_upper, is_another, opened
from overlayfs_demo.overlay.engine import Overlay
from overlayfs_demo.overlay.node import DirNode, Node
from overlayfs_demo.overlay.stack import Stack
from overlayfs_demo.overlay.types import Attrs

_CAPABILITY = "security.capability"


class Kind(Enum):
    """The letter that Docker prints."""

    ADDED = "A"
    CHANGED = "C"
    DELETED = "D"


class Change(NamedTuple):
    """One path, from the container's root on."""

    kind: Kind
    path: bytes


def changes(stack: Stack) -> list[Change]:
    """What the upper of `stack` changes. Nothing is written, and the upper may be in use. Raises OSError."""
    with opened(replace(stack, upper=None, work=None)) as before, opened(replace(stack, read_only=True)) as after:
        return list(_Comparison(before, after).inside(b"", before.root, after.root))


class _Comparison:
    def __init__(self, before: Overlay, after: Overlay) -> None:
        self._before = before
        self._after = after

    def inside(self, path: bytes, old: DirNode | None, new: DirNode) -> Iterator[Change]:
        """The changes below a directory; all of it is new if there was none."""
        now = sorted(self._after.names(new).names)
        all_may_differ = old is not None and is_another(old, new)
        for name in now:
            here = path + b"/" + name
            node, attrs = self._after.lookup(new, name)
            found = find(self._before, old, name)
            if found is None:
                yield Change(Kind.ADDED, here)
                if isinstance(node, DirNode):
                    yield from self.inside(here, None, node)
            elif all_may_differ or in_upper(node):
                yield from self._compare(here, found, (node, attrs))
        if old is not None:
            gone = sorted(set(self._before.names(old).names) - set(now))
            yield from (Change(Kind.DELETED, path + b"/" + name) for name in gone)

    def _compare(self, path: bytes, old: tuple[Node, Attrs], new: tuple[Node, Attrs]) -> Iterator[Change]:
        below: list[Change] = []
        if isinstance(new[0], DirNode):
            below = list(self.inside(path, old[0] if isinstance(old[0], DirNode) else None, new[0]))
        if below or self._differs(old, new):
            yield Change(Kind.CHANGED, path)
        yield from below

    def _differs(self, old: tuple[Node, Attrs], new: tuple[Node, Attrs]) -> bool:
        """Docker's rule (pkg/archive, statDifferent), but with all digits of the times."""
        (old_node, before), (new_node, after) = old, new
        if (before.mode, before.uid, before.gid, before.rdev) != (after.mode, after.uid, after.gid, after.rdev):
            return True
        if not stat.S_ISDIR(after.mode) and (before.size, before.mtime_ns) != (after.size, after.mtime_ns):
            return True
        return _capability(self._before, old_node) != _capability(self._after, new_node)


def _capability(overlay: Overlay, node: Node) -> bytes | None:
    try:
        return overlay.xattr(node, _CAPABILITY)
    except OSError as error:
        if error.errno not in (errno.ENODATA, errno.EOPNOTSUPP):
            raise
        return None

