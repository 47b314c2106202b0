"""A short notation for the layers of an experiment.

`build(path, {"motd": "hello\\n", "docs/a": "1", "old": WHITEOUT})` makes a directory. A key is a path below it, whose
parent directories are also made. A value is text (a file), None (a directory), or one of the objects defined here.
Everything gets the same time, so that the same notation always makes the same bytes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from overlayfs_demo.overlay.whiteout import make_whiteout

# The time that everything gets: 2024-01-01T00:00:00Z, in nanoseconds since the epoch.
_WHEN = 1_704_067_200_000_000_000


class Deletion(Enum):
    """A mark that hides the name in the layers below."""

    WHITEOUT = "whiteout"


WHITEOUT = Deletion.WHITEOUT


@dataclass(frozen=True, slots=True)
class Symlink:
    """A symbolic link to this target."""

    target: str


@dataclass(frozen=True, slots=True)
class HardLink:
    """Another name of a file that comes earlier in the mapping."""

    other: str


Content = Mapping[str, str | Symlink | HardLink | Deletion | None]


def big(size: int) -> str:
    """Return text of this many bytes, in lines."""
    line = "the quick brown fox jumps over the lazy dog\n"
    return (line * (size // len(line) + 1))[:size]


def build(top: Path, content: Content) -> None:
    """Make a directory with this content, with the modes 0644 and 0755 (if the umask is 022). Raises OSError."""
    top.mkdir(parents=True)
    for name, value in content.items():
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        match value:
            case None:
                path.mkdir()
            case Symlink(target):
                path.symlink_to(target)
            case HardLink(other):
                path.hardlink_to(top / other)
            case Deletion():
                _whiteout(path)
            case str(text):
                path.write_text(text)
    # Last and from the bottom up, because every new name changes the time of its directory.
    for above, directories, files in os.walk(top, topdown=False):
        for name in (*files, *directories, "."):
            os.utime(os.path.join(above, name), ns=(_WHEN, _WHEN), follow_symlinks=False)


def _whiteout(path: Path) -> None:
    fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        make_whiteout(fd, os.fsencode(path.name))
    finally:
        os.close(fd)
