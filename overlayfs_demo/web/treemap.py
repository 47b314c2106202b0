"""How is an image's waste drawn, so that an area is a number of bytes?

Layers first, the largest waste first, and in each its files; what is too small to be seen is one tile. The layout
is squarify's ("Squarified Treemaps": Bruls, Huizing, van Wijk).
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

# Tiles of one layer; the smallest files share the last.
_MOST_TILES = 40


@dataclass(frozen=True, slots=True)
class Tile:
    """A rectangle, in percent of the picture's width and height; `key` is the file's, "" for several files."""

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


def tiles(hidden: Sequence[Hidden], aspect: float = 2.0) -> tuple[Tile, ...]:
    """The picture of what is wasted, whose width is `aspect` times its height."""
    wasted = sorted((one for one in hidden if one.wasted), key=lambda one: (one.shipped_by, -one.wasted, one.path))
    layers = {number: list(ones) for number, ones in groupby(wasted, key=lambda one: one.shipped_by)}
    order = sorted(layers, key=lambda number: -_sum(layers[number]))
    areas = _areas([_sum(layers[number]) for number in order], 0, 0, aspect, 1)
    found: list[Tile] = []
    for number, (x, y, width, height) in zip(order, areas, strict=True):
        groups = _groups(layers[number])
        for ones, place in zip(groups, _areas([_sum(ones) for ones in groups], x, y, width, height), strict=True):
            found.append(_tile(number, ones, place, aspect))
    return tuple(found)


def _sum(ones: Sequence[Hidden]) -> int:
    return sum(one.wasted for one in ones)


def _areas(
    sizes: Sequence[int], x: float, y: float, width: float, height: float
) -> list[tuple[float, float, float, float]]:
    if not sizes:
        return []
    scaled = squarify.normalize_sizes(sizes, width, height)
    return [(one["x"], one["y"], one["dx"], one["dy"]) for one in squarify.squarify(scaled, x, y, width, height)]


def _groups(ones: list[Hidden]) -> list[list[Hidden]]:
    """A group for each of the largest files, and one for all the others, the largest first."""
    if len(ones) <= _MOST_TILES:
        return [[one] for one in ones]
    groups = [[one] for one in ones[: _MOST_TILES - 1]]
    return sorted([*groups, ones[_MOST_TILES - 1 :]], key=lambda group: -_sum(group))


def _tile(number: int, ones: Sequence[Hidden], place: tuple[float, float, float, float], aspect: float) -> Tile:
    x, y, width, height = place
    box = (round(x / aspect * 100, 3), round(y * 100, 3), round(width / aspect * 100, 3), round(height * 100, 3))
    size = human_size(_sum(ones))
    if len(ones) > 1:
        name = plural(len(ones), "smaller file")
        return Tile(*box, number, name, name, "", size, "hidden by later layers")
    one = ones[0]
    why = f"layer {one.hidden_by}: {one.why.value}"
    path = b"/" + one.path
    return Tile(*box, number, printable(one.path.rpartition(b"/")[2]), printable(path), key_of(path), size, why)
