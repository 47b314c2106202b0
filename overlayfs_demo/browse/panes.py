"""The two panes: lists of lines with a cursor, which draw only what is on the screen."""

from __future__ import annotations

import stat
from collections.abc import Sequence
from typing import ClassVar

from rich.style import Style
from rich.text import Text
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from overlayfs_demo.browse.depths import Entry
from overlayfs_demo.browse.model import Line
from overlayfs_demo.browse.subject import LayerStep, layer_name
from overlayfs_demo.errors import printable
from overlayfs_demo.images.upper_diff import Kind
from overlayfs_demo.ui.text import human_size

_STYLES = {Kind.ADDED: "green", Kind.CHANGED: "yellow", Kind.DELETED: "red"}
# A tree of at least this width, in characters, also has the mode and the owner.
_WIDE = 72


class LinePane(ScrollView, can_focus=True):
    """Lines with a cursor. Subclasses say how many there are and draw one."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)"),
        Binding("down,j", "move(1)"),
        Binding("pageup", "page(-1)"),
        Binding("pagedown", "page(1)"),
        Binding("home,g", "jump(0)"),
        Binding("end,G", "jump(-1)"),
    ]

    class Moved(Message):
        """The cursor of a pane is on another line."""

        def __init__(self, pane: LinePane) -> None:
            super().__init__()
            self.pane = pane

    class Chosen(Message):
        """A line was clicked where the cursor already was."""

        def __init__(self, pane: LinePane) -> None:
            super().__init__()
            self.pane = pane

    cursor = 0

    @property
    def count(self) -> int:
        """The number of lines."""
        raise NotImplementedError

    def draw(self, index: int, width: int) -> Text:
        """Return one line, at least what fits the width."""
        raise NotImplementedError

    def can_hold(self, index: int) -> bool:
        """Return whether the cursor may stand on a line."""
        return True

    def changed(self, cursor: int | None = None) -> None:
        """Draw all lines again; with `cursor`, from there."""
        self.virtual_size = Size(1, self.count)
        self.place_cursor(self.cursor if cursor is None else cursor)
        self.refresh()

    def place_cursor(self, index: int) -> None:
        """Put the cursor on a line, and scroll to it."""
        self.cursor = max(0, min(index, self.count - 1))
        top, height = int(self.scroll_offset.y), max(self.size.height, 1)
        if not top <= self.cursor < top + height:
            self.scroll_to(y=self.cursor if self.cursor < top else self.cursor - height + 1, animate=False)
        self.refresh()

    def render_line(self, y: int) -> Strip:
        """Return one row of the pane."""
        index, width = int(self.scroll_offset.y) + y, self.size.width
        if index >= self.count:
            return Strip.blank(width, self.rich_style)
        text = self.draw(index, width)
        # The size includes the bar, which would cover the ellipsis.
        text.truncate(self.scrollable_content_region.width, overflow="ellipsis")
        strip = Strip(text.render(self.app.console)).adjust_cell_length(width).apply_style(self.rich_style)
        if index != self.cursor:
            return strip
        return strip.apply_style(Style(reverse=True, bold=True) if self.has_focus else Style(underline=True, bold=True))

    def action_move(self, lines: int) -> None:
        """Move the cursor, over lines that cannot hold it."""
        step = 1 if lines > 0 else -1
        index = self.cursor + lines
        while 0 <= index < self.count and not self.can_hold(index):
            index += step
        if 0 <= index < self.count:
            self._move_to(index)

    def action_page(self, pages: int) -> None:
        """Move the cursor by the height of the pane."""
        self.action_jump(max(0, min(self.cursor + pages * max(self.size.height - 1, 1), self.count - 1)))

    def action_jump(self, index: int) -> None:
        """Move the cursor to a line; -1 is the last one."""
        index = self.count - 1 if index < 0 else index
        holding = [line for line in range(self.count) if self.can_hold(line)]
        if holding:
            self._move_to(min(holding, key=lambda line: abs(line - index)))

    def _move_to(self, index: int) -> None:
        self.place_cursor(index)
        self.post_message(self.Moved(self))

    def on_click(self, event: events.Click) -> None:
        """Put the cursor where the mouse is."""
        index = int(self.scroll_offset.y) + event.y
        if index < self.count and self.can_hold(index):
            again = index == self.cursor
            self._move_to(index)
            if again:
                self.post_message(self.Chosen(self))

    def on_resize(self) -> None:
        """Keep the cursor in sight."""
        self.changed()


class LayerPane(LinePane):
    """The layers from the top down, and dimmed the steps that made none."""

    steps: Sequence[LayerStep] = ()

    @property
    def count(self) -> int:
        return len(self.steps)

    def can_hold(self, index: int) -> bool:
        return self.steps[index].place is not None

    def draw(self, index: int, width: int) -> Text:
        step = self.steps[index]
        size = "" if step.place is None else "…" if step.size is None else human_size(step.size)
        text = Text(f"{step.number:>5} {size:>7}  ")
        text.append(printable(step.title))
        if step.place is None:
            text.stylize("dim")
        return text


class TreePane(LinePane):
    """The tree as of a layer."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("right,l", "app.open_here"), Binding("left,h", "app.close_here")]

    lines: Sequence[Line] = ()

    @property
    def count(self) -> int:
        return len(self.lines)

    @property
    def line(self) -> Line | None:
        """The line at the cursor."""
        return self.lines[self.cursor] if self.cursor < len(self.lines) else None

    def draw(self, index: int, width: int) -> Text:
        line = self.lines[index]
        if line.entry is None:
            return Text(f"{_columns(width, '', '', '', '', '')}{'  ' * line.depth}  {line.note}", "dim")
        entry = line.entry
        letter = entry.kind.value if entry.kind is not None else " "
        size = "…" if line.size is None else human_size(line.size)
        mode = "?" * 10 if entry.broken else stat.filemode(entry.mode)
        text = Text(_columns(width, letter, _layer(entry), mode, f"{entry.uid}:{entry.gid}", size))
        text.append(f"{'  ' * line.depth}{_name(line, entry)}")
        text.append(_remarks(entry), "dim")
        if entry.kind is not None:
            text.stylize(_STYLES[entry.kind])
        return text


def tree_heading(width: int) -> str:
    """Return the heading of the tree's columns."""
    return _columns(width, "", "LAYER", "MODE", "OWNER", "SIZE") + "  NAME"


def _columns(width: int, letter: str, layer: str, mode: str, owner: str, size: str) -> str:
    wide = f"{mode:<11}{owner:<12}" if width >= _WIDE else ""
    return f"{letter:<2}{layer:<6}{wide}{size:>7} "


def _layer(entry: Entry) -> str:
    return layer_name(entry.layer).removeprefix("layer ")


def _name(line: Line, entry: Entry) -> str:
    name = printable(entry.name)
    if not entry.is_directory:
        return f"  {name}"
    return f"{'-' if line.is_open else '+'} {name}/"


def _remarks(entry: Entry) -> str:
    remarks = []
    if entry.target:
        remarks.append(f"-> {printable(entry.target)}")
    if entry.opaque:
        remarks.append("opaque")
    if entry.redirect:
        remarks.append(f"renamed, lower files in {printable(entry.redirect)}")
    if entry.broken:
        remarks.append("cannot be looked up")
    return "".join(f"  {remark}" for remark in remarks)
