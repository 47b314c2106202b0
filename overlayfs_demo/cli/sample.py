"""The verb `sample`: a small image to try everything on."""

from __future__ import annotations

import argparse
from pathlib import Path

from overlayfs_demo.cli.command import Verbs, new_verb
from overlayfs_demo.cli.output import output
from overlayfs_demo.errors import printable
from overlayfs_demo.images.sample_image import TAG, write_teaching_image
from overlayfs_demo.ui.console import PROGRAM, note
from overlayfs_demo.ui.text import human_size, plural


def add_verbs(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Add the verb of this module."""
    verb = new_verb(
        verbs,
        "sample",
        f"{PROGRAM} sample image.tar\n{PROGRAM} sample - | {PROGRAM} load",
        _sample,
        f"Write the archive of a small image, {TAG}, as 'docker save' writes one. It has the same bytes every time.",
    )
    verb.add_argument("archive", metavar="FILE", help="the tar to write, or - for standard output")


def _sample(arguments: argparse.Namespace) -> int:
    path = None if arguments.archive == "-" else Path(arguments.archive)
    with output(path) as out:
        image = write_teaching_image(out)
    if path is not None:
        note(f"{printable(str(path))}: {TAG}, {plural(len(image.layers), 'layer')}, {human_size(path.stat().st_size)}")
    return 0
