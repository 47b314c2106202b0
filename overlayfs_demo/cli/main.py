"""The command line: its parser, and the exit status, which is 0, 1 (failed) or 2 (wrong usage)."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Sequence

from overlayfs_demo import __version__
from overlayfs_demo.cli.called_as import called_as
from overlayfs_demo.cli.command import guarded
from overlayfs_demo.cli.families import MODULE_OF, family
from overlayfs_demo.cli.help_text import HelpFormatter
from overlayfs_demo.cli.overview import overview
from overlayfs_demo.cli.parser import Parser
from overlayfs_demo.cli.streams import open_missing_streams
from overlayfs_demo.cli.unknown import unknown_verb
from overlayfs_demo.ui.console import PROGRAM

_VERSION_OPTIONS = ("--version", "-v", "-V")
_OPTIONS = ("--help", "-h", *_VERSION_OPTIONS)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status. An error is one line on stderr."""
    open_missing_streams()
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] not in _OPTIONS:
        _log_to_stderr()
    if "_ARGCOMPLETE" in os.environ:
        _complete(os.environ.get("COMP_LINE", "").split()[1:])
    answer = called_as(sys.argv[0], arguments) or _run
    return guarded(PROGRAM, lambda: answer(arguments))


def _log_to_stderr() -> None:
    # Neither the help nor the version needs them.
    import logging

    from overlayfs_demo.ui.notes import Notes

    logging.basicConfig(format="%(message)s", handlers=[Notes()])


def _run(arguments: Sequence[str]) -> int:
    """Run the verb that the arguments begin with; without arguments, print the help. Raises OverlayError, OSError."""
    first, *_ = arguments or ["--help"]
    if first in _OPTIONS:
        _parser([]).parse_args([first])  # It prints what the option asks for, and exits.
    if first not in MODULE_OF:
        raise unknown_verb(first, MODULE_OF)
    options = parser_for(arguments).parse_args(arguments)
    return int(options.run(options))


def parser_for(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """Return the parser for these arguments: with the family of the verb that they begin with, or with all verbs."""
    module = MODULE_OF.get(arguments[0]) if arguments else None
    return _parser([module] if module else dict.fromkeys(MODULE_OF.values()))


class _Program(Parser):
    """The parser of the whole command line."""

    def format_help(self) -> str:
        """Return the overview of all verbs, whether this parser has them or not."""
        return overview()


def _parser(modules: Iterable[str]) -> argparse.ArgumentParser:
    """Return a parser with the verbs of these modules. No other module is imported."""
    parser = _Program(prog=PROGRAM, formatter_class=HelpFormatter)
    parser.add_argument(*_VERSION_OPTIONS, action="version", version=f"{PROGRAM} {__version__}")
    # The help of a verb and the manual are made from parsers.
    parser.set_defaults(parser_for=parser_for)
    verbs = parser.add_subparsers(prog=PROGRAM, metavar="COMMAND", required=True, parser_class=Parser)
    for module in modules:
        family(module).add_verbs(verbs)
    return parser


def _complete(words: Sequence[str]) -> None:
    """Tell a shell what the last of these words may become, and end the process."""
    from overlayfs_demo.cli.completion import complete

    complete(parser_for(words))
