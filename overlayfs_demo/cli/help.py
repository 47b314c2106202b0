"""The verbs that tell about the commands: help, the manual page and the documents, completion, and the version."""

from __future__ import annotations

import argparse

from overlayfs_demo import __version__
from overlayfs_demo.cli import documents
from overlayfs_demo.cli.command import Verbs, new_verb
from overlayfs_demo.cli.completion import SHELLS, script
from overlayfs_demo.cli.manpage import manual
from overlayfs_demo.cli.parser import verbs_of
from overlayfs_demo.cli.unknown import unknown_verb
from overlayfs_demo.errors import OverlayError, printable
from overlayfs_demo.ui.console import PROGRAM, put
from overlayfs_demo.ui.terminal import put_markdown


def add_verbs(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Add the verbs of this module."""
    verb = new_verb(
        verbs, "help", "list the commands, or show the options of one", f"{PROGRAM} help\n{PROGRAM} help history", _help
    )
    verb.add_argument("verbs", nargs="*", metavar="VERB", help="the command to show")
    _add_manual(verbs)
    verb = new_verb(
        verbs,
        "completion",
        "print the completion script for a shell",
        f"source <({PROGRAM} completion bash)\n{PROGRAM} completion fish | source",
        lambda arguments: _print(script(arguments.shell)),
    )
    verb.add_argument("shell", choices=SHELLS, help="the shell that reads it")
    new_verb(
        verbs,
        "version",
        "print the version",
        f"{PROGRAM} version",
        lambda _arguments: _print(f"{PROGRAM} {__version__}\n"),
    )


def _add_manual(verbs: Verbs[argparse.ArgumentParser]) -> None:
    verb = new_verb(
        verbs,
        "manual",
        "print the manual page or a document",
        f"{PROGRAM} manual | man -l -\n{PROGRAM} manual --list\n{PROGRAM} manual differences\n"
        f"{PROGRAM} manual architecture | less",
        _manual,
        "Print the manual page as man(7) source, or a document: formatted on a terminal, plain Markdown in a pipe.",
    )
    topics = documents.topics()
    verb.add_argument("topic", nargs="?", metavar="TOPIC", help=f"print this document instead: {', '.join(topics)}")
    verb.add_argument("--list", action="store_true", help="list the documents")


def _help(arguments: argparse.Namespace) -> int:
    """Print the help of the program, or of a verb. Raises UsageError."""
    parser = arguments.whole_parser()
    for word in arguments.verbs:
        verbs = verbs_of(parser)
        if word not in verbs:
            raise unknown_verb(word, verbs)
        parser = verbs[word]
    return _print(parser.format_help())


def _manual(arguments: argparse.Namespace) -> int:
    """Print the manual page, a document, or the list. The page is made from the parser in the arguments.

    Raises OverlayError if there is no such document.
    """
    if arguments.list:
        width = max(map(len, documents.topics()))
        return _print("".join(f"{topic:<{width}}  {documents.title(topic)}\n" for topic in documents.topics()))
    if arguments.topic is None:
        return _print(manual(arguments.whole_parser()))
    if arguments.topic not in documents.topics():
        topics = ", ".join(documents.topics())
        raise OverlayError(f"there is no document '{printable(arguments.topic)}'", f"choose one of {topics}")
    put_markdown(documents.read(arguments.topic))
    return 0


def _print(text: str) -> int:
    put(text)
    return 0
