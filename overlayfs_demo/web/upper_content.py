"""The contents of an upper, each with what it means there."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from overlayfs_demo.errors import printable
from overlayfs_demo.linux import xattr
from overlayfs_demo.mounts.layer_facts import Count, counted
from overlayfs_demo.overlay.whiteout import TRUSTED, USER, is_whiteout
from overlayfs_demo.ui.text import human_size
from overlayfs_demo.web.subject import key_of

# How many entries of an upper are shown.
MOST_ENTRIES = 200


@dataclass(frozen=True, slots=True)
class UpperEntry:
    """One name in an upper. `what` says what it means; `mark` is "deleted", "opaque", "copied" or "new"."""

    name: str
    key: str
    depth: int
    what: str
    mark: str


@dataclass(frozen=True, slots=True)
class UpperContent:
    """The names in an upper, each directory before its contents; `left_out` more names are not shown."""

    count: Count
    entries: tuple[UpperEntry, ...]
    left_out: int


def upper_content(directory: Path) -> UpperContent:
    """Walk an upper and return its contents; names that vanish are left out. Raises OSError for the upper itself."""
    root = os.fsencode(directory)
    found = list(_walk(root))
    entries = tuple(_entry(root, path, status) for path, status in found[:MOST_ENTRIES])
    names = ((os.fsdecode(os.path.basename(path)), status) for path, status in found)
    return UpperContent(counted(names, image_marks=False), entries, len(found) - len(entries))


def _walk(root: bytes) -> Iterator[tuple[bytes, os.stat_result]]:
    """Yield the path and status of everything below a directory, each directory before its contents."""
    os.stat(root)
    pending = [b""]
    while pending:
        path = pending.pop()
        if path:
            try:
                status = os.lstat(os.path.join(root, path))
            except OSError:  # It was removed meanwhile, or a directory on the way was.
                continue
            yield path, status
            if not stat.S_ISDIR(status.st_mode):
                continue
        try:
            names = sorted(os.listdir(os.path.join(root, path)), reverse=True)
        except OSError:  # The same; or it belongs to another user.
            continue
        pending += [os.path.join(path, name) for name in names]


def _entry(root: bytes, path: bytes, status: os.stat_result) -> UpperEntry:
    words, mark = _words(os.path.join(root, path), status)
    return UpperEntry(printable(os.path.basename(path)), key_of(b"/" + path), path.count(b"/"), words, mark)


def _words(real: bytes, status: os.stat_result) -> tuple[str, str]:
    if is_whiteout(status):
        return "whiteout", "deleted"
    names = xattr.names(real) if os.path.lexists(real) else []
    copied = any(marks.origin in names for marks in (TRUSTED, USER))
    mark = "copied" if copied else "new"
    if stat.S_ISDIR(status.st_mode):
        if any(xattr.get(real, marks.opaque) == b"y" for marks in (TRUSTED, USER)):
            return "opaque directory", "opaque"
        return ("directory, copied up" if copied else "new directory"), mark
    if stat.S_ISREG(status.st_mode):
        size = human_size(status.st_size)
        return (f"copied up, {size}" if copied else f"new file, {size}"), mark
    kind = "symbolic link" if stat.S_ISLNK(status.st_mode) else "special file"
    return (f"{kind}, copied up" if copied else f"new {kind}"), mark
