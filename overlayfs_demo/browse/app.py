"""The browser itself: which keys do what, and what is read in the background."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Sequence
from typing import ClassVar

from rich.text import Text
from textual import on, work
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.screen import Screen
from textual.widgets import Input, Static

from overlayfs_demo.browse.census import MOST_FOUND, Census
from overlayfs_demo.browse.depths import Depths, Entry
from overlayfs_demo.browse.help import KEYS, HelpScreen
from overlayfs_demo.browse.model import Line, Tree
from overlayfs_demo.browse.panes import LayerPane, LinePane, TreePane, tree_heading
from overlayfs_demo.browse.subject import LayerStep, Subject, counted, waste_of
from overlayfs_demo.browse.wording import about_layer, choice, described
from overlayfs_demo.errors import OverlayError, printable
from overlayfs_demo.ui.text import cut_middle

# "Open all" stops at about so many lines.
_MOST_LINES = 20_000
# How long the background work holds the views at a time, and waits before it begins, in seconds.
_SLICE, _PAUSE = 0.1, 0.2
# 128 and the number of the signal, as shells report it.
_TERMINATED = 128 + signal.SIGTERM


class Browser(App[int]):
    """The browser of one subject. The caller owns `depths`, which must be about the subject's stack."""

    ENABLE_COMMAND_PALETTE = False
    CSS = """
    #title, #keys { height: 1; text-style: reverse; }
    #left { width: 37%; max-width: 62; }
    #left_heading, #right_heading { height: 1; text-style: bold; }
    LinePane { height: 1fr; overflow-x: hidden; scrollbar-size-vertical: 1; }
    #right { border-left: vkey $primary; }
    #status { height: 3; }
    #filter { display: none; height: 1; border: none; padding: 0; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q,ctrl+c", "quit"),
        Binding("question_mark", "help"),
        Binding("space,enter", "open_or_close"),
        Binding("c", "changes"),
        Binding("s", "sort"),
        Binding("m", "metadata"),
        Binding("slash", "filter"),
        Binding("escape", "unfilter"),
        Binding("plus", "open_all"),
        Binding("minus", "close_all"),
        Binding("r", "read_again"),
    ]

    def __init__(self, subject: Subject, depths: Depths) -> None:
        # The terminal's own colours, which are readable on its own background; none with NO_COLOR.
        super().__init__(ansi_color=True)
        self.theme = "ansi-dark"
        self.subject = subject
        self.depths = depths
        self.steps: list[LayerStep] = list(subject.steps)
        self.place = 0
        self.shown = Tree()
        self.census = Census(depths, 0)
        self.waste = ""
        self.hides_metadata = False
        self.words = ""
        # Where the cursor goes as soon as that path is read.
        self._wish = b""

    # --- the screen --------------------------------------------------------------------------------

    def compose(self) -> ComposeResult:
        """Lay out the screen."""
        yield Static(id="title")
        with Horizontal():
            with Vertical(id="left"):
                yield Static(Text("LAYER    SIZE  MADE BY", no_wrap=True), id="left_heading")
                yield LayerPane(id="layers")
            with Vertical(id="right"):
                yield Static(id="right_heading")
                yield TreePane(id="tree")
        yield Static(id="status")
        yield Input(id="filter", placeholder="part of a name, or a pattern: *.py, etc/*")
        yield Static(Text(KEYS, no_wrap=True, overflow="ellipsis"), id="keys")

    @property
    def layer_pane(self) -> LayerPane:
        """The pane on the left."""
        return self._main.query_one("#layers", LayerPane)

    @property
    def tree_pane(self) -> TreePane:
        """The pane on the right."""
        return self._main.query_one("#tree", TreePane)

    @property
    def _main(self) -> Screen[object]:
        """The screen with the panes, which help may cover."""
        return self.screen_stack[0]

    def on_mount(self) -> None:
        """Show the top layer, and begin to count."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self.exit, None, _TERMINATED)
        self._show_steps()
        self.layer_pane.focus()
        self._choose(0)
        if self.subject.is_image and self.subject.directories:
            # A daemon, because nobody waits for it at the end.
            threading.Thread(target=self._add_up_waste, daemon=True).start()
        self._measure()

    def on_resize(self) -> None:
        """Fit the texts that depend on the width."""
        self.call_after_refresh(self._show_title)

    def _show_title(self) -> None:
        width = self.size.width
        waste = self.waste if len(self.waste) < width // 2 + 10 else ""
        room = max(width - len(waste) - 2, 8)
        title = cut_middle(printable(self.subject.title), room)
        self._main.query_one("#title", Static).update(Text(f"{title:<{room}}  {waste}", no_wrap=True))
        heading = tree_heading(self.tree_pane.size.width) + choice(self.shown, self._step)
        self._main.query_one("#right_heading", Static).update(Text(heading, no_wrap=True, overflow="ellipsis"))

    @property
    def _step(self) -> LayerStep | None:
        return next((step for step in self.steps if step.place == self.place), None)

    def _show_steps(self) -> None:
        pane = self.layer_pane
        pane.steps = [step for step in self.steps if step.place is not None or not self.hides_metadata]
        places = [step.place for step in pane.steps]
        pane.changed(places.index(self.place) if self.place in places else 0)

    def _show_tree(self) -> None:
        """Draw the tree again; the cursor stays on its path, or goes to the one that it was sent to."""
        pane = self.tree_pane
        at = self._wish or (pane.line.path if pane.line is not None else b"")
        pane.lines = self.shown.lines()
        cursor = next((index for index, line in enumerate(pane.lines) if line.path == at), None)
        if cursor is not None:
            self._wish = b""
        pane.changed(pane.cursor if cursor is None else cursor)
        self._show_title()
        self._show_status()

    # --- the last lines ----------------------------------------------------------------------------

    def _show_status(self) -> None:
        line = self.tree_pane.line
        if self.tree_pane.has_focus and line is not None and line.entry is not None:
            self._explain(line)
        else:
            self.workers.cancel_group(self, "explain")
            self._put_status(about_layer(self._step, self.census))

    def _put_status(self, lines: Sequence[str]) -> None:
        self._main.query_one("#status", Static).update(Text("\n".join(lines)))

    @work(exclusive=True, group="explain")
    async def _explain(self, line: Line) -> None:
        assert line.entry is not None, "only entries are explained"
        await asyncio.sleep(_PAUSE / 4)
        try:
            words = await asyncio.to_thread(self.depths.explain, self.place, line.path)
        except OSError as error:
            words = error.strerror or str(error)
        self._put_status([cut_middle(described(line, line.entry), max(self.size.width, 20)), words])

    # --- reading in the background -----------------------------------------------------------------

    def _choose(self, place: int) -> None:
        """Show the tree as of another layer."""
        self.place = place
        self.shown.listings = {}
        self.shown.counted = False
        self.census = Census(self.depths, place)
        self._read()
        self._count()

    @work(exclusive=True, group="read")
    async def _read(self) -> None:
        await self._read_missing()

    async def _read_missing(self) -> None:
        """Read the directories that are open, until none is missing."""
        place = self.place
        while missing := self.shown.missing():
            for path in missing:
                listing = await asyncio.to_thread(self._listing, place, path)
                if place != self.place:
                    return
                self.shown.listings[path] = listing
        self._show_tree()

    def _listing(self, place: int, path: bytes) -> Sequence[Entry] | str:
        try:
            return self.depths.listing(place, path)
        except OSError as error:
            return f"cannot be read: {error.strerror or error}"

    @work(exclusive=True, group="count")
    async def _count(self) -> None:
        """Count what the view of the present layer holds."""
        census = self.census
        await asyncio.sleep(_PAUSE)
        while not census.is_done:
            await asyncio.to_thread(census.advance, _SLICE)
            if self.layer_pane.has_focus and census is self.census:
                self._show_status()
        self.shown.sums = census.sums
        self.shown.counted = True
        if self.shown.found is not None:
            self._filter()
            self._read()
        self._show_tree()

    @work(exclusive=True, group="measure")
    async def _measure(self) -> None:
        """Count the sizes of a view's layers, which no store knows."""
        for index, step in enumerate(self.steps):
            if step.size is None and step.place is not None:
                directory = self.subject.directories[step.place]
                self.steps[index] = await asyncio.to_thread(counted, step, directory)
                self._show_steps()
        self._show_status()

    def _add_up_waste(self) -> None:
        try:
            words = waste_of(self.subject.directories)
        except (OverlayError, OSError) as error:
            words = printable(str(error))
        # A message may be posted from any thread, and is dropped if the browser was left meanwhile.
        self.call_later(self._put_waste, words)

    def _put_waste(self, words: str) -> None:
        self.waste = words
        self._show_title()

    # --- keys --------------------------------------------------------------------------------------

    @on(LinePane.Moved)
    def moved(self, message: LinePane.Moved) -> None:
        """Follow the cursor."""
        if isinstance(message.pane, LayerPane):
            place = message.pane.steps[message.pane.cursor].place
            if place is not None and place != self.place:
                self._choose(place)
        self._show_status()

    @on(LinePane.Chosen)
    def chosen(self, message: LinePane.Chosen) -> None:
        """Open what was clicked twice."""
        if isinstance(message.pane, TreePane):
            self.action_open_or_close()

    def on_descendant_focus(self) -> None:
        """Explain what is at the cursor of the pane that the keys go to now."""
        self._show_status()

    def action_help(self) -> None:
        """Show the page of keys."""
        self.push_screen(HelpScreen())

    def action_open_or_close(self) -> None:
        """Open or close the directory at the cursor; from the layers, go to the tree."""
        line = self.tree_pane.line
        if self.layer_pane.has_focus:
            self.tree_pane.focus()
        elif line is not None and line.entry is not None and line.entry.is_directory:
            self.shown.toggle(line.path)
            self._show_tree()
            self._read()

    def action_open_here(self) -> None:
        """Open the directory at the cursor."""
        line = self.tree_pane.line
        if line is not None and not line.is_open:
            self.action_open_or_close()

    def action_close_here(self) -> None:
        """Close the directory at the cursor, or go to the one that contains it."""
        line = self.tree_pane.line
        if line is None:
            return
        if line.is_open:
            self.action_open_or_close()
            return
        above = line.path.rpartition(b"/")[0]
        index = next((index for index, other in enumerate(self.tree_pane.lines) if other.path == above), None)
        if index is not None:
            self.tree_pane.action_jump(index)

    def action_changes(self) -> None:
        """Show only what the layer changes, or everything."""
        self.shown.only_changes = not self.shown.only_changes
        if self.shown.found is not None:
            self._filter()
        self._show_tree()
        self._read()

    def action_sort(self) -> None:
        """Sort by size or by name."""
        self.shown.by_size = not self.shown.by_size
        self._show_tree()

    def action_metadata(self) -> None:
        """Hide or show the steps that made no layer."""
        self.hides_metadata = not self.hides_metadata
        self._show_steps()

    def action_close_all(self) -> None:
        """Close every directory."""
        self.shown.close_all()
        self._show_tree()

    def action_open_all(self) -> None:
        """Open every directory."""
        self._open_all()

    @work(exclusive=True, group="read")
    async def _open_all(self) -> None:
        while closed := self.shown.closed():
            if len(self.shown.lines()) > _MOST_LINES:
                self.notify(f"stopped at {_MOST_LINES} names: filter, or open what you need")
                break
            self.shown.opened |= set(closed)
            await self._read_missing()

    def action_read_again(self) -> None:
        """Read the layers again, because a mounted view changes."""
        self.depths.forget()
        self._choose(self.place)

    # --- the filter --------------------------------------------------------------------------------

    def action_filter(self) -> None:
        """Ask for a filter."""
        field = self._main.query_one("#filter", Input)
        field.display = True
        field.focus()

    @on(Input.Submitted)
    def filtered(self, message: Input.Submitted) -> None:
        """Show what matches."""
        self.words = message.value.strip()
        message.input.display = False
        self.tree_pane.focus()
        if self.words:
            self._filter()
        else:
            self.shown.filter(None)
        self._wish = next(iter(self.shown.found.paths), b"") if self.shown.found else b""
        self._show_tree()
        self._read()

    def action_unfilter(self) -> None:
        """Show everything again."""
        field = self._main.query_one("#filter", Input)
        field.display, field.value = False, ""
        self.tree_pane.focus()
        self.shown.filter(None)
        self._show_tree()

    def _filter(self) -> None:
        found = self.census.find(self.words, only_changes=self.shown.only_changes)
        self.shown.filter(found)
        if found.cut:
            self.notify(f"only the first {MOST_FOUND} names are shown")
        if not self.census.is_done:
            self.notify("not all names are read yet: more may follow")


def browse(subject: Subject) -> int:
    """Show a subject until a key ends it, and return the exit status. Raises OSError."""
    with Depths(subject.stack) as depths:
        app = Browser(subject, depths)
        app.run()
        return app.return_code or 0
