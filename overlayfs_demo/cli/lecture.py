"""The verb `lecture`, which splits the terminal into a shell and `watch`."""

from __future__ import annotations

import argparse
import sys

from overlayfs_demo.cli.command import Verbs
from overlayfs_demo.cli.learning import hang_up_interrupts
from overlayfs_demo.cli.store_options import add_verb, store_of
from overlayfs_demo.errors import UsageError
from overlayfs_demo.store.root import default_root
from overlayfs_demo.tour import lecture
from overlayfs_demo.tour.nesting import refuse_inside_lab, refuse_inside_lecture
from overlayfs_demo.tour.split_terminal import check_tmux
from overlayfs_demo.ui.console import can_place_cursor


def add_verbs(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Add the verbs of this module."""
    verb = add_verb(verbs, "lecture", "lecture\nlecture app:1.0\nlecture -o lowerdir=top:bottom", _lecture)
    verb.description = (
        "Split the terminal: on the left a shell beside a fresh view, on the right watch\n"
        "with the stack of layers. F2 or the mouse goes to the other side. If the shell\n"
        "exits, or q is pressed in watch, both end, and the view is removed with its\n"
        "changes. Without IMAGE and -o, the view is one of a small stack.\n\n"
        "This needs tmux, and also works inside tmux."
    )
    subject = verb.add_mutually_exclusive_group()
    subject.add_argument("image", nargs="?", metavar="IMAGE", help="show a new container of this image")
    subject.add_argument(
        "-o", dest="options", action="append", metavar="OPTIONS", help="show a view with these options of 'mount'"
    )


def _lecture(arguments: argparse.Namespace) -> int:
    refuse_inside_lab("lecture")
    refuse_inside_lecture("lecture")
    if not sys.stdin.isatty() or not sys.stdout.isatty():
        raise UsageError("a lecture needs a terminal", "start it in one, without a pipe")
    if not can_place_cursor():
        raise UsageError(
            "a lecture needs a terminal that can place its cursor, and TERM says that this one cannot",
            "use 'lab' in one terminal, and 'watch' in another",
        )
    check_tmux()
    hang_up_interrupts()
    lecture.give(_view(arguments), arguments.store or default_root())
    return 0


def _view(arguments: argparse.Namespace) -> lecture.View:
    if arguments.options:
        return lecture.options(arguments.options)
    if arguments.image:
        return lecture.image(store_of(arguments), arguments.image)
    return lecture.small_stack
