"""The verb `diff`: what a container changed, or how two images differ."""

from __future__ import annotations

import argparse
import os

from overlayfs_demo.cli.analysis import diff_images
from overlayfs_demo.cli.command import Verbs
from overlayfs_demo.cli.store_options import add_json, add_verb, store_of
from overlayfs_demo.errors import UsageError, printable
from overlayfs_demo.store.containers import Containers
from overlayfs_demo.ui.console import put_json
from overlayfs_demo.ui.terminal import put_changes


def add_verbs(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Add the verb of this module."""
    verb = add_verb(verbs, "diff", "diff c1\ndiff --content app:1.0@3 app:1.0@5", _diff)
    verb.add_argument(
        "first", metavar="C|IMAGE[@N]", help="a container, or an image; @N takes only its N lowest layers"
    )
    verb.add_argument("second", nargs="?", metavar="IMAGE[@N]", help="the image to compare it with")
    verb.add_argument(
        "--content", action="store_true", help="for images: also show the lines that differ in text files"
    )
    add_json(verb)


def _diff(arguments: argparse.Namespace) -> int:
    """Show what a container changed, as `docker diff` does, or how two images differ. Both print A, C and D."""
    store = store_of(arguments)
    if arguments.second is not None:
        return diff_images(store, arguments.first, arguments.second, content=arguments.content, as_json=arguments.json)
    if arguments.content:
        raise UsageError("--content compares two images", "name both: diff --content IMAGE@3 IMAGE@5")
    containers = Containers(store)
    found = containers.diff(containers.find(arguments.first))
    if arguments.json:
        put_json([{"Kind": change.kind.value, "Path": os.fsdecode(change.path)} for change in found])
        return 0
    put_changes([(change.kind.value, printable(change.path)) for change in found])
    return 0
