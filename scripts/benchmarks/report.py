"""The results as tables, for a terminal and for a document."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmarks.results import FUSE, KERNEL, OURS, Place, Results
from benchmarks.rows import GROUPS, Row

_LEGEND = "Medians of all rounds, ± how far the farthest round is from them. Less is better in every row."
_NAMED = 6  # rows without a figure for the same reason
START, END = "<!-- figures -->", "<!-- end of figures -->"


def number(value: float) -> str:
    """Return a figure with about three digits."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def groups(results: Results, place: Place) -> Iterator[tuple[str, list[Row]]]:
    """Return the rows that were measured at a place, by the title of their group."""
    measured = results.rows(place)
    for title, rows in GROUPS.items():
        if found := [row for row in rows if row in measured]:
            yield title, found


def _cell(results: Results, place: Place, row: Row, peer: str) -> str:
    figures = results.of(place, row, peer)
    if figures.median is None:
        return "-"
    spread = f" ±{figures.spread:.0%}" if len(figures.samples) > 1 else ""
    return number(figures.median * row.unit.factor) + spread


def _ratio(results: Results, place: Place, row: Row, peer: str) -> str:
    ratio = results.ratio(place, row, peer)
    return "-" if ratio is None else f"{ratio:.2f}"


def _columns(lines: list[list[str]]) -> list[str]:
    """Return lines of cells as text: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if position else cell.ljust(width)
            for position, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]


def _figures_table(results: Results, place: Place) -> list[str]:
    lines = [[f"{place.name}", "unit", *results.peers]]
    for _, rows in groups(results, place):
        lines += [
            [row.name, row.unit.name, *(_cell(results, place, row, peer) for peer in results.peers)] for row in rows
        ]
    return _columns(lines)


def _ratios_table(results: Results, place: Place) -> list[str]:
    others = [peer for peer in results.peers if peer != OURS]
    lines = [[f"{place.name}: {OURS} /", *others]]
    for _, rows in groups(results, place):
        lines += [[row.name, *(_ratio(results, place, row, peer) for peer in others)] for row in rows]
    return _columns(lines)


def faults(results: Results) -> list[str]:
    """Return a line for each reason why a peer has no figure."""
    return [f"{peer}: {reason}: {_some(rows)}" for (peer, reason), rows in results.faults().items()]


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def terminal(results: Results) -> str:
    """Return the tables of all places, and below them why figures are missing."""
    lines = [f"{name}: {fact}" for name, fact in {**results.facts, **results.peers}.items()]
    lines.append(_LEGEND)
    for place in results.places:
        lines += ["", *_figures_table(results, place)]
        if OURS in results.peers and len(results.peers) > 1:
            lines += ["", *_ratios_table(results, place)]
    if missing := faults(results):
        lines += ["", "no figure (-):", *(f"  {line}" for line in missing)]
    return "\n".join(lines)


# --- a document -------------------------------------------------------------------------------------


def _markdown_line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _markdown_table(results: Results, place: Place, rows: list[Row]) -> list[str]:
    peers = [peer for peer in results.peers if peer != OURS]
    compared = [peer for peer in (FUSE, KERNEL) if peer in results.peers]
    head = ["", "unit", *peers, OURS, *(f"ours / {peer}" for peer in compared)]
    lines = [_markdown_line(head), "|---|---|" + "--:|" * (len(head) - 2)]
    for row in rows:
        figures = [_cell(results, place, row, peer) for peer in [*peers, OURS]]
        ratios = [_ratio(results, place, row, peer) for peer in compared]
        lines.append(_markdown_line([row.about.replace("|", "\\|"), row.unit.name, *figures, *ratios]))
    return lines


def markdown(results: Results, picture: str = "") -> str:
    """Return the tables of all places in Markdown, above them the picture of this address, if there is one."""
    lines = [f"![The same figures as ratios to those of {FUSE}.]({picture})", ""] if picture else []
    lines += [f"- {name}: {fact}" for name, fact in {**results.facts, **results.peers}.items()]
    lines += ["", _LEGEND]
    for place in results.places:
        for title, rows in groups(results, place):
            lines += ["", f"### {title}, {place.name}", "", *_markdown_table(results, place, rows)]
    if missing := faults(results):
        lines += ["", "### No figure", "", *(f"- {line}" for line in missing)]
    return "\n".join(lines)


def write_into(document: Path, text: str) -> None:
    """Replace what stands between the two marks in a document. Raises OSError, and ValueError if it has no marks."""
    before, start, rest = document.read_text().partition(f"{START}\n")
    _, end, after = rest.partition(END)
    if not start or not end:
        raise ValueError(f"{document} has no lines {START!r} and {END!r}, between which the figures would stand")
    document.write_text(f"{before}{start}\n{text}\n\n{end}{after}")
