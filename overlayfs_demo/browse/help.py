"""The page of keys, and the line of the most used ones."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Static

KEYS = "Tab pane  Space open  c changes  / filter  s sort  + - all  ? help  q quit"

HELP = """\
Left: the layers, the top one first, and dimmed the steps that changed only
metadata. Right: the tree as of the chosen layer. LAYER is the topmost layer
that shows a name. The last lines explain what is at the cursor.

  A  this layer adds it           C  this layer holds a new version of it
  D  this layer deletes it        (no letter: it comes from a layer below)

  opaque   the layer's directory hides everything that is below it
  SIZE     of everything but directories, as Docker counts: a link has the
           length of its target, a file with several names counts once

  Tab             the other pane        Space, Enter   open or close
  Up Down PgUp PgDn Home End            Right Left     open, close or go up
  c  only what this layer changes       s  sort by size or by name
  /  filter by name: log, *.py, etc/    Esc  show everything again
  +  open all       -  close all        m  hide steps without a layer
  r  read again     ?  this help        q  quit
"""


class HelpScreen(ModalScreen[None]):
    """The page of keys, until a key is pressed."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q,question_mark,enter,space", "dismiss")]
    CSS = """
    HelpScreen { align: center middle; }
    #help { width: 80; height: auto; max-height: 100%; border: round $primary; padding: 0 1; }
    """

    def compose(self) -> ComposeResult:
        """Show the page."""
        with VerticalScroll(id="help"):
            yield Static(Text(HELP))
