"""The index: copies that several names share, and the number of those names (overlayfs.rst, "Index").

A count is right if it is the number of names in the view, and of the lower file's names that the lowers do not show:
overlays count those, too, because they cannot know where they are.
"""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from overlayfs_demo.errors import printable
from overlayfs_demo.fsck.finding import Finding
from overlayfs_demo.fsck.lower_view import LowerView, xattrs_of
from overlayfs_demo.fsck.work_check import LOST_AND_FOUND, set_aside
from overlayfs_demo.linux import xattr
from overlayfs_demo.overlay.engine import Overlay
from overlayfs_demo.overlay.factory import open_overlay
from overlayfs_demo.overlay.index import nlink_value
from overlayfs_demo.overlay.layer import Key, key_of
from overlayfs_demo.overlay.node import DirNode
from overlayfs_demo.overlay.origin import is_handle
from overlayfs_demo.overlay.pairing import pairing_of
from overlayfs_demo.overlay.stack import Stack
from overlayfs_demo.overlay.whiteout import is_whiteout

# As in fs/overlayfs/util.c, ovl_get_nlink.
_NLINK = re.compile(rb"([UL])([+-]\d{1,9})\0?")


def index_findings(stack: Stack, lowers: LowerView, *, count: bool) -> Iterator[Finding]:
    """Find what is wrong in the index of a stack, if it has one.

    With `count`, count the names of each copy; the marks of the upper must be in order for that.
    """
    pairing = pairing_of(stack)
    if pairing is None or not os.path.isdir(pairing.index_path):
        return
    index = Path(os.fsdecode(pairing.index_path))
    if stranger := pairing.stranger():
        yield Finding(
            "foreign-index",
            printable(str(index)),
            f"it belongs to another {stranger}, so that it would show the wrong changes and mounts are refused; name "
            "the directories that belong together, or mount with index=off",
        )
        return
    entries = [_Entry(path, stack, lowers) for path in sorted(index.iterdir()) if not _is_for_export(path.lstat())]
    stale = [entry for entry in entries if entry.problem]
    for entry in stale:
        yield entry.stale()
    if entries and count and not stale:
        yield from _counts(entries, stack, lowers)


def _is_for_export(status: os.stat_result) -> bool:
    """Return whether this is an entry of the kernel's `nfs_export=on`: for a directory, or for what is deleted."""
    return stat.S_ISDIR(status.st_mode) or is_whiteout(status)


class _Entry:
    """One file of the index. `problem` is why no name can lead to it, or ""."""

    def __init__(self, path: Path, stack: Stack, lowers: LowerView) -> None:
        self.path = path
        self.status = path.lstat()
        self._xattrs = xattrs_of(stack)
        self.lower: os.stat_result | None = None
        self.problem = self._checked(lowers)

    def _checked(self, lowers: LowerView) -> str:
        try:
            origin = bytes.fromhex(self.path.name)
        except ValueError:
            origin = b""
        if not is_handle(origin):
            return "is not named by a file handle, so that the kernel's overlayfs refuses the whole index"
        if xattr.get(os.fsencode(self.path), self._xattrs.origin) != origin:
            return "has another origin than its name says, so that the file cannot be opened by any of its names"
        if not lowers.knows_origins():
            return ""
        self.lower = lowers.origins.decode(origin)
        if self.lower is None:
            return "is a copy of a lower file that is gone, so that no name of the lower layers leads to it"
        if stat.S_IFMT(self.lower.st_mode) != stat.S_IFMT(self.status.st_mode):
            return "is of another kind than the lower file of which it should be a copy"
        return ""

    def stale(self) -> Finding:
        """Return the finding for an entry with a problem."""
        place = self.path.parent.parent / LOST_AND_FOUND
        return Finding(
            "stale-index-entry",
            printable(str(self.path)),
            f"it {self.problem}; the repair moves it to {printable(str(place))}, and names in the upper keep the file",
            partial(set_aside, self.path, place),
        )

    def noted(self) -> int | None:
        """Return the number of names that is noted; None if no valid number is."""
        match = _NLINK.fullmatch(xattr.get(os.fsencode(self.path), self._xattrs.nlink) or b"")
        if match is None:
            return None
        if match[1] == b"U":
            return self.status.st_nlink + int(match[2])
        return None if self.lower is None else self.lower.st_nlink + int(match[2])

    def note(self, names: int) -> None:
        """Note the number of names."""
        value = nlink_value(names, self.status.st_nlink)
        os.setxattr(self.path, self._xattrs.nlink, value, follow_symlinks=False)
        if self.lower is not None:
            os.setxattr(self.path, self._xattrs.lower_nlink, b"%d" % self.lower.st_nlink, follow_symlinks=False)


def _counts(entries: list[_Entry], stack: Stack, lowers: LowerView) -> Iterator[Finding]:
    view = open_overlay(stack._replace(read_only=True, time_machine=False))
    try:
        in_view = _names_by_object(view)
    finally:
        view.close()
    in_lowers = _names_by_object(lowers.view)
    for entry in entries:
        unseen = 0 if entry.lower is None else entry.lower.st_nlink - in_lowers[key_of(entry.lower)]
        seen = in_view[key_of(entry.status)]
        shown = printable(str(entry.path))
        if not seen and entry.status.st_nlink == 1:
            yield Finding(
                "orphan",
                shown,
                "it is a copy that no name leads to any more, because its removal was interrupted, so that it only "
                "takes space; the repair removes it",
                entry.path.unlink,
            )
        elif entry.noted() != seen + max(0, unseen):
            yield Finding(
                "link-count",
                shown,
                f"it notes {_number(entry.noted())} although the file has {seen + max(0, unseen)}, so that stat(1) "
                "shows a wrong count, and the copy is kept after its last name is gone or lost before; the repair "
                "notes the right number",
                partial(entry.note, seen + max(0, unseen)),
            )


def _number(noted: int | None) -> str:
    return "no valid number of names" if noted is None else f"{noted} names"


def _names_by_object(view: Overlay) -> Counter[Key]:
    """Return how many names of a view each real object has; names that cannot be looked up do not count."""
    found: Counter[Key] = Counter()
    pending: list[DirNode] = [view.root]
    while pending:
        directory = pending.pop()
        for entry in view.entries(directory):
            try:
                node, _ = view.lookup(directory, entry.name)
            except OSError:  # Its marks are broken, which is another finding.
                continue
            if isinstance(node, DirNode):
                pending.append(node)
            else:
                found[node.key] += 1
    return found
