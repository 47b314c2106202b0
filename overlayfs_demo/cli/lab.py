"""The verb `lab`: a task, a shell to solve it in, and a check of the result."""

from __future__ import annotations

import argparse
import os
import pwd
import sys
from pathlib import Path

from overlayfs_demo.cli.command import Verbs
from overlayfs_demo.cli.learning import add_learning_verb, find_named, hang_up_interrupts, put_list
from overlayfs_demo.errors import OverlayError, UsageError
from overlayfs_demo.tour import results
from overlayfs_demo.tour.experiment import labelled, wrapped
from overlayfs_demo.tour.lab import Lab, set_up, work
from overlayfs_demo.tour.lab_session import Session
from overlayfs_demo.tour.lab_socket import Question, answering, ask
from overlayfs_demo.tour.labs import LABS
from overlayfs_demo.tour.nesting import LAB, refuse_inside_lab
from overlayfs_demo.tour.shell import Shell, prompting, scripted
from overlayfs_demo.tour.stage import Stage, stage
from overlayfs_demo.ui.console import PROGRAM, put
from overlayfs_demo.ui.terminal import put_styled, put_table


def add_verbs(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Add the verbs of this module."""
    verb = add_learning_verb(
        verbs,
        "lab",
        f"{PROGRAM} lab whiteout\n{PROGRAM} lab --hint\necho 'rm merged/motd' | {PROGRAM} lab whiteout\n"
        f"{PROGRAM} lab --summary results.jsonl",
        _lab,
        "Solve a task in a shell. When it ends, the layers on the disk are checked, and\n"
        "mistakes are explained. Without a terminal, the shell reads its commands from\n"
        "stdin.\n\n"
        "While a lab is running, --hint and --check work in its shell and in the user's\n"
        "other terminals.",
    )
    verb.add_argument("name", nargs="?", metavar="NAME", help="the lab to do")
    instead = verb.add_mutually_exclusive_group()
    instead.add_argument("--hint", action="store_true", help="print the next hint of the running lab")
    instead.add_argument("--check", action="store_true", help="check the running lab, and go on with it")
    instead.add_argument(
        "--summary", nargs="+", type=Path, metavar="FILE", help="print tables of the results in these files"
    )
    verb.add_argument("--report", type=Path, metavar="FILE", help="append the result to this file, as a line of JSON")
    verb.add_argument("--name", dest="student", metavar="STUDENT", help="the name in the report (default: the user's)")
    verb.add_argument("--at", type=Path, metavar="DIR", help="work in this new or empty directory, and keep it")
    verb.add_argument("--check-only", action="store_true", help="read commands from stdin, even on a terminal")


def _lab(arguments: argparse.Namespace) -> int:
    if arguments.list:
        return put_list(LABS, arguments.json)
    if arguments.json:
        raise UsageError("--json needs --list", "add --list")
    if arguments.summary:
        return _summarize(arguments.summary)
    if arguments.hint or arguments.check:
        return _ask(Question.HINT if arguments.hint else Question.CHECK, arguments.name)
    if arguments.name is None:
        raise UsageError("which lab?", f"'{PROGRAM} lab --list' shows the names")
    if arguments.student and not arguments.report:
        raise UsageError("--name is the name in the report", "add --report FILE")
    refuse_inside_lab("lab")
    return _begin(find_named(LABS, arguments.name, "lab"), arguments)


def _begin(lab: Lab, arguments: argparse.Namespace) -> int:
    hang_up_interrupts()
    at_terminal = not arguments.check_only and sys.stdin.isatty() and sys.stdout.isatty()
    if arguments.report is not None:
        results.check_writable(arguments.report)
    if arguments.at is not None:
        _make_empty(arguments.at)
    with stage(arguments.front, arguments.at) as made:
        set_up(lab, made)
        shell = prompting(f"lab {lab.name}", made.programs) if at_terminal else scripted()
        _introduce(lab, made, at_terminal)
        session = Session(lab, made)
        try:
            return _do(session, shell, at_terminal)
        finally:
            # A lab that was interrupted also counts.
            if arguments.report is not None:
                results.append(arguments.report, session.result(arguments.student or _user()))


def _introduce(lab: Lab, made: Stage, at_terminal: bool) -> None:
    put_styled([(f"{lab.name}: {lab.summary}\n", "bold")])
    put(wrapped(lab.task))
    if at_terminal:
        put(wrapped(f"The shell starts in {made.root}. Leave it with Ctrl-D when you are done."))
        put(wrapped(f"'{PROGRAM} lab --hint' gives a hint, and '{PROGRAM} lab --check' checks without leaving."))
    put("\n")


def _do(session: Session, shell: Shell, at_terminal: bool) -> int:
    """Let the learner try until the lab is solved or they give up, and return the exit status."""
    while True:
        with answering(session) as name:
            work(session.lab, session.stage, shell, {LAB: name})
        mistake = session.check(working=False)
        if not mistake:
            put_styled(labelled("Solved.", "bold green", session.lab.solved))
            return 0
        put_styled(labelled("Not yet.", "bold yellow", mistake))
        if not at_terminal or not _tries_again():
            return 1


def _tries_again() -> bool:
    """Ask until the answer is yes or no: a command that was meant for the shell is neither."""
    while True:
        put_styled([("try again? [Y/n] ", "dim")])
        line = sys.stdin.readline()
        match line.strip().lower():
            case "y" | "yes":
                return True
            case "" if line:
                return True
            case "n" | "no" | "q" | "quit" | "":
                put("" if line else "\n")
                return False
        put("Type y (or press Enter) to go back into the shell, or n to give up.\n")


def _ask(question: Question, name: str | None) -> int:
    """Ask a running lab, print its answer, and return the exit status."""
    lab = find_named(LABS, name, "lab").name if name is not None else None
    answer = ask(question, lab)
    put_styled(labelled(answer.label, answer.style, answer.text))
    return answer.status


def _summarize(paths: list[Path]) -> int:
    found = results.read(paths)
    put_table(results.per_lab(found))
    put("\n")
    put_table(results.per_student(found))
    return 0


def _user() -> str:
    """Return the name of the user at the keyboard, which sudo(8) hands on."""
    try:
        return os.environ.get("SUDO_USER") or pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def _make_empty(directory: Path) -> None:
    """Make the directory to work in if it does not exist. Raises OverlayError if it is not empty."""
    directory.mkdir(parents=True, exist_ok=True)
    if any(directory.iterdir()):
        raise OverlayError(f"{directory} is not empty", "use a new or empty directory")
