"""The verb `help`, which shows the options of the other verbs."""

from __future__ import annotations

import argparse

from overlayfs_demo.cli.command import Verbs, new_verb
from overlayfs_demo.cli.overview import overview
from overlayfs_demo.cli.parser import verbs_of
from overlayfs_demo.cli.unknown import unknown_verb
from overlayfs_demo.ui.console import PROGRAM, put


def add_verbs(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Add the verb of this module."""
    verb = new_verb(verbs, "help", f"{PROGRAM} help\n{PROGRAM} help history", _help)
    verb.add_argument("verbs", nargs="*", metavar="VERB", help="the command to show")


def _help(arguments: argparse.Namespace) -> int:
    """Print the help of the program, or of a verb. Raises UsageError."""
    put(_text(arguments) if arguments.verbs else overview())
    return 0


def _text(arguments: argparse.Namespace) -> str:
    parser = arguments.parser_for(arguments.verbs)
    for word in arguments.verbs:
        verbs = verbs_of(parser)
        if word not in verbs:
            raise unknown_verb(word, verbs)
        parser = verbs[word]
    return str(parser.format_help())
