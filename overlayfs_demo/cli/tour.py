"""The verbs for learning: `tour` with its experiments, and `lab`."""

from __future__ import annotations

import argparse
import difflib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Protocol, TypeVar

from overlayfs_demo.cli.command import Verbs, new_verb
from overlayfs_demo.errors import OverlayError, UsageError, printable
from overlayfs_demo.mounts.options import FRONTS
from overlayfs_demo.tour.experiment import Experiment, introduce, labelled, perform, wrapped
from overlayfs_demo.tour.experiments import ALL
from overlayfs_demo.tour.lab import judge, set_up, work
from overlayfs_demo.tour.labs import LABS
from overlayfs_demo.tour.stage import stage
from overlayfs_demo.ui.console import PROGRAM, put, put_json
from overlayfs_demo.ui.terminal import put_styled
from overlayfs_demo.ui.text import plural


class _Listed(Protocol):
    """Something with a name and a line that says what it is."""

    @property
    def name(self) -> str: ...

    @property
    def summary(self) -> str: ...


_Any = TypeVar("_Any", bound=_Listed)


def add_verbs(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Add the verbs of this module."""
    tour = _verb(
        verbs,
        "tour",
        "walk through the classic overlay experiments",
        f"{PROGRAM} tour\n{PROGRAM} tour delete re-create\n{PROGRAM} tour --yes > slides.txt",
        _tour,
        "Walk through the classic overlay experiments: each asks what will happen, does it on a real mount,\n"
        "shows lower, upper and merged, and checks each statement on the disk.",
    )
    tour.add_argument("names", nargs="*", metavar="NAME", help="run only these experiments, by name or number")
    tour.add_argument("--yes", "-y", action="store_true", help="do not wait for Enter")
    lab = _verb(
        verbs,
        "lab",
        "solve a task in a shell and have the result checked",
        f"{PROGRAM} lab whiteout\necho 'rm merged/motd' | {PROGRAM} lab whiteout",
        _lab,
        "Solve a task in a shell. When it ends, the layers on the disk are checked, and mistakes are explained.\n"
        "Without a terminal, the shell reads its commands from stdin.",
    )
    lab.add_argument("name", nargs="?", metavar="NAME", help="the lab to do")
    lab.add_argument("--at", type=Path, metavar="DIR", help="work in this new or empty directory, and keep it")
    lab.add_argument("--check-only", action="store_true", help="read commands from stdin, even on a terminal")


def _verb(
    verbs: Verbs[argparse.ArgumentParser],
    name: str,
    summary: str,
    examples: str,
    run: Callable[[argparse.Namespace], int],
    description: str,
) -> argparse.ArgumentParser:
    verb = new_verb(verbs, name, summary, examples, run, description)
    verb.add_argument("--list", action="store_true", help="list the names")
    verb.add_argument("--json", action="store_true", help="with --list: one JSON object per line")
    verb.add_argument("--front", choices=FRONTS, help="front that serves the mounts (default: auto)")
    return verb


def _list(items: Sequence[_Listed], as_json: bool) -> int:
    if as_json:
        put_json(
            [{"Number": number, "Name": item.name, "Summary": item.summary} for number, item in enumerate(items, 1)]
        )
        return 0
    # docker's table would be wider than a terminal.
    width = max(len(item.name) for item in items)
    for number, item in enumerate(items, 1):
        put_styled([(f"{number:>2}  ", "dim"), (item.name.ljust(width), "cyan"), (f"  {item.summary}\n", "")])
    return 0


def _find(items: Sequence[_Any], name: str, verb: str) -> _Any:
    for number, item in enumerate(items, 1):
        if name in (item.name, str(number)):
            return item
    near = difflib.get_close_matches(name, [item.name for item in items], 1)
    remedy = f"did you mean '{near[0]}'?" if near else f"'{PROGRAM} {verb} --list' shows the names"
    raise OverlayError(f"unknown name '{printable(name)}'", remedy)


def _hang_up(_number: int, _frame: FrameType | None) -> None:
    """Clean up as after Ctrl-C, because the terminal was closed."""
    raise KeyboardInterrupt


# --- tour ------------------------------------------------------------------------------------------


def _tour(arguments: argparse.Namespace) -> int:
    if arguments.list:
        return _list(ALL, arguments.json)
    if arguments.json:
        raise UsageError("--json needs --list", "add --list")
    chosen = [_find(ALL, name, "tour") for name in arguments.names] or list(ALL)
    signal.signal(signal.SIGHUP, _hang_up)
    asks = not arguments.yes and sys.stdin.isatty() and sys.stdout.isatty()
    told = checked = 0
    failed: list[str] = []
    for experiment in chosen:
        introduce(experiment, f"{ALL.index(experiment) + 1} of {len(ALL)}", put_styled)
        answer = _ask("Enter: go on, q: quit, n: skip ") if asks else ""
        if answer == "q":
            break
        if answer != "n":
            count, wrong = _perform(experiment, arguments.front)
            told, checked = told + 1, checked + count
            failed += [f"{experiment.name}: {sentence}" for sentence in wrong]
            put("\n")
            # The next question must not scroll away what people still look at.
            if asks and experiment is not chosen[-1] and _ask("Enter: next, q: quit ") == "q":
                break
    if failed:
        raise OverlayError(f"{len(failed)} of {plural(checked, 'sentence')} did not hold", "; ".join(failed))
    put(wrapped(f"Experiments: {told}. Sentences checked on the disk: {checked}. All hold."))
    return 0


def _perform(experiment: Experiment, front: str | None) -> tuple[int, list[str]]:
    with stage(front) as made:
        return perform(experiment, made, put_styled)


def _ask(question: str) -> str:
    """Return the first letter of the answer in lower case, "" for none, "q" for Ctrl-D."""
    put_styled([(question, "dim")])
    line = sys.stdin.readline()
    return line.strip()[:1].lower() if line else "q"


# --- lab -------------------------------------------------------------------------------------------


def _lab(arguments: argparse.Namespace) -> int:
    if arguments.list:
        return _list(LABS, arguments.json)
    if arguments.json:
        raise UsageError("--json needs --list", "add --list")
    if arguments.name is None:
        raise UsageError("which lab?", f"'{PROGRAM} lab --list' shows the names")
    lab = _find(LABS, arguments.name, "lab")
    signal.signal(signal.SIGHUP, _hang_up)
    at_terminal = not arguments.check_only and sys.stdin.isatty() and sys.stdout.isatty()
    if arguments.at is not None:
        _make_empty(arguments.at)
    with stage(arguments.front, arguments.at) as made:
        set_up(lab, made)
        put_styled([(f"{lab.name}: {lab.summary}\n", "bold")])
        put(wrapped(lab.task))
        if at_terminal:
            put(wrapped(f"The shell starts in {made.root}. Leave it with Ctrl-D when you are done."))
        put("\n")
        while True:
            work(lab, made, os.environ.get("SHELL", "sh") if at_terminal else "sh")
            mistake = judge(lab, made)
            if not mistake:
                put_styled(labelled("Solved.", "bold green", lab.solved))
                return 0
            put_styled(labelled("Not yet.", "bold yellow", mistake))
            if not at_terminal or _ask("try again? [Y/n] ") in ("n", "q"):
                return 1


def _make_empty(directory: Path) -> None:
    """Make the directory to work in if it does not exist. Raises OverlayError if it is not empty."""
    directory.mkdir(parents=True, exist_ok=True)
    if any(directory.iterdir()):
        raise OverlayError(f"{directory} is not empty", "use a new or empty directory")
