"""The verb `tour`, which walks through the experiments."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, field

from overlayfs_demo.cli.command import Verbs
from overlayfs_demo.cli.learning import add_learning_verb, find_named, hang_up_interrupts, put_list
from overlayfs_demo.errors import OverlayError, UsageError
from overlayfs_demo.tour.experiment import Experiment, introduce, perform, wrapped
from overlayfs_demo.tour.experiments import ALL
from overlayfs_demo.tour.nesting import refuse_inside_lab
from overlayfs_demo.tour.projector import Projector, Turn, Turned, walk
from overlayfs_demo.tour.stage import stage
from overlayfs_demo.ui.console import PROGRAM, put
from overlayfs_demo.ui.keyboard import keys
from overlayfs_demo.ui.terminal import put_styled
from overlayfs_demo.ui.text import plural


def add_verbs(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Add the verbs of this module."""
    verb = add_learning_verb(
        verbs,
        "tour",
        f"{PROGRAM} tour\n{PROGRAM} tour delete re-create\n{PROGRAM} tour --yes > slides.txt",
        _tour,
        "Walk through the classic overlay experiments: each asks what will happen, does\n"
        "it on a real mount, shows lower, upper and merged, and checks each statement on\n"
        "the disk.\n\n"
        "On a terminal, single keys turn the pages: Enter, Space or Page Down go on, b or\n"
        "Page Up goes back, n skips the experiment, and q quits.",
    )
    verb.add_argument("names", nargs="*", metavar="NAME", help="run only these experiments, by name or number")
    verb.add_argument("--yes", "-y", action="store_true", help="do not wait for keys")
    verb.add_argument("--no-clear", action="store_true", help="keep on the screen what was shown before")


def _tour(arguments: argparse.Namespace) -> int:
    if arguments.list:
        return put_list(ALL, arguments.json)
    if arguments.json:
        raise UsageError("--json needs --list", "add --list")
    refuse_inside_lab("tour")
    chosen = [find_named(ALL, name, "tour") for name in arguments.names] or list(ALL)
    hang_up_interrupts()
    told = _Told(arguments.front)
    if arguments.yes or not sys.stdout.isatty():
        told.run_through(chosen)
    else:
        with keys() as fd:
            if fd is None:
                told.run_through(chosen)
            else:
                told.turn_pages(chosen, Projector(fd, clear=not arguments.no_clear))
    told.finish()
    return 0


@dataclass(slots=True)
class _Told:
    """What was told: for each experiment, the number of its sentences, and those that do not hold."""

    front: str | None
    sentences: dict[str, tuple[int, list[str]]] = field(default_factory=dict)

    def run_through(self, chosen: list[Experiment]) -> None:
        """Tell everything without a pause."""
        for experiment in chosen:
            introduce(experiment, _number(experiment), put_styled)
            with stage(self.front) as made:
                self.sentences[experiment.name] = perform(experiment, made, put_styled)
            put("\n")

    def turn_pages(self, chosen: list[Experiment], projector: Projector) -> None:
        """Tell what the person at the terminal wants to see."""

        def visit(at: int) -> Turn:
            try:
                return self._visit(chosen[at], projector, last=at == len(chosen) - 1)
            except Turned as turned:
                return turned.turn

        walk(len(chosen), visit)

    def _visit(self, experiment: Experiment, projector: Projector, *, last: bool) -> Turn:
        """Tell one experiment, and return where to go afterwards."""
        while True:
            projector.begin(f"{_number(experiment)}: {experiment.name}")
            introduce(experiment, _number(experiment), projector.put)
            turn = projector.ask("Enter: go on, b: back, n: skip, q: quit ")
            if turn is not Turn.ON:
                return turn
            try:
                with stage(self.front) as made:
                    self.sentences[experiment.name] = perform(experiment, made, projector.put)
                projector.put([("\n", "")])
                # The next question must not take away what people still look at.
                turn = Turn.ON if last else projector.ask("Enter: next, b: back, q: quit ")
            except Turned as turned:
                turn = turned.turn
            # Back is one step: to this experiment's question, and from there to the experiment before it.
            if turn is not Turn.BACK:
                return turn

    def finish(self) -> None:
        """Print the sum. Raises OverlayError if a sentence does not hold."""
        checked = sum(count for count, _ in self.sentences.values())
        failed = [f"{name}: {sentence}" for name, (_, wrong) in self.sentences.items() for sentence in wrong]
        if failed:
            raise OverlayError(f"{len(failed)} of {plural(checked, 'sentence')} did not hold", "; ".join(failed))
        put(wrapped(f"Experiments: {len(self.sentences)}. Sentences checked on the disk: {checked}. All hold."))


def _number(experiment: Experiment) -> str:
    return f"{ALL.index(experiment) + 1} of {len(ALL)}"
