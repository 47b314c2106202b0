"""The verb `umount`."""

from __future__ import annotations

import argparse
import os

from overlayfs_demo.cli.command import Verbs, new_verb
from overlayfs_demo.cli.store_options import add_store
from overlayfs_demo.cli.view_name import view_path
from overlayfs_demo.mounts import umount
from overlayfs_demo.ui.console import PROGRAM


def add_verbs(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Add the verbs of this module."""
    verb = new_verb(
        verbs,
        "umount",
        f"{PROGRAM} umount merged",
        _umount,
        "Unmount a view. If it is busy, show which processes use it.",
    )
    verb.add_argument("--lazy", "-l", action="store_true", help="detach now, clean up when no longer busy")
    add_store(verb)
    verb.add_argument("mountpoint", metavar="MOUNTPOINT|C")


def _umount(arguments: argparse.Namespace) -> int:
    umount.unmount(os.fsencode(view_path(arguments.mountpoint, arguments.store)), lazy=arguments.lazy)
    return 0
