"""When several layers have something to say about one name, which of them wins?

The rule is a pure function: `decide` turns what each layer says, from the top down, into a verdict. It does no
I/O, so the rule can be tested, shown and explained without a filesystem. It reads its input lazily:
a layer below the deciding one is never asked.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable

from overlayfs_demo.named_tuple import NamedTuple


class Says(enum.Enum):
    """What one layer says about one name."""

    ABSENT = "nothing"
    WHITEOUT = "deleted"
    FILE = "a file"
    METACOPY = "a file with its data below"
    DIRECTORY = "a directory"
    OPAQUE_DIRECTORY = "an opaque directory"


class Verdict(NamedTuple):
    """The positions of the input that make up the merged object, topmost first.

    No positions: the name does not exist. `directory`: whether the object is a directory. Any other object comes from
    one layer, except a metacopy: its metadata comes from the first position and its data from the second, which is
    missing if no layer below has it. `decided_by` is the position that ended the search, or None if all layers were
    asked.
    """

    positions: tuple[int, ...]
    directory: bool
    decided_by: int | None


def decide(says: Iterable[Says]) -> Verdict:
    """Apply the union rule of overlayfs (Linux Documentation/filesystems/overlayfs.rst, "Upper and Lower").

    The topmost object wins. Directories merge with the directories directly below them, until a
    whiteout, a non-directory or an opaque directory ends the stack. A metacopy takes its data from the
    next file below ("Metadata only copy up").
    """
    directories: list[int] = []
    metacopy: int | None = None
    for position, said in enumerate(says):
        if said is Says.ABSENT:
            continue
        if metacopy is not None:
            if said is Says.METACOPY:
                continue
            return Verdict((metacopy, position) if said is Says.FILE else (metacopy,), False, position)
        if said is Says.METACOPY and not directories:
            metacopy = position
            continue
        if said is Says.DIRECTORY:
            directories.append(position)
            continue
        if said is Says.OPAQUE_DIRECTORY:
            directories.append(position)
        elif said is Says.FILE and not directories:
            return Verdict((position,), False, position)
        return Verdict(tuple(directories), bool(directories), position)
    if metacopy is not None:
        return Verdict((metacopy,), False, None)
    return Verdict(tuple(directories), bool(directories), None)
