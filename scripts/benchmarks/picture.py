"""The results as a picture: each row a line, and on it each peer's figure as a ratio to fuse-overlayfs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from xml.sax.saxutils import escape

from benchmarks.report import groups
from benchmarks.results import FUSE, FUSEPY, KERNEL, LOOPBACK, OURS, Place, Results
from benchmarks.rows import Row

# In pixels.
_LABELS, _PANEL, _GAP, _LINE, _TOP, _SIZE = 330, 330, 40, 18, 64, 4.5
# The ends of the axis, and the ratios with a line.
_LEAST, _MOST = 0.01, 30.0
_TICKS = (0.01, 0.1, 0.5, 1.0, 2.0, 10.0)
# The shape and the colour of each peer, either of which is enough to tell them apart.
_MARKS = {
    OURS: ("circle", "ours"),
    KERNEL: ("diamond", "kernel"),
    LOOPBACK: ("square", "loopback"),
    FUSEPY: ("ring", "fusepy"),
}
_OTHER = ("frame", "other")
_STYLE = """
text { font: 12px system-ui, sans-serif; fill: #1f2328 }
.title { font-weight: 600 } .small { font-size: 10px; fill: #59636e }
.line { stroke: #d1d9e0 } .even { stroke: #59636e }
.ours { fill: #0969da } .kernel { fill: #1a7f37 } .loopback { fill: #9a6700 }
.fusepy { fill: none; stroke: #cf222e; stroke-width: 1.5 }
.other { fill: none; stroke: #8250df; stroke-width: 1.5 } .target { stroke: #0969da; stroke-width: 2 }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc } .small { fill: #9198a1 } .line { stroke: #3d444d } .even { stroke: #9198a1 }
  .ours { fill: #4493f8 } .kernel { fill: #3fb950 } .loopback { fill: #d29922 } .fusepy { stroke: #f85149 }
  .other { stroke: #ab7df8 } .target { stroke: #4493f8 }
}
"""


def draw(results: Results) -> str:
    """Return the picture as SVG, readable on a light and on a dark page."""
    lines = list(_lines(results))
    width = _LABELS + len(results.places) * (_PANEL + _GAP)
    height = _TOP + len(lines) * _LINE + _LINE
    parts = [*_legend(results), *(_label(at, entry) for at, entry in enumerate(lines))]
    for number, place in enumerate(results.places):
        left = _LABELS + number * (_PANEL + _GAP)
        parts += _axis(place.name, left, height)
        for at, entry in enumerate(lines):
            if isinstance(entry, Row):
                parts += _marks(results, place, entry, left, _middle(at))
    body = "\n".join(parts)
    about = f"The figure of each peer as a ratio to that of {FUSE}, for each row of the benchmark"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
        f' role="img">\n<title>{about}</title>\n<style>{_STYLE}</style>\n{body}\n</svg>\n'
    )


def _lines(results: Results) -> Iterator[str | Row]:
    """Return the titles and rows from the top down. A row without a time of fuse-overlayfs has no place."""
    shown = {
        row
        for place in results.places
        for row in results.rows(place)
        if results.of(place, row, FUSE).median is not None
    }
    for place in results.places[:1]:
        for title, rows in groups(results, place):
            if found := [row for row in rows if row in shown]:
                yield title
                yield from found


def _middle(at: int) -> float:
    return _TOP + (at + 0.5) * _LINE


def _across(ratio: float, left: float) -> float:
    share = math.log(min(max(ratio, _LEAST), _MOST) / _LEAST) / math.log(_MOST / _LEAST)
    return left + share * _PANEL


def _text(text: str, left: float, top: float, kind: str = "", anchor: str = "start") -> str:
    return f'<text x="{left:.1f}" y="{top:.1f}" class="{kind}" text-anchor="{anchor}">{escape(text)}</text>'


def _label(at: int, entry: str | Row) -> str:
    if isinstance(entry, Row):
        return _text(entry.about, _LABELS - 12, _middle(at) + 4, anchor="end")
    return _text(entry, 8, _middle(at) + 4, "title")


def _axis(title: str, left: float, height: float) -> Iterator[str]:
    yield _text(title, left, 18, "title")
    for tick in _TICKS:
        across = _across(tick, left)
        kind = "even" if tick == 1 else "line"
        yield f'<line x1="{across:.1f}" x2="{across:.1f}" y1="{_TOP - 6}" y2="{height - _LINE}" class="{kind}"/>'
        yield _text(f"{tick:g}", across, _TOP - 12, "small", "middle")


def _marks(results: Results, place: Place, row: Row, left: float, middle: float) -> Iterator[str]:
    even = results.of(place, row, FUSE).median
    if not even:
        return
    if target := row.fuse.tmpfs if place.tmpfs else row.fuse.disk:
        across = _across(target, left)
        yield f'<line x1="{across:.1f}" x2="{across:.1f}" y1="{middle - 7}" y2="{middle + 7}" class="target"/>'
    # Ours last, so that nothing hides it.
    for peer in sorted(results.peers, key=lambda name: name == OURS):
        found = results.of(place, row, peer).median
        if peer != FUSE and found is not None:
            yield _mark(peer, _across(found / even, left), middle, f"{row.about}, {peer}: {found / even:.2f}")


def _mark(peer: str, across: float, middle: float, title: str) -> str:
    shape, kind = _MARKS.get(peer, _OTHER)
    about = f"<title>{escape(title)}</title>"
    if shape in ("circle", "ring"):
        return f'<circle cx="{across:.1f}" cy="{middle}" r="{_SIZE}" class="{kind}">{about}</circle>'
    turn = f' transform="rotate(45 {across:.1f} {middle})"' if shape == "diamond" else ""
    left, top, side = across - _SIZE + 0.5, middle - _SIZE + 0.5, 2 * _SIZE - 1
    return f'<rect x="{left:.1f}" y="{top}" width="{side}" height="{side}" class="{kind}"{turn}>{about}</rect>'


def _legend(results: Results) -> Iterator[str]:
    yield _text(f"ratio to {FUSE} (less is better)", 8, 18, "title")
    left = 14.0
    for peer in results.peers:
        if peer != FUSE:
            yield _mark(peer, left, 34, peer)
            yield _text(peer, left + 9, 38, "small")
            left += 24 + 6 * len(peer)
    yield f'<line x1="{left:.1f}" x2="{left:.1f}" y1="27" y2="41" class="target"/>'
    yield _text("target", left + 6, 38, "small")
