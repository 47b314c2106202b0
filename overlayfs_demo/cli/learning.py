"""What the verbs for learning share: their options, their lists, and how they end with the terminal."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Protocol, TypeVar

from overlayfs_demo.cli.command import Verbs, new_verb
from overlayfs_demo.errors import OverlayError, near, printable
from overlayfs_demo.mounts.options import FRONTS
from overlayfs_demo.ui.console import PROGRAM, put, put_json
from overlayfs_demo.ui.terminal import put_styled
from overlayfs_demo.ui.terminal import width as terminal_width
from overlayfs_demo.ui.text import filled


class Listed(Protocol):
    """Something with a name and a line that says what it is."""

    @property
    def name(self) -> str: ...

    @property
    def summary(self) -> str: ...


_Any = TypeVar("_Any", bound=Listed)


def add_learning_verb(
    verbs: Verbs[argparse.ArgumentParser],
    name: str,
    examples: str,
    run: Callable[[argparse.Namespace], int],
    description: str,
) -> argparse.ArgumentParser:
    """Add a verb that can list its names, and whose mounts are served by a front of choice."""
    verb = new_verb(verbs, name, examples, run, description)
    verb.add_argument("--list", action="store_true", help="list the names")
    verb.add_argument("--json", action="store_true", help="with --list: one JSON object per line")
    add_front(verb)
    return verb


def add_front(verb: argparse.ArgumentParser) -> None:
    """Add the option that chooses the front."""
    verb.add_argument("--front", choices=FRONTS, help="front that serves the mounts (default: auto)")


def put_list(items: Sequence[Listed], as_json: bool) -> int:
    """Print the names with their numbers, and return the exit status."""
    if as_json:
        put_json(
            [{"Number": number, "Name": item.name, "Summary": item.summary} for number, item in enumerate(items, 1)]
        )
        return 0
    # docker's table would be wider than a terminal.
    width = max(len(item.name) for item in items)
    for number, item in enumerate(items, 1):
        before = f"{number:>2}  {item.name:<{width}}  "
        line = filled(before + item.summary, terminal_width() or sys.maxsize, " " * 4)
        if line.startswith(before):
            put_styled([(before[:4], "dim"), (before[4:], "cyan"), (f"{line.removeprefix(before)}\n", "")])
        else:  # The terminal is too narrow for a name.
            put(f"{line}\n")
    return 0


def find_named(items: Sequence[_Any], name: str, verb: str) -> _Any:
    """Return the item with this name or number. Raises OverlayError."""
    for number, item in enumerate(items, 1):
        if name in (item.name, str(number)):
            return item
    meant = near(name, [item.name for item in items])
    remedy = f"did you mean '{meant[0]}'?" if meant else f"'{PROGRAM} {verb} --list' shows the names"
    raise OverlayError(f"unknown name '{printable(name)}'", remedy)


def hang_up_interrupts() -> None:
    """From now on clean up as after Ctrl-C if the terminal is closed."""
    signal.signal(signal.SIGHUP, _hang_up)


def _hang_up(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
