"""Experiments, the steps of the tour, and how they are performed and shown.

heading, question      predict
$ command              do: really, on a real mount
lower  upper  merged   look
[ok] sentence          each checked on the disk
two sentences          explained, and perhaps a third about Docker
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from overlayfs_demo.errors import OverlayError
from overlayfs_demo.tour.building import Content
from overlayfs_demo.tour.checks import Check, unchanged
from overlayfs_demo.tour.picture import WIDTH, picture
from overlayfs_demo.tour.stage import Stage
from overlayfs_demo.ui.terminal import width

# Fewer characters in a line would be no text.
_NARROWEST = 30

# Pieces of text, each with a style of rich, and the function that prints them.
Pieces = Sequence[tuple[str, str]]
Put = Callable[[Pieces], None]


@dataclass(frozen=True, slots=True)
class Refused:
    """A command that must fail, which is its purpose."""

    command: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """One step of the tour. All texts are for the learner.

    `layers` has the topmost first, as in `lowerdir=`; they are mounted on `merged` before `do`, unless `mounted` is
    False. `redirects` is passed to `Stage.mount`. `prepare` makes everything else that is needed. `look` maps titles
    to the directories to show. `missing` returns why this machine cannot do the experiment, or "".

    `explained` has two sentences, which the checks prove, and perhaps a third that begins with "In Docker:". What the
    checks cannot prove has a source: `sources` maps words of the question or the explanation to a document, or to the
    function in tests/tour that does the same with the kernel's overlayfs or with Docker.
    """

    name: str
    summary: str
    question: str
    layers: Mapping[str, Content] = field(default_factory=dict)
    mounted: bool = True
    redirects: bool = False
    prepare: Callable[[Stage], None] = lambda stage: None
    do: tuple[str | Refused, ...]
    look: Mapping[str, str] = field(default_factory=lambda: side_by_side("lower"))
    checks: tuple[Check, ...]
    explained: str
    sources: Mapping[str, str] = field(default_factory=dict)
    missing: Callable[[Stage], str] = lambda stage: ""


def side_by_side(*layers: str) -> Mapping[str, str]:
    """Return the directories in the order in which they are shown: these layers from the bottom up, upper, merged.

    The layers are given from the top down.
    """
    return {name: name for name in (*reversed(layers), "upper", "merged")}


def introduce(experiment: Experiment, number: str, put: Put) -> None:
    """Print the heading of an experiment, and the question what will happen."""
    put([(f"--- {number}: {experiment.name} ".ljust(_width() - 1, "-"), "bold"), ("\n", "")])
    put([(wrapped(experiment.question), ""), ("\n", "")])


def perform(experiment: Experiment, stage: Stage, put: Put) -> tuple[int, list[str]]:
    """Perform an experiment on the stage. Raises OverlayError.

    Return the number of sentences that were checked, and those that do not hold.
    """
    if reason := experiment.missing(stage):
        put([(wrapped(f"Skipped: {reason}"), "yellow")])
        return 0, []
    experiment.prepare(stage)
    if experiment.layers:
        stage.layers(experiment.layers)
        if experiment.mounted:
            stage.mount(experiment.redirects)
    for command in experiment.do:
        _do(command, stage, put)
    put([("\n", "")])
    if experiment.look:
        heading, *lines = picture({title: stage.tree(path) for title, path in experiment.look.items()}, _width())
        put([(heading, "bold"), ("\n", ""), ("".join(f"{line}\n" for line in lines), ""), ("\n", "")])
    checks = (*experiment.checks, *map(unchanged, experiment.layers))
    failed = [check.says for check in checks if not _told(check, stage, put)]
    put([("\n", ""), (wrapped(experiment.explained), "")])
    return len(checks), failed


def wrapped(text: str, indent: str = "") -> str:
    """Return the text in lines that fit a page, ending with a newline."""
    return textwrap.fill(" ".join(text.split()), _width() - 1, subsequent_indent=indent, break_on_hyphens=False) + "\n"


def _width() -> int:
    """Return the characters of a line: those of a picture, or of a terminal that is narrower, but not absurdly so."""
    return max(min(width() or WIDTH, WIDTH), _NARROWEST)


def labelled(label: str, style: str, text: str) -> Pieces:
    """Return the text in lines that fit a page, after a label in that style."""
    return [(label, style), (wrapped(f"{label} {text}", " " * (len(label) + 1)).removeprefix(label), "")]


def _do(command: str | Refused, stage: Stage, put: Put) -> None:
    typed = command.command if isinstance(command, Refused) else command
    put([(f"$ {typed}\n", "bold cyan")])
    done = stage.run(typed)
    put([("".join(f"{line}\n" for long in done.output.splitlines() for line in _folded(long)), "")])
    if (done.status != 0) != isinstance(command, Refused):
        raise OverlayError(f"'{typed}' exited with status {done.status}", "the tour expected otherwise")


def _folded(line: str) -> list[str]:
    """Return a line of a command's output, folded to the width of the picture."""
    return textwrap.wrap(
        line, _width(), drop_whitespace=True, replace_whitespace=False, expand_tabs=True, break_on_hyphens=False
    ) or [""]


def _told(check: Check, stage: Stage, put: Put) -> bool:
    holds = check.holds(stage)
    put(labelled("[ok]", "green", check.says) if holds else labelled("[DOES NOT HOLD]", "bold red", check.says))
    return holds
