"""The difference between the views of two stacks of layers: two images, or one image at two depths.

Layers that both stacks have are walked once, and what both show from the same layer is not compared.
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


class ChangeKind(enum.Enum):
    """The kind of change to a path."""

    ADDED = "added"
    CONTENT = "changed"
    METADATA = "changed in metadata only"
    DELETED = "deleted"


@dataclass(frozen=True, slots=True)
class PathChange:
    """One path that differs. Sizes are the bytes of regular files; None where the path is not visible."""

    path: bytes
    change: ChangeKind
    size_before: int | None
    size_after: int | None


@dataclass(frozen=True, slots=True)
class TreeDiff:
    """The paths that differ, each kind sorted. A directory counts as changed by its owner, mode and attributes only."""

    added: tuple[PathChange, ...]
    changed: tuple[PathChange, ...]
    deleted: tuple[PathChange, ...]


def diff_trees(before: Sequence[Path], after: Sequence[Path]) -> TreeDiff:
    """Return the changes from one stack of layer directories to another, each given from the bottom up.

    Data is read only where both have a file of the same size from different layers. Raises ImageError naming the
    layer and the file that cannot be read.
    """
    every = list(dict.fromkeys([*before, *after]))
    stacks = [_Stack([every.index(directory) + 1 for directory in stack]) for stack in (before, after)]
    changes = []
    with opened(every) as roots, closing(walk(roots)) as places:
        for place in places:
            old, new = (stack.shown(place) for stack in stacks)
            if (kind := _change(place, old, new)) is not None:
                was, now = (place.things[number].size if number is not None else None for number in (old, new))
                changes.append(PathChange(place.path, kind, was, now))
    changes.sort(key=lambda change: change.path)
    return TreeDiff(
        tuple(change for change in changes if change.change is ChangeKind.ADDED),
        tuple(change for change in changes if change.change in (ChangeKind.CONTENT, ChangeKind.METADATA)),
        tuple(change for change in changes if change.change is ChangeKind.DELETED),
    )


class _Stack:
    """The state of one stack during the walk. `numbers` are its layers' numbers in the walk, from the bottom up."""

    def __init__(self, numbers: Sequence[int]) -> None:
        self._numbers = numbers
        # What is hidden in each directory on the path to the current place, starting with the root.
        self._hiding: list[Hiding] = [{}]

    def shown(self, place: Place) -> int | None:
        """Return the number, in the walk, of the layer that shows this place; None if no layer does."""
        del self._hiding[place.depth :]
        # The layers are renumbered, because an upper layer of this stack may be a lower one of the other.
        laid = lay(
            {position: place.things[number] for position, number in enumerate(self._numbers) if number in place.things},
            self._hiding[-1],
        )
        self._hiding.append(laid.hiding)
        return None if laid.shown is None else self._numbers[laid.shown]


def _change(place: Place, old: int | None, new: int | None) -> ChangeKind | None:
    if old is None or new is None:
        return ChangeKind.ADDED if new is not None else ChangeKind.DELETED if old is not None else None
    how = difference(place, old, new)
    if how is Difference.NONE:
        return None
    return ChangeKind.CONTENT if how is Difference.CONTENT else ChangeKind.METADATA
