"""What a run has found, and how it is kept as JSON."""

from __future__ import annotations

import dataclasses
import json
import statistics
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.rows import ROWS, Row

OURS, FUSEPY = "ours-kernel", "ours-fusepy"
KERNEL, FUSE, LOOPBACK = "overlayfs", "fuse-overlayfs", "c-loopback"


@dataclass(frozen=True, slots=True)
class Place:
    """Where layers and uppers were: a name to print, and whether it was a tmpfs."""

    name: str
    tmpfs: bool


@dataclass(frozen=True, slots=True)
class Figures:
    """What one peer took in one row at one place, once for each round, in seconds, bytes or pieces.

    With a `fault` it has failed, and the samples are void.
    """

    samples: tuple[float, ...] = ()
    fault: str = ""

    @property
    def median(self) -> float | None:
        return None if self.fault or not self.samples else statistics.median(self.samples)

    @property
    def spread(self) -> float:
        """How far the samples are from the median at most, as a share of it."""
        middle = self.median
        return max((abs(sample - middle) for sample in self.samples), default=0.0) / middle if middle else 0.0


@dataclass(slots=True)
class Results:
    """All figures of a run. `peers` are the versions by name, and `facts` what else a reader must know."""

    facts: dict[str, str]
    peers: dict[str, str]
    places: list[Place]
    figures: dict[tuple[str, str, str], Figures] = field(default_factory=dict)

    def of(self, place: Place, row: Row, peer: str) -> Figures:
        return self.figures.get((place.name, row.name, peer), Figures())

    def ratio(self, place: Place, row: Row, peer: str) -> float | None:
        """Return our kernel front's median as a ratio to the peer's."""
        ours, theirs = self.of(place, row, OURS).median, self.of(place, row, peer).median
        return None if ours is None or not theirs else ours / theirs

    def rows(self, place: Place) -> list[Row]:
        """Return the rows that were measured at the place."""
        measured = {row for where, row, _ in self.figures if where == place.name}
        return [row for row in ROWS if row.name in measured]

    def faults(self) -> dict[tuple[str, str], list[str]]:
        """Return the names of the rows that failed, by peer and reason."""
        found: dict[tuple[str, str], list[str]] = {}
        for (_, row, peer), figures in self.figures.items():
            if figures.fault:
                found.setdefault((peer, figures.fault), []).append(row)
        return {key: list(dict.fromkeys(rows)) for key, rows in found.items()}


def write_json(results: Results, target: Path) -> None:
    figures = [
        {"place": place, "row": row, "peer": peer, **dataclasses.asdict(found)}
        for (place, row, peer), found in results.figures.items()
    ]
    places = [dataclasses.asdict(place) for place in results.places]
    text = {"facts": results.facts, "peers": results.peers, "places": places, "figures": figures}
    target.write_text(json.dumps(text, indent=1) + "\n")


def read_json(source: Path) -> Results:
    """Return the results that `write_json` wrote. Raises OSError, and ValueError for anything else."""
    try:
        text = json.loads(source.read_text())
        places = [Place(**place) for place in text["places"]]
        figures = {
            (cell["place"], cell["row"], cell["peer"]): Figures(tuple(cell["samples"]), cell["fault"])
            for cell in text["figures"]
        }
        return Results(text["facts"], text["peers"], places, figures)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{source} does not hold the results of a run: {error}") from error
