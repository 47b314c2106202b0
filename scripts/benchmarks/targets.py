"""Which rows miss their targets."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.report import number
from benchmarks.results import FUSE, KERNEL, LOOPBACK, OURS, Place, Results
from benchmarks.rows import Limit, Row


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the targets say about a run: a line for each target that is missed, and for each that nothing tells."""

    missed: tuple[str, ...]
    unknown: tuple[str, ...]


def check(results: Results) -> Verdict:
    """Compare the results with the targets of their rows."""
    missed: list[str] = []
    unknown: list[str] = []
    for place in results.places:
        for row in results.rows(place):
            for fault in _ratio_faults(results, place, row, FUSE, row.fuse):
                (missed if fault.counts else unknown).append(fault.text)
            for fault in _ratio_faults(results, place, row, KERNEL, row.kernel):
                (missed if fault.counts else unknown).append(fault.text)
            missed += _absolute_faults(results, place, row)
    return Verdict(tuple(missed), tuple(unknown))


@dataclass(frozen=True, slots=True)
class _Fault:
    text: str
    counts: bool = True


def _ratio_faults(results: Results, place: Place, row: Row, peer: str, limit: Limit) -> list[_Fault]:
    target = limit.tmpfs if place.tmpfs else limit.disk
    if target is None:
        return []
    where = f"{row.name} on {place.name}"
    ours, theirs = results.of(place, row, OURS), results.of(place, row, peer)
    if ours.median is None:
        return [_Fault(f"{where}: no figure of ours ({ours.fault or 'not measured'})")]
    ratio = results.ratio(place, row, peer)
    if ratio is None:
        return [_Fault(f"{where}: no figure of {peer} ({theirs.fault or 'not measured'})", counts=False)]
    if ratio <= target:
        return []
    figures = (f"{name} {_figure(results, place, row, name)}" for name in (OURS, peer, LOOPBACK))
    return [_Fault(f"{where}: {ratio:.2f} times {peer}, target {target:g} ({', '.join(figures)})")]


def _absolute_faults(results: Results, place: Place, row: Row) -> list[str]:
    if row.most is None:
        return []
    middle = results.of(place, row, OURS).median
    if middle is None:
        return [f"{row.name} on {place.name}: no figure of ours"]
    found = middle * row.unit.factor
    if found <= row.most:
        return []
    loopback = _figure(results, place, row, LOOPBACK)
    unit = row.unit.name
    return [f"{row.name} on {place.name}: {number(found)} {unit}, target {row.most:g} {unit} ({LOOPBACK} {loopback})"]


def _figure(results: Results, place: Place, row: Row, peer: str) -> str:
    middle = results.of(place, row, peer).median
    return "-" if middle is None else f"{number(middle * row.unit.factor)} {row.unit.name}".strip()
