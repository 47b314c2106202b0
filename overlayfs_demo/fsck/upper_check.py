"""The check of an upper over its lowers, and of its work directory."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from overlayfs_demo.errors import MountError, printable
from overlayfs_demo.fsck.data_marks import metacopies
from overlayfs_demo.fsck.finding import Finding
from overlayfs_demo.fsck.index_check import index_findings
from overlayfs_demo.fsck.lower_view import LowerView, open_layer
from overlayfs_demo.fsck.marked import Marked
from overlayfs_demo.fsck.marks import misplaced, origins, pure, redirected, redirects, refers_below, whiteouts
from overlayfs_demo.fsck.work_check import features, leftovers
from overlayfs_demo.overlay.layer import Layer, UpperDir, key_of
from overlayfs_demo.overlay.node import DirNode
from overlayfs_demo.overlay.stack import Stack


@contextmanager
def check_upper(stack: Stack) -> Iterator[Iterator[Finding]]:
    """Give the damage of an upper that is not mounted, see `claim`; without a work directory, only of the upper itself.

    Raises MountError if the lowers are not those that the upper was used with, because its marks mean nothing on
    others; OSError, also while the damage is looked for, if a layer cannot be read.
    """
    assert stack.upper is not None
    with ExitStack() as resources:
        upper = open_layer(stack.upper, 0, stack, resources)
        lowers = resources.enter_context(closing(LowerView(stack)))
        if other := lowers.other_stack(upper):
            raise MountError(
                f"upperdir {printable(stack.upper)} was last mounted over other lower layers ({printable(other)})",
                "name those with -o lowerdir=, because its marks refer to them",
            )
        yield _findings(stack, upper, lowers)


def _findings(stack: Stack, upper: Layer, lowers: LowerView) -> Iterator[Finding]:
    marks = list(_Walk(upper, lowers).findings())
    yield from marks
    if stack.work is None:
        return
    work = Path(os.fsdecode(stack.work))
    yield from leftovers(work)
    # With broken marks, not all names of the view can be counted.
    yield from index_findings(stack, lowers, count=not marks)
    yield from features(work)


class _Walk:
    """One walk through all directories of an upper."""

    def __init__(self, upper: Layer, lowers: LowerView) -> None:
        self._root = UpperDir(upper, None, b"")
        self._lowers = lowers
        self._knows_origins = lowers.knows_origins()

    def findings(self) -> Iterator[Finding]:
        pending: list[tuple[UpperDir, DirNode | None]] = [(self._root, self._lowers.root)]
        while pending:
            directory, below = pending.pop()
            children = _children(directory)
            yield from self._inside(directory, below, children)
            for child in children:
                if not stat.S_ISDIR(child.status.st_mode):
                    continue
                inner = directory.child(child.name, key_of(child.status))
                # Where redirects are not followed, it is not known what lies below a renamed directory.
                if child.xattrs.follows or inner.marks.redirect is None:
                    pending.append((inner, self._below(child, inner, below)))

    def _inside(self, directory: UpperDir, below: DirNode | None, children: Sequence[Marked]) -> Iterator[Finding]:
        impure = False
        by_xattr = directory.marks.has_xattr_whiteouts
        for child in children:
            names = child.names()
            impure = impure or refers_below(child, names)
            yield from whiteouts(child, names, by_xattr, below)
            if not any(name.startswith(child.xattrs.prefix) for name in names):
                continue
            yield from misplaced(child, names)
            if self._knows_origins:
                yield from origins(child, names, self._lowers)
            if child.xattrs.follows:
                yield from redirects(child, names, below, self._lowers)
                yield from metacopies(child, names, below, self._lowers)
        if impure:
            held = directory.open()
            itself = Marked(directory, b".", os.fstat(held.fd))
            yield from pure(itself, itself.names())

    def _below(self, found: Marked, directory: UpperDir, below: DirNode | None) -> DirNode | None:
        """Return the lower directory that a directory of the upper merges with; `below` is that of its parent."""
        marks = directory.marks
        if marks.opaque:
            return None
        node = redirected(marks.redirect or found.name, below, self._lowers)
        return node if isinstance(node, DirNode) else None


def _children(directory: UpperDir) -> list[Marked]:
    held = directory.open()
    found = []
    for name in sorted(map(os.fsencode, os.listdir(held.fd))):
        status = directory.stat(name)
        if status is not None:
            found.append(Marked(directory, name, status))
    return found
