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
# Rows of a full box, of one without a separate row for the step that made the layer, and of a layer without a box.
_TALL, _LOW, _FLAT = 4, 3, 1
_LONGEST_SENTENCE = 4
# Columns of a size, such as 1.23MB, and of the path of a mount point at least, if the totals stand beside it.
_SIZE_WIDTH, _SHORT_PATH = 6, 12

_COLOURS = {Action.COPY_UP: "cyan", Action.WHITEOUT: "red", Action.OPAQUE: "red", Action.REDIRECT: "magenta"}


def drawing(scene: Scene) -> RenderableType:
    """The picture of a scene, which fills the terminal that it is printed on."""
    return _Drawing(scene)


class _Drawing:
    def __init__(self, scene: Scene) -> None:
        self._scene = scene

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width, height = options.max_width, options.height or console.height
        head, foot = self._head(width), self._foot(width)
        # Between them, one row has the numbers of questions.
        rows = max(height - len(head) - len(foot) - 1, 0)
        yield from head
        if width >= _WIDE:
            left = min(max(34, width * 2 // 5), 64)
            grid = Table.grid(padding=0)
            grid.add_column(width=left)
            grid.add_column(width=width - left)
            sentences = self._sentences(console, width - left - 1, rows)
            grid.add_row(Group(*self._stack(rows, left)), Text("\n").join(Text(" ") + words for words in sentences))
            yield _filled(console, options, grid, rows)
        else:
            # The stack is taller than the sentences, if it needs to be. Below it is a line.
            stack = self._stack(max(rows * 3 // 5 - 1, 0), width)
            above = min(len(console.render_lines(Group(*stack), options.update(height=None))) + 1, rows)
            yield _filled(console, options, Group(*stack, _row("─" * width, "dim")), above)
            sentences = self._sentences(console, width, rows - above)
            yield _filled(console, options, Text("\n").join(sentences), rows - above)
        yield _row(f"answered: {self._scene.asked}" if self._scene.asked else "", "dim")
        yield from foot

    def _head(self, width: int) -> list[RenderableType]:
        """Return the title: the mount point and the totals, in two rows where one is too short for both."""
        since, totals = "since you began:", self._scene.totals.words()
        if _SHORT_PATH + len(f" {since} {totals}") <= width:
            return [_title(self._scene.mountpoint, f" {since} {totals}", width)]
        return [_title(self._scene.mountpoint, f" {since}", width), _title("", totals, width)]

    def _foot(self, width: int) -> list[RenderableType]:
        """Return the keys, in as many rows as they need."""
        scene = self._scene
        if not scene.has_keys:
            return [_row("Ctrl-C to quit", "dim")]
        keys = [f"f show: {scene.choice.value}", "c clear", "q quit"]
        if scene.unseen is None:
            return _folded([("p pause", ""), *((key, "") for key in keys)], width)
        paused = (f"paused, {scene.unseen} more", "bold yellow")
        return _folded([paused, ("p resume", ""), *((key, "") for key in keys)], width)

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
        """Return the layers that fit, in boxes if all of them fit so, and notes where layers are left out."""
        boxes, lit = self._scene.boxes, self._scene.lit
        height = next((height for height in (_TALL, _LOW) if len(boxes) * height <= rows), _FLAT)
        longest = max((len(layer.name) for layer in boxes), default=0)
        shown = visible(len(boxes), [at for at, layer in enumerate(boxes) if layer.label in lit], rows, height)
        drawn: list[RenderableType] = []
        after = 0
        for at in [*shown, len(boxes)]:
            if at > after:
                drawn.append(_row(f"  … {at - after} more", "dim"))
            if at < len(boxes):
                is_lit = boxes[at].label in lit
                flat = height == _FLAT
                drawn.append(_flat(boxes[at], longest, is_lit) if flat else _box(boxes[at], height, width, is_lit))
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


def _flat(layer: LayerFacts, name_width: int, lit: bool) -> RenderableType:
    """Return a layer in one row: its size, and of the upper how much is in it, of a lower what made it."""
    size = "?" if layer.count is None else human_size(layer.count.size)
    about = _made_by(layer)
    if layer.label == UPPER:
        about = "" if layer.count is None else _entries(layer.count)
    words = f" {layer.name:<{name_width}}  {size:>{_SIZE_WIDTH}}  {about}"
    return _row("┃" if lit else "│", _style(layer, lit)).append(words, "bold" if lit else "")


def _box(layer: LayerFacts, height: int, width: int, lit: bool) -> RenderableType:
    made = cut_middle(printable(layer.path), max(width - 4, 1)) if layer.label == UPPER else _made_by(layer)
    words = _row("?" if layer.count is None else _facts(layer.count))
    title = layer.name if height == _TALL else f"{layer.name}: {made}"
    return Panel(
        Group(_row(made), words) if height == _TALL else words,
        box.HEAVY if lit else box.ROUNDED,
        title=_row(printable(title), "bold" if lit else ""),
        title_align="left",
        border_style=_style(layer, lit),
        width=max(width, 4),
        height=height,
    )


def _made_by(layer: LayerFacts) -> str:
    return printable(layer.title or os.path.basename(layer.path))


def _style(layer: LayerFacts, lit: bool) -> str:
    return ("bold yellow" if layer.label == UPPER else "bold cyan") if lit else "dim"


def _facts(count: Count) -> str:
    return f"{human_size(count.size)} in {_entries(count)}"


def _entries(count: Count) -> str:
    words = plural(count.entries, "entry", "entries")
    return f"{words}, {plural(count.whiteouts, 'whiteout')}" if count.whiteouts else words


def _sentence(line: Line, width: int) -> Text:
    style = "dim" if line.event is None else _COLOURS.get(line.event.action, "")
    return Text(line.words(longest=max(width - 2, 8), brief=True), style)


def _title(left: str, right: str, width: int) -> Text:
    where = cut_middle(printable(left), max(width - len(right), 1))
    return _row(where + " " * (width - len(where) - len(right)) + right, "bold reverse")


def _folded(parts: Sequence[tuple[str, str]], width: int) -> list[RenderableType]:
    """Return the parts, each with its style, in rows: closer to each other if one row is only just enough."""
    lengths = sum(len(words) for words, _ in parts)
    gap = " " * (3 if lengths + 3 * (len(parts) - 1) <= width else 2)
    rows = [_row("")]
    for words, style in parts:
        if rows[-1] and rows[-1].cell_len + len(gap) + len(words) > width:
            rows.append(_row(""))
        rows[-1].append(gap if rows[-1] else "").append(words, style)
    return list(rows)


def _row(words: str, style: str = "") -> Text:
    """Return one row, however narrow the terminal is."""
    return Text(words, style, no_wrap=True, overflow="ellipsis")


def _filled(console: Console, options: ConsoleOptions, content: RenderableType, rows: int) -> RenderableType:
    """Return the content, cut or filled to exactly this many rows."""
    lines = console.render_lines(content, options.update(height=None), pad=True)
    shaped = Segment.set_shape(lines, options.max_width, rows)
    return Segments([segment for line in shaped for segment in (*line, Segment.line())])
