"""The contents of the page as values, from which the templates make HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from overlayfs_demo.analysis.accounts import Hidden, LayerReport
from overlayfs_demo.analysis.waste import Analysis
from overlayfs_demo.errors import printable
from overlayfs_demo.images import describe
from overlayfs_demo.mounts.layer_facts import UPPER, LayerFacts, walked
from overlayfs_demo.mounts.registry import MountRecord
from overlayfs_demo.store.stored import StoredImage
from overlayfs_demo.ui import docker_tables
from overlayfs_demo.ui.text import human_size, percentage
from overlayfs_demo.web.subject import LayerRoot, Subject, key_of
from overlayfs_demo.web.treemap import Tile, tiles
from overlayfs_demo.web.upper_content import UpperContent, upper_content

# How many rows the table of wasted files has.
_MOST_ROWS = 20


@dataclass(frozen=True, slots=True)
class Bar:
    """The length of a layer's bar: its share of all the bytes that the image ships, from 0 to 1, and what is seen."""

    share: float
    live: float


@dataclass(frozen=True, slots=True)
class Box:
    """One layer in the picture of the stack: `facts` are pairs of a word and a figure; no `bar` if not counted."""

    key: str
    name: str
    title: str
    facts: tuple[tuple[str, str], ...]
    bar: Bar | None = None


@dataclass(frozen=True, slots=True)
class WastedFile:
    """A row of the table of wasted files."""

    size: str
    path: str
    key: str
    shipped_by: int
    hidden_by: int
    why: str


@dataclass(frozen=True, slots=True)
class Waste:
    """The part of an image that is shipped but not seen. The rows leave out `left_out` more files."""

    shipped: str
    live: str
    wasted: str
    share: str
    dive_score: str
    dive_reason: str
    tiles: tuple[Tile, ...]
    rows: tuple[WastedFile, ...]
    left_out: int


@dataclass(frozen=True, slots=True)
class HistoryRow:
    """A step: the cells of `history`, its exact time, and the number of the layer it made (None: metadata only)."""

    cells: tuple[str, ...]
    created: str
    layer: int | None


@dataclass(frozen=True, slots=True)
class Page:
    """Everything that a page starts with. `kind` is "image" or "mount"; the boxes go from the top layer down."""

    kind: str
    title: str
    facts: tuple[tuple[str, str], ...]
    boxes: tuple[Box, ...]
    upper: UpperContent | None = None
    waste: Waste | None = None
    history_header: tuple[str, ...] = ()
    history: tuple[HistoryRow, ...] = ()


# --- an image --------------------------------------------------------------------------------------


def image_page(image: StoredImage, analysis: Analysis, now: float) -> Page:
    """Return the page of an image; `now` is in seconds since 1970."""
    others = [str(name) for name in image.names if name != image.name]
    facts = (
        *([("also called", printable(", ".join(others)))] if others else []),
        ("image ID", image.id.short),
        ("size", human_size(image.size)),
        ("layers", str(len(image.layers))),
        ("platform", str(image.parsed.platform)),
        ("wasted", f"{human_size(analysis.wasted)}{_share(analysis)}"),
    )
    boxes = tuple(
        Box(
            str(report.number),
            f"Layer {report.number}",
            printable(report.title),
            (
                ("size", human_size(report.shipped)),
                ("entries", str(_entries(analysis, report.number))),
                ("added", str(report.added.paths)),
                ("changed", str(report.changed.paths)),
                ("deleted", str(report.deleted.paths)),
                ("whiteouts", str(report.whiteouts)),
                ("wasted", human_size(report.wasted)),
            ),
            _bar(report, analysis.shipped),
        )
        for report in reversed(analysis.layers)
    )
    return Page(
        "image",
        printable(image.title),
        facts,
        boxes,
        waste=_waste(analysis),
        history_header=(*docker_tables.history_header(), "LAYER"),
        history=_history(image, now),
    )


def _bar(report: LayerReport, whole: int) -> Bar:
    return Bar(report.shipped / whole, report.live / whole) if whole else Bar(0, 0)


def _entries(analysis: Analysis, number: int) -> int:
    report = analysis.layers[number - 1]
    return report.added.paths + report.changed.paths + report.unchanged.paths


def _share(analysis: Analysis) -> str:
    return f" ({percentage(analysis.wasted, analysis.shipped)})" if analysis.shipped else ""


def _waste(analysis: Analysis) -> Waste:
    hidden = sorted((file for file in analysis.hidden if file.wasted), key=lambda file: (-file.wasted, file.path))
    return Waste(
        human_size(analysis.shipped),
        human_size(analysis.live),
        human_size(analysis.wasted),
        percentage(analysis.wasted, analysis.shipped),
        percentage(analysis.dive_score, 1, digits=2),
        analysis.dive_reason,
        tiles(analysis.hidden, {report.number: report.live for report in analysis.layers}),
        tuple(map(_wasted_file, hidden[:_MOST_ROWS])),
        len(hidden[_MOST_ROWS:]),
    )


def _wasted_file(file: Hidden) -> WastedFile:
    path = b"/" + file.path
    return WastedFile(
        human_size(file.wasted), printable(path), key_of(path), file.shipped_by, file.hidden_by, file.why.value
    )


def _history(image: StoredImage, now: float) -> tuple[HistoryRow, ...]:
    facts = [describe.LayerFacts(layer.size) for layer in image.layers]
    rows = describe.history_rows(image.value, facts, every_layer=True)
    number = len(image.layers)
    found = []
    for row in rows:
        cells = (printable(cell) for cell in docker_tables.history_cells(row, now))
        identity, *others = cells
        created = "" if row.created is None else docker_tables.rfc3339(row.created)
        found.append(
            HistoryRow((docker_tables.short_id(identity), *others), created, number if row.layer is not None else None)
        )
        number -= row.layer is not None
    return tuple(found)


# --- a mounted view --------------------------------------------------------------------------------


def mount_page(record: MountRecord, subject: Subject) -> Page:
    """Return the page of a mounted view. Raises OSError for a layer that cannot be read."""
    upper = upper_content(subject.layers[0].directory) if _has_upper(subject.layers) else None
    facts = (
        ("front", record.front),
        ("lower layers", str(len(record.lowers))),
        ("upper", printable(record.upper) if record.upper is not None else "none: read-only"),
        ("daemon", f"process {record.daemon}" + (f", number {record.restarts + 1}" if record.restarts else "")),
    )
    boxes = tuple(_box(layer, upper) for layer in subject.layers)
    return Page("mount", printable(record.mountpoint), facts, boxes, upper)


def _has_upper(layers: Sequence[LayerRoot]) -> bool:
    return bool(layers) and layers[0].key == UPPER


def _box(layer: LayerRoot, upper: UpperContent | None) -> Box:
    unwalked = LayerFacts(layer.label, layer.title, str(layer.directory))
    counted = upper.count if upper is not None and layer.key == UPPER else walked(unwalked).count
    size, entries, whiteouts = counted or ("?", "?", "?")
    return Box(
        layer.key,
        layer.name,
        printable(layer.title),
        (
            ("size", size if isinstance(size, str) else human_size(size)),
            ("entries", str(entries)),
            ("whiteouts", str(whiteouts)),
        ),
    )
