"""The treemap of the bytes that an image ships, in which areas are proportional to them.

Each layer has an area, the largest first. What is visible of it is one tile, and the hidden files share the rest. Files
too small to be seen are one tile. The layout is squarify's ("Squarified Treemaps": Bruls, Huizing, van Wijk).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import squarify

from overlayfs_demo.analysis.accounts import Hidden
from overlayfs_demo.errors import printable
from overlayfs_demo.ui.text import human_size, plural
from overlayfs_demo.web.subject import key_of

# Left, top, width and height.
Area = tuple[float, float, float, float]

# The picture's width, divided by its height.
_ASPECT = 2.0
# How many tiles a layer has; the smallest files share the last one.
_MOST_TILES = 40


@dataclass(frozen=True, slots=True)
class Tile:
    """A rectangle, in percent of the picture's width and height. `key` is the file's key; "" for several files.

    `live`: the bytes are visible.
    """

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
    live: bool = False


def tiles(hidden: Sequence[Hidden], live: Mapping[int, int]) -> tuple[Tile, ...]:
    """Return the tiles of all files that waste bytes, and of the `live` bytes of each layer, by its number."""
    wasted = sorted(
        (file for file in hidden if file.wasted), key=lambda file: (file.shipped_by, -file.wasted, file.path)
    )
    layers = {number: list(files) for number, files in groupby(wasted, key=lambda file: file.shipped_by)}
    ships = {number: live.get(number, 0) + _sum(layers.get(number, [])) for number in {*layers, *live}}
    order = sorted((number for number in ships if ships[number]), key=lambda number: (-ships[number], number))
    areas = _areas([ships[number] for number in order], 0, 0, _ASPECT, 1)
    found: list[Tile] = []
    for number, area in zip(order, areas, strict=True):
        found += _layer_tiles(number, live.get(number, 0), _groups(layers.get(number, [])), area)
    return tuple(found)


def _layer_tiles(number: int, live: int, groups: Sequence[Sequence[Hidden]], area: Area) -> Iterator[Tile]:
    """Yield the tiles in a layer's area: of its hidden files, and one of what is visible, which has no files here."""
    visible: Sequence[Sequence[Hidden]] = [[]] if live else []
    # squarify wants them sorted.
    parts = sorted([*groups, *visible], key=lambda files: -(_sum(files) or live))
    for files, place in zip(parts, _areas([_sum(files) or live for files in parts], *area), strict=True):
        yield _tile(number, files, place) if files else _live_tile(number, live, place)


def _sum(files: Sequence[Hidden]) -> int:
    return sum(file.wasted for file in files)


def _areas(sizes: Sequence[int], x: float, y: float, width: float, height: float) -> list[Area]:
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


def _percent(place: Area) -> Area:
    x, y, width, height = place
    return (round(x / _ASPECT * 100, 3), round(y * 100, 3), round(width / _ASPECT * 100, 3), round(height * 100, 3))


def _live_tile(number: int, size: int, place: Area) -> Tile:
    return Tile(*_percent(place), number, "visible", "visible files", "", human_size(size), "not hidden", live=True)


def _tile(number: int, files: Sequence[Hidden], place: Area) -> Tile:
    box = _percent(place)
    size = human_size(_sum(files))
    if len(files) > 1:
        name = plural(len(files), "smaller file")
        return Tile(*box, number, name, name, "", size, "hidden by later layers")
    file = files[0]
    why = f"layer {file.hidden_by}: {file.why.value}"
    path = b"/" + file.path
    return Tile(*box, number, printable(file.path.rpartition(b"/")[2]), printable(path), key_of(path), size, why)
