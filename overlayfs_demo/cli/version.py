"""The verb `version`."""

from __future__ import annotations

import argparse

from overlayfs_demo import __version__
from overlayfs_demo.cli.command import Verbs, new_verb
from overlayfs_demo.ui.console import PROGRAM, put


def add_verbs(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Add the verb of this module."""
    new_verb(verbs, "version", f"{PROGRAM} version", _version)


def _version(_arguments: argparse.Namespace) -> int:
    put(f"{PROGRAM} {__version__}\n")
    return 0
