"""The verb `fsck`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from overlayfs_demo.cli.command import Verbs, new_verb, one_line
from overlayfs_demo.cli.store_options import add_json
from overlayfs_demo.errors import ImageError, OverlayError, UsageError, printable
from overlayfs_demo.fsck.claim import unmounted, unused
from overlayfs_demo.fsck.finding import Check, Result, State, mend, report
from overlayfs_demo.fsck.store_check import check_store, is_store
from overlayfs_demo.fsck.subject import stack_of
from overlayfs_demo.fsck.upper_check import check_upper
from overlayfs_demo.images.model import Digest
from overlayfs_demo.store.root import default_root
from overlayfs_demo.ui.console import PROGRAM, note, put_json
from overlayfs_demo.ui.terminal import progress, put_prose
from overlayfs_demo.ui.text import plural

# The exit statuses of fsck(8). That for wrong usage is 2, as in the other verbs.
_CORRECTED, _LEFT, _FAILED = 1, 4, 8

_EXAMPLES = """fsck
fsck web
fsck --repair -o lowerdir=low,upperdir=up,workdir=work"""

_DESCRIPTION = (
    "Check the store, or an upper: a container's by its name, or any other by its path. Nothing is changed without "
    "--repair. The exit status is that of fsck(8): 0 if there is no damage, 1 if all of it was repaired, 4 if damage "
    "is left, 8 if the check itself failed. What is mounted, or a store that is being changed, is not checked."
)


def add_verbs(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Add the verb of this module."""
    examples = "\n".join(f"{PROGRAM} {line}" for line in _EXAMPLES.splitlines())
    verb = new_verb(verbs, "fsck", examples, _fsck, _DESCRIPTION)
    verb.add_argument("subject", nargs="?", metavar="UPPER|CONTAINER", help="what to check (default: the store)")
    verb.add_argument(
        "--store",
        type=Path,
        nargs="?",
        const=default_root(),
        metavar="DIR",
        help=f"the store to check, or that of the container (default: {default_root()})",
    )
    verb.add_argument(
        "-o", dest="options", action="append", default=[], metavar="OPTIONS", help="lowerdir=, upperdir=, workdir=, ..."
    )
    how = verb.add_mutually_exclusive_group()
    how.add_argument("--repair", "-y", action="store_true", help="repair what can be repaired")
    how.add_argument("--dry-run", "-n", action="store_true", help="change nothing (the default)")
    verb.add_argument("--quick", action="store_true", help="do not read the files of the store's layers")
    add_json(verb)


def _fsck(arguments: argparse.Namespace) -> int:
    try:
        with _check(arguments) as check:
            return _status(list(_told(arguments, mend(check) if arguments.repair else report(check))), arguments)
    except UsageError:
        raise
    except (OverlayError, OSError) as error:
        note(one_line(error))
        return _FAILED


@contextmanager
def _check(arguments: argparse.Namespace) -> Iterator[Check]:
    """Give the check of what is meant, and keep others away from it. Raises OverlayError, OSError."""
    root: Path = arguments.store or default_root()
    if arguments.subject is not None or arguments.options:
        if arguments.quick:
            raise UsageError("--quick is for a check of the store", "leave it out: no layer's files are read here")
        stack = stack_of(arguments.subject, arguments.options, root)
        if stack.work is None:
            note("only the upper itself is checked; name its work directory with -o to check that, too")
        with unmounted(stack):
            yield lambda: check_upper(stack)
        return
    if not is_store(root):
        raise ImageError(f"{printable(str(root))} is not a store", "name one with --store, or an upper to check that")
    if root.stat().st_uid != os.geteuid():
        raise ImageError(f"the store {printable(str(root))} belongs to another user", "check it as that user")
    sound: set[Digest] = set()
    with unused(root), progress() as told:
        yield lambda: nullcontext(check_store(root, told, quick=arguments.quick, sound=sound))


def _told(arguments: argparse.Namespace, results: Iterator[Result]) -> Iterator[Result]:
    for result in results:
        finding = result.finding
        if arguments.json:
            row = {"Kind": finding.kind, "Path": finding.path, "Sentence": finding.sentence}
            put_json([{**row, "Repairable": finding.repair is not None, "State": result.state.value}])
        else:
            failed = f" (the repair failed: {one_line(result.error)})" if result.error is not None else ""
            state = "" if result.state is State.FOUND else f"{result.state.value}: "
            put_prose(f"{state}{finding.path}: {finding.sentence}{failed}\n")
        yield result


def _status(results: list[Result], arguments: argparse.Namespace) -> int:
    """Say how many findings there were, and return the exit status."""
    left = [result for result in results if result.state is not State.REPAIRED]
    repairable = sum(result.finding.repair is not None for result in left)
    if arguments.repair:
        said = f"{plural(len(results) - len(left), 'problem')} repaired, {len(left)} left" if results else "no damage"
    else:
        said = f"{plural(len(left), 'problem')}; --repair mends {repairable}" if left else "no damage"
    if not arguments.json:
        put_prose(said + "\n")
    if left:
        return _LEFT
    return _CORRECTED if results else 0
