"""The verb `restart`."""

from __future__ import annotations

import argparse
import os

from overlayfs_demo.cli.command import Verbs, new_verb
from overlayfs_demo.cli.store_options import add_store
from overlayfs_demo.cli.view_name import view_path
from overlayfs_demo.errors import printable
from overlayfs_demo.mounts import registry
from overlayfs_demo.mounts.restart import restart
from overlayfs_demo.ui.console import PROGRAM, note


def add_verbs(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Add the verbs of this module."""
    verb = new_verb(
        verbs,
        "restart",
        f"{PROGRAM} restart merged",
        _restart,
        "Let another daemon serve a view, with the program that is installed now. The view stays mounted, and files "
        "stay open; calls in it only take a moment longer.",
    )
    add_store(verb)
    verb.add_argument("mountpoint", nargs="+", metavar="MOUNTPOINT|C", help="the view, any path in it, or a container")


def _restart(arguments: argparse.Namespace) -> int:
    for word in arguments.mountpoint:
        place = registry.place_in_view(os.fsencode(view_path(word, arguments.store)), follow=True)
        record = restart(place.mountpoint)
        note(f"process {record.daemon} serves {printable(place.mountpoint)} now")
    return 0
