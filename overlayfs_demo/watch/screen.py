"""The picture of a view on a terminal of any size, drawn by rich.

Only a terminal needs it: import it late, so that a pipe does not wait for rich.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.panel import Panel
from rich.segment import Segment, Segments
from rich.table import Table
from rich.text import Text

from overlayfs_demo.errors import printable
from overlayfs_demo.events import Action
from overlayfs_demo.mounts.layer_facts import UPPER, Count, LayerFacts
from overlayfs_demo.ui.text import cut_middle, human_size, plural
from overlayfs_demo.watch.state import Line, Scene

# On a terminal with at least this many columns, the stack is beside the sentences, otherwise above them.
_WIDE = 70
# Rows of a full box, and of one without a separate row for the step that made the layer.
_TALL, _LOW = 4, 3
# Rows above and below the sentences, and at most for each sentence.
_FRAME = 3
_LONGEST_SENTENCE = 4

_COLOURS = {Action.COPY_UP: "cyan", Action.WHITEOUT: "red", Action.OPAQUE: "red", Action.REDIRECT: "magenta"}


def drawing(scene: Scene) -> RenderableType:
    """The picture of a scene, which fills the terminal that it is printed on."""
    return _Drawing(scene)


class _Drawing:
    def __init__(self, scene: Scene) -> None:
        self._scene = scene

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width, height = options.max_width, options.height or console.height
        rows = max(height - _FRAME, 0)
        yield self._head(width)
        if width >= _WIDE:
            left = min(max(34, width * 2 // 5), 64)
            grid = Table.grid(padding=0)
            grid.add_column(width=left)
            grid.add_column(width=width - left)
            sentences = self._sentences(console, width - left - 1, rows)
            grid.add_row(Group(*self._stack(rows, left)), Text("\n").join(Text(" ") + words for words in sentences))
            yield _filled(console, options, grid, rows)
        else:
            above = rows // 2
            sentences = self._sentences(console, width, rows - above)
            yield _filled(console, options, Group(*self._stack(above, width)), above)
            yield _filled(console, options, Text("\n").join(sentences), rows - above)
        yield _row(f"answered: {self._scene.asked}" if self._scene.asked else "", "dim")
        yield self._foot()

    def _head(self, width: int) -> RenderableType:
        words = f" {self._scene.totals.words()}"
        where = cut_middle(printable(self._scene.mountpoint), max(width - len(words), 1))
        return _row(where + " " * (width - len(where) - len(words)) + words, "bold reverse")

    def _foot(self) -> RenderableType:
        scene = self._scene
        if not scene.has_keys:
            return _row("Ctrl-C to quit", "dim")
        keys = f"   f show: {scene.choice.value}   c clear   q quit"
        if scene.unseen is None:
            return _row("p pause" + keys)
        return _row("").append(f"paused, {scene.unseen} more", "bold yellow").append("   p resume" + keys)

    # --- the sentences ---

    def _sentences(self, console: Console, width: int, rows: int) -> list[Text]:
        """Return the rows of the newest sentences, the newest last."""
        shown: list[Text] = []
        for line in reversed(self._scene.lines):
            if len(shown) >= rows:
                break
            wrapped = _sentence(line, width).wrap(console, max(width, 1))
            if len(wrapped) > _LONGEST_SENTENCE:
                wrapped[_LONGEST_SENTENCE - 1] = Text("…", wrapped[0].style)
            shown[:0] = wrapped[:_LONGEST_SENTENCE]
        return shown[max(len(shown) - rows, 0) :]

    # --- the stack ---

    def _stack(self, rows: int, width: int) -> list[RenderableType]:
        """Return the boxes that fit, and notes where boxes are left out."""
        boxes, lit = self._scene.boxes, self._scene.lit
        height = _TALL if len(boxes) * _TALL <= rows else _LOW
        shown = visible(len(boxes), [at for at, layer in enumerate(boxes) if layer.label in lit], rows, height)
        drawn: list[RenderableType] = []
        after = 0
        for at in [*shown, len(boxes)]:
            if at > after:
                drawn.append(_row(f"  … {at - after} more", "dim"))
            if at < len(boxes):
                drawn.append(_box(boxes[at], height, width, boxes[at].label in lit))
            after = at + 1
        return drawn


def visible(count: int, lit: Sequence[int], rows: int, height: int) -> list[int]:
    """Return which of `count` boxes of this height fit in so many rows, with a row for each gap.

    The first one comes first, then those that are lit, then the topmost.
    """
    chosen: list[int] = []
    for at in dict.fromkeys([*range(min(count, 1)), *lit, *range(count)]):
        more = sorted([*chosen, at])
        gaps = sum(after - before > 1 for before, after in zip([-1, *more], [*more, count], strict=True))
        if len(more) * height + gaps <= rows:
            chosen = more
        elif at not in lit:
            break
    return chosen


def _box(layer: LayerFacts, height: int, width: int, lit: bool) -> RenderableType:
    made = printable(layer.path if layer.label == UPPER else layer.title or os.path.basename(layer.path))
    made = cut_middle(made, max(width - 4, 1)) if layer.label == UPPER else made
    words = _row("?" if layer.count is None else _facts(layer.count))
    title = layer.name if height == _TALL else f"{layer.name}: {made}"
    style = ("bold yellow" if layer.label == UPPER else "bold cyan") if lit else "dim"
    return Panel(
        Group(_row(made), words) if height == _TALL else words,
        box.HEAVY if lit else box.ROUNDED,
        title=_row(printable(title), "bold" if lit else ""),
        title_align="left",
        border_style=style,
        width=max(width, 4),
        height=height,
    )


def _facts(count: Count) -> str:
    words = f"{human_size(count.size)} in {plural(count.entries, 'entry', 'entries')}"
    return f"{words}, {plural(count.whiteouts, 'whiteout')}" if count.whiteouts else words


def _sentence(line: Line, width: int) -> Text:
    style = "dim" if line.event is None else _COLOURS.get(line.event.action, "")
    return Text(line.words(longest=max(width - 2, 8), brief=True), style)


def _row(words: str, style: str = "") -> Text:
    """Return one row, however narrow the terminal is."""
    return Text(words, style, no_wrap=True, overflow="ellipsis")


def _filled(console: Console, options: ConsoleOptions, content: RenderableType, rows: int) -> RenderableType:
    """Return the content, cut or filled to exactly this many rows."""
    lines = console.render_lines(content, options.update(height=None), pad=True)
    shaped = Segment.set_shape(lines, options.max_width, rows)
    return Segments([segment for line in shaped for segment in (*line, Segment.line())])
