"""When several layers speak about one name, who wins?

The rule is data: `decide` turns what each layer says, from the top down, into a verdict. It does no
I/O, so the rule can be tested, shown and explained without a filesystem. It reads its input lazily:
a layer below the deciding one is never even asked.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import NamedTuple


class Says(enum.Enum):
    """What one layer says about one name."""

    ABSENT = "nothing"
    WHITEOUT = "deleted"
    FILE = "a file"
    DIRECTORY = "a directory"
    OPAQUE_DIRECTORY = "a directory that hides all below"


class Verdict(NamedTuple):
    """Which positions of the input make up the merged object, topmost first.

    Empty: the name does not exist. `directory` is False for anything that is not a directory (which
    always comes from exactly one layer). `decided_by` is the position that ended the search, or None
    when all layers were asked.
    """

    positions: tuple[int, ...]
    directory: bool
    decided_by: int | None


def decide(says: Iterable[Says]) -> Verdict:
    """The union rule of overlayfs (Linux Documentation/filesystems/overlayfs.rst, "Upper and Lower").

    The topmost object wins. Directories merge with the directories directly below them, until a
    whiteout, a non-directory or an opaque directory ends the stack.
    """
    directories: list[int] = []
    for position, said in enumerate(says):
        if said is Says.ABSENT:
            continue
        if said is Says.DIRECTORY:
            directories.append(position)
            continue
        if said is Says.OPAQUE_DIRECTORY:
            directories.append(position)
        elif said is Says.FILE and not directories:
            return Verdict((position,), False, position)
        return Verdict(tuple(directories), bool(directories), position)
    return Verdict(tuple(directories), bool(directories), None)
