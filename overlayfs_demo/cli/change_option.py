"""The options of the verbs that make an image: its comment, and Dockerfile lines that change its settings."""

from __future__ import annotations

import argparse


def add_changes(verb: argparse.ArgumentParser, lines: str) -> None:
    """Add --message and --change; `lines` is the help of the latter."""
    verb.add_argument("--message", "-m", default="", metavar="TEXT", help="the comment in the image's history")
    verb.add_argument("--change", "-c", dest="changes", action="append", default=[], metavar="INSTRUCTION", help=lines)
