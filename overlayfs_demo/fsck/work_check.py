"""What an interrupted mount left in the work directory, and marks there that forbid the next mount."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from overlayfs_demo.errors import printable
from overlayfs_demo.fsck.finding import Finding
from overlayfs_demo.images.layer_tree import remove_tree
from overlayfs_demo.overlay import incompat
from overlayfs_demo.overlay.whiteout import is_whiteout

_INCOMPAT = "incompat"
LOST_AND_FOUND = "lost+found"


def leftovers(work: Path) -> Iterator[Finding]:
    """Find what is in WORKDIR/work while nothing is mounted."""
    directory = work / "work"
    if not directory.is_dir():
        return
    for path in sorted(directory.iterdir()):
        if path.name == _INCOMPAT:
            continue
        if _holds_only_whiteouts(path):
            yield Finding(
                "leftover",
                printable(str(path)),
                "it is what an interrupted change left, such as half a copy, which takes space and belongs to no view; "
                "the repair removes it",
                partial(remove, path),
            )
        else:
            yield Finding(
                "leftover-with-contents",
                printable(str(path)),
                "it is a removed directory into which somebody moved other files, which no view shows; the repair "
                f"moves it to {printable(str(work / LOST_AND_FOUND))}",
                partial(set_aside, path, work / LOST_AND_FOUND),
            )


def features(work: Path) -> Iterator[Finding]:
    """Find the marks of a volatile mount and of features that this program does not know, see `overlay.incompat`."""
    directory = work / "work" / _INCOMPAT
    # Not through `incompat.features`, which may change the mode of the directory.
    for path in sorted(directory.iterdir()) if directory.is_dir() else ():
        if os.fsencode(path.name) == incompat.VOLATILE:
            yield Finding(
                "volatile",
                printable(str(path)),
                "the upper was mounted volatile and not checked since, so that files written last may be empty if the "
                "machine crashed, and it cannot be mounted; the repair removes the mark, but does not know what the "
                "files should hold",
                partial(remove, path),
            )
        else:
            yield Finding(
                "unknown-feature",
                printable(str(path)),
                "the upper uses a feature that this program does not know, so that it cannot be mounted; mount it with "
                "the program that made it",
            )


def set_aside(path: Path, place: Path) -> Path:
    """Move something to a directory for what only a person can judge; return its new path. Raises OSError."""
    place.mkdir(0o700, exist_ok=True)
    target, number = place / path.name, 1
    while os.path.lexists(target):
        number += 1
        target = place / f"{path.name}.{number}"
    path.rename(target)
    return target


def _holds_only_whiteouts(path: Path) -> bool:
    """Return whether it is a file, or a directory in which nothing but whiteouts could be lost."""
    if not stat.S_ISDIR(path.lstat().st_mode):
        return True
    return all(_is_whiteout(inside.lstat()) for inside in path.iterdir())


def _is_whiteout(status: os.stat_result) -> bool:
    # An empty file may be a whiteout by its attribute.
    return is_whiteout(status) or (stat.S_ISREG(status.st_mode) and not status.st_size)


def remove(path: Path) -> None:
    """Remove a file or a directory with all that it holds. Raises OSError."""
    if not stat.S_ISDIR(path.lstat().st_mode):
        path.unlink()
        return
    fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        remove_tree(fd, os.fsencode(path.name), fd)
    finally:
        os.close(fd)
