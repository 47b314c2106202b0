"""The treemap of an image's waste, in which areas are proportional to bytes.

Each layer has an area, the one with the most waste first, and its files share that. Files too small to be seen are one
tile. The layout is squarify's ("Squarified Treemaps": Bruls, Huizing, van Wijk).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import squarify

from overlayfs_demo.analysis.accounts import Hidden
from overlayfs_demo.errors import printable
from overlayfs_demo.ui.text import human_size, plural
from overlayfs_demo.web.subject import key_of

# The picture's width, divided by its height.
_ASPECT = 2.0
# How many tiles a layer has; the smallest files share the last one.
_MOST_TILES = 40


@dataclass(frozen=True, slots=True)
class Tile:
    """A rectangle, in percent of the picture's width and height. `key` is the file's key; "" for several files."""

    x: float
    y: float
    width: float
    height: float
    layer: int
    name: str
    path: str
    key: str
    size: str
    why: str


def tiles(hidden: Sequence[Hidden]) -> tuple[Tile, ...]:
    """Return the tiles of all files that waste bytes."""
    wasted = sorted(
        (file for file in hidden if file.wasted), key=lambda file: (file.shipped_by, -file.wasted, file.path)
    )
    layers = {number: list(files) for number, files in groupby(wasted, key=lambda file: file.shipped_by)}
    order = sorted(layers, key=lambda number: -_sum(layers[number]))
    areas = _areas([_sum(layers[number]) for number in order], 0, 0, _ASPECT, 1)
    found: list[Tile] = []
    for number, (x, y, width, height) in zip(order, areas, strict=True):
        groups = _groups(layers[number])
        for files, place in zip(groups, _areas([_sum(files) for files in groups], x, y, width, height), strict=True):
            found.append(_tile(number, files, place))
    return tuple(found)


def _sum(files: Sequence[Hidden]) -> int:
    return sum(file.wasted for file in files)


def _areas(
    sizes: Sequence[int], x: float, y: float, width: float, height: float
) -> list[tuple[float, float, float, float]]:
    if not sizes:
        return []
    scaled = squarify.normalize_sizes(sizes, width, height)
    return [(area["x"], area["y"], area["dx"], area["dy"]) for area in squarify.squarify(scaled, x, y, width, height)]


def _groups(files: list[Hidden]) -> list[list[Hidden]]:
    """Return a group for each of the largest files and one for all the others, the largest group first."""
    if len(files) <= _MOST_TILES:
        return [[file] for file in files]
    groups = [[file] for file in files[: _MOST_TILES - 1]]
    return sorted([*groups, files[_MOST_TILES - 1 :]], key=lambda group: -_sum(group))


def _tile(number: int, files: Sequence[Hidden], place: tuple[float, float, float, float]) -> Tile:
    x, y, width, height = place
    box = (round(x / _ASPECT * 100, 3), round(y * 100, 3), round(width / _ASPECT * 100, 3), round(height * 100, 3))
    size = human_size(_sum(files))
    if len(files) > 1:
        name = plural(len(files), "smaller file")
        return Tile(*box, number, name, name, "", size, "hidden by later layers")
    file = files[0]
    why = f"layer {file.hidden_by}: {file.why.value}"
    path = b"/" + file.path
    return Tile(*box, number, printable(file.path.rpartition(b"/")[2]), printable(path), key_of(path), size, why)
