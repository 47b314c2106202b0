"""The verb `manual`, which prints the manual page or a document."""

from __future__ import annotations

import argparse

from overlayfs_demo.cli import documents
from overlayfs_demo.cli.command import Verbs, new_verb
from overlayfs_demo.cli.manpage import manual
from overlayfs_demo.errors import OverlayError, printable
from overlayfs_demo.ui.console import PROGRAM, put
from overlayfs_demo.ui.terminal import put_markdown


def add_verbs(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Add the verb of this module."""
    verb = new_verb(
        verbs,
        "manual",
        f"{PROGRAM} manual | man -l -\n{PROGRAM} manual --list\n{PROGRAM} manual differences\n"
        f"{PROGRAM} manual architecture | less",
        _manual,
        "Print the manual page as man(7) source, or a document: formatted on a terminal, plain Markdown in a pipe.",
    )
    topics = documents.topics()
    verb.add_argument("topic", nargs="?", metavar="TOPIC", help=f"print this document instead: {', '.join(topics)}")
    verb.add_argument("--list", action="store_true", help="list the documents")


def _manual(arguments: argparse.Namespace) -> int:
    """Print the manual page, a document, or the list. The page is made from the parser in the arguments.

    Raises OverlayError if there is no such document.
    """
    if arguments.list:
        width = max(map(len, documents.topics()))
        put("".join(f"{topic:<{width}}  {documents.title(topic)}\n" for topic in documents.topics()))
        return 0
    if arguments.topic is None:
        put(manual(arguments.parser_for([])))
        return 0
    if arguments.topic not in documents.topics():
        topics = ", ".join(documents.topics())
        raise OverlayError(f"there is no document '{printable(arguments.topic)}'", f"choose one of {topics}")
    put_markdown(documents.read(arguments.topic))
    return 0
