"""The options that verbs on the store share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from overlayfs_demo.cli.command import Verbs, new_verb
from overlayfs_demo.store.root import default_root
from overlayfs_demo.ui.console import PROGRAM

if TYPE_CHECKING:
    from overlayfs_demo.store.store import Store


def add_verb(
    verbs: Verbs[argparse.ArgumentParser], name: str, examples: str, run: Callable[[argparse.Namespace], int]
) -> argparse.ArgumentParser:
    """Add a verb that works on the store. Its help shows the examples, one per line, given without our name."""
    verb = new_verb(verbs, name, "\n".join(f"{PROGRAM} {line}" for line in examples.splitlines()), run)
    add_store(verb)
    return verb


def add_store(verb: argparse.ArgumentParser) -> None:
    """Give the verb the option --store."""
    verb.add_argument("--store", type=Path, metavar="DIR", help=f"where images are stored (default: {default_root()})")


def add_json(verb: argparse.ArgumentParser) -> None:
    """Give the verb the option --json."""
    verb.add_argument("--json", action="store_true", help="one JSON object per line")


def add_filter(verb: argparse.ArgumentParser, rule: str) -> None:
    """Give the verb docker's option --filter, whose values are in `filters`; `rule` describes them."""
    verb.add_argument("--filter", "-f", dest="filters", action="append", default=[], metavar="KEY=VALUE", help=rule)


def store_of(arguments: argparse.Namespace) -> Store:
    """Return the store that a command works on. Raises ImageError."""
    # Imported only here, because a verb on views has the option, but seldom needs the store.
    from overlayfs_demo.store.store import Store

    return Store(arguments.store or default_root())
