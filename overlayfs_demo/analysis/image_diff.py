"""In what do two stacks of layers differ, as they are seen?

Two images, or one image at two depths. Layers that both have are walked once, and what both show from the
same layer is not compared again.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from overlayfs_demo.analysis.differing import Difference, difference
from overlayfs_demo.analysis.inventory import opened
from overlayfs_demo.analysis.layer_walk import Place, walk
from overlayfs_demo.analysis.stacked_view import Hiding, lay


class Change(enum.Enum):
    """What was done to a path."""

    ADDED = "added"
    CONTENT = "changed"
    METADATA = "changed in metadata only"
    DELETED = "deleted"


@dataclass(frozen=True, slots=True)
class PathChange:
    """One path that is not the same in both. Sizes are bytes of regular files; None where the path is not seen."""

    path: bytes
    change: Change
    size_before: int | None
    size_after: int | None


@dataclass(frozen=True, slots=True)
class TreeDiff:
    """The paths that differ, each kind sorted. A directory counts as changed for its owner, mode and attributes."""

    added: tuple[PathChange, ...]
    changed: tuple[PathChange, ...]
    deleted: tuple[PathChange, ...]


def diff_trees(before: Sequence[Path], after: Sequence[Path]) -> TreeDiff:
    """What leads from one stack of layer directories to another, each given from the bottom to the top.

    Data is read where both have a file of one size, from different layers. Raises ImageError naming the
    layer and the file that cannot be read.
    """
    every = list(dict.fromkeys([*before, *after]))
    stacks = [_Stack([every.index(one) + 1 for one in stack]) for stack in (before, after)]
    changes = []
    with opened(every) as roots, closing(walk(roots)) as places:
        for place in places:
            old, new = (stack.shown(place) for stack in stacks)
            if (change := _change(place, old, new)) is not None:
                was, now = (place.things[one].size if one is not None else None for one in (old, new))
                changes.append(PathChange(place.path, change, was, now))
    changes.sort(key=lambda one: one.path)
    return TreeDiff(
        tuple(one for one in changes if one.change is Change.ADDED),
        tuple(one for one in changes if one.change in (Change.CONTENT, Change.METADATA)),
        tuple(one for one in changes if one.change is Change.DELETED),
    )


class _Stack:
    """One of the stacks, as the walk goes on: the numbers of its layers in the walk, from the bottom to the top."""

    def __init__(self, numbers: Sequence[int]) -> None:
        self._numbers = numbers
        # What is hidden in the directories on the way to the present place, the root first.
        self._hiding: list[Hiding] = [{}]

    def shown(self, place: Place) -> int | None:
        """The number in the walk of the layer that shows this place, None if none does."""
        del self._hiding[place.depth :]
        # Numbered anew: an upper layer of this stack may be a lower one of the other.
        laid = lay(
            {position: place.things[number] for position, number in enumerate(self._numbers) if number in place.things},
            self._hiding[-1],
        )
        self._hiding.append(laid.hiding)
        return None if laid.shown is None else self._numbers[laid.shown]


def _change(place: Place, old: int | None, new: int | None) -> Change | None:
    if old is None or new is None:
        return Change.ADDED if new is not None else Change.DELETED if old is not None else None
    how = difference(place, old, new)
    if how is Difference.NONE:
        return None
    return Change.CONTENT if how is Difference.CONTENT else Change.METADATA
