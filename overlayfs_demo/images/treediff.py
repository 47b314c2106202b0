"""In what do two stacks of layers differ, as they are seen?

Two images, or one image at two depths. Layers that both have are walked once, and what both show from the
same layer is not compared again.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from overlayfs_demo.images.layerview import Node, View
from overlayfs_demo.images.survey import Difference, SurveyedLayer, difference, surveyed


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
    with surveyed([*before, *after]) as layers:
        old_layers, new_layers = layers[: len(before)], layers[len(before) :]
        old, new = _seen(old_layers), _seen(new_layers)
        changed = []
        for path in sorted(old.keys() & new.keys()):
            was, now = old[path], new[path]
            how = difference(path, old_layers[was.layer - 1], new_layers[now.layer - 1])
            if how is not Difference.NONE:
                change = Change.CONTENT if how is Difference.CONTENT else Change.METADATA
                changed.append(PathChange(path, change, was.thing.size, now.thing.size))
    return TreeDiff(
        tuple(PathChange(path, Change.ADDED, None, new[path].thing.size) for path in sorted(new.keys() - old.keys())),
        tuple(changed),
        tuple(PathChange(path, Change.DELETED, old[path].thing.size, None) for path in sorted(old.keys() - new.keys())),
    )


def _seen(layers: Sequence[SurveyedLayer]) -> dict[bytes, Node]:
    view = View()
    for number, layer in enumerate(layers, start=1):
        view.lay(number, layer.things)
    return dict(view.paths())
