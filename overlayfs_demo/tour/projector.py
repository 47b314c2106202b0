"""The tour on a terminal: one experiment per screen, in pages that fit, turned by single keys.

Without a terminal there is no projector: the text simply runs through.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import time
from collections.abc import Callable, Sequence
from enum import Enum

from overlayfs_demo.tour.experiment import Pieces
from overlayfs_demo.ui.console import put
from overlayfs_demo.ui.keyboard import forget_pressed, read_keys
from overlayfs_demo.ui.terminal import put_styled

# Keys that are pressed until this many seconds after a page is shown turn nothing: nobody has read it yet.
_READING = 0.15
# The fewest rows of a page, on however small a terminal.
_MIN_ROWS = 3
# ECMA-48: the cursor goes home and the screen is erased; the cursor goes to the left and its line is erased.
_CLEAR_SCREEN, _CLEAR_LINE = "\x1b[H\x1b[2J", "\r\x1b[K"


class Turn(Enum):
    """Where a person wants to go."""

    ON = "on"
    BACK = "back"
    SKIP = "skip"
    QUIT = "quit"


# The keys of a keyboard, and of the remote control of a projector, which sends Page Down and Page Up.
_TURNS = {
    **dict.fromkeys(("\r", "\n", " ", "\x1b[6~", "\x1b[C"), Turn.ON),
    **dict.fromkeys(("b", "B", "\x7f", "\x1b[5~", "\x1b[D"), Turn.BACK),
    **dict.fromkeys(("n", "N"), Turn.SKIP),
    # Ctrl-D ends what waits for input; without a key the terminal has gone.
    **dict.fromkeys(("q", "Q", "\x04", ""), Turn.QUIT),
}
# A key that sends several characters, or one that sends one: ECMA-48, control sequences.
_KEY = re.compile(r"\x1b\[[0-9;]*[A-Za-z~]|.", re.DOTALL)


class Turned(Exception):
    """Somebody left the present screen in the middle. This is not an error."""

    def __init__(self, turn: Turn) -> None:
        super().__init__(turn.value)
        self.turn = turn


class Projector:
    """The pages of a talk on a terminal whose keys are read from `fd`, see `ui.keyboard.keys`.

    With `clear`, every page begins on an empty screen.
    """

    def __init__(self, fd: int, *, clear: bool) -> None:
        self._fd = fd
        self._erases = os.environ.get("TERM", "dumb") not in ("dumb", "unknown")
        self._clears = clear and self._erases
        self._title = ""
        self._used = 0

    def begin(self, title: str) -> None:
        """Begin a screen; `title` heads its further pages."""
        self._title = title
        self._new_page()

    def put(self, pieces: Pieces) -> None:
        """Show text, on a new page if it does not fit on the present one. Raises Turned if it is not wanted."""
        lines = _lines(pieces)
        # What fits on a page is not torn apart. A blank line at its end needs no page.
        height = self._height(lines[: max((at for at, line in enumerate(lines, 1) if _is_said(line)), default=0)])
        if self._used and self._room() < height <= self._page():
            self._turn_page()
        for line in lines:
            if self._height([line]) > self._room() and self._used:
                if not _is_said(line):
                    continue
                self._turn_page()
            if self._used or _is_said(line) or not self._clears:
                put_styled(line)
                self._used += self._height([line])

    def ask(self, question: str) -> Turn:
        """Wait for a key below the page, and return what it means."""
        time.sleep(_READING)
        forget_pressed(self._fd)
        put_styled([(question, "dim")])
        while (turn := _turn(read_keys(self._fd))) is None:
            pass
        put(_CLEAR_LINE if self._erases else "\n")
        return turn

    def _turn_page(self) -> None:
        turn = self.ask("Enter: more, b: back, n: skip, q: quit ")
        if turn is not Turn.ON:
            raise Turned(turn)
        self._new_page()
        if self._clears:
            put_styled([(f"{self._title}, continued\n", "bold dim")])
            self._used = 1

    def _new_page(self) -> None:
        self._used = 0
        if self._clears:
            put(_CLEAR_SCREEN)

    def _page(self) -> int:
        """Return the rows of a page. The last row of the terminal belongs to the question."""
        return max(shutil.get_terminal_size().lines - 1, _MIN_ROWS)

    def _room(self) -> int:
        return self._page() - self._used

    def _height(self, lines: Sequence[Pieces]) -> int:
        """Return how many rows the lines take, because a narrow terminal wraps them."""
        columns = shutil.get_terminal_size().columns
        return sum(max(1, math.ceil(len(_text(line).rstrip("\n")) / columns)) for line in lines)


def _turn(typed: str) -> Turn | None:
    """Return what the first key with a meaning means, or None; an empty text is the end of the terminal."""
    presses = _KEY.findall(typed) or [""]
    return next((_TURNS[key] for key in presses if key in _TURNS), None)


def _lines(pieces: Pieces) -> list[Pieces]:
    """Return the pieces of each line; every line ends with a newline, except perhaps the last."""
    lines: list[list[tuple[str, str]]] = [[]]
    for text, style in pieces:
        for part in re.findall(r"[^\n]*\n|[^\n]+", text):
            lines[-1].append((part, style))
            if part.endswith("\n"):
                lines.append([])
    return [line for line in lines if line]


def _is_said(line: Pieces) -> bool:
    return bool(_text(line).strip())


def _text(line: Pieces) -> str:
    return "".join(text for text, _ in line)


def walk(count: int, visit: Callable[[int], Turn]) -> None:
    """Visit the numbers from 0 to `count` - 1, and go where each visit says, until the end or Turn.QUIT.

    BACK from the first one visits it again.
    """
    at = 0
    while at < count:
        turn = visit(at)
        if turn is Turn.QUIT:
            return
        at = max(at - 1, 0) if turn is Turn.BACK else at + 1
