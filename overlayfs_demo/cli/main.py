"""The command line: its parser, and the exit status, which is 0, 1 (failed) or 2 (wrong usage)."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Collection, Mapping, Sequence
from importlib import import_module

from overlayfs_demo import __version__
from overlayfs_demo.cli.command import guarded
from overlayfs_demo.ui.console import PROGRAM

# Which module of this folder adds which verbs, with its function `add_verbs`, in the order of --help. A module is
# imported only for its verbs: a mount must not wait for the import of what images need.
FAMILIES: Mapping[str, Sequence[str]] = {
    "views": ("mount", "umount"),
    "watch": ("watch",),
    "explain": ("explain",),
    "sample": ("sample",),
    "images": ("load", "import", "images", "history", "inspect", "layers", "df", "save", "tag", "rmi", "prune"),
    "analysis": ("analyze", "ghosts"),
    "which": ("which",),
    "web": ("serve", "report"),
    "containers": ("create", "ps", "diff", "commit", "export", "stop", "start", "rm", "shell"),
    "tour": ("tour",),
    "lab": ("lab",),
    "lecture": ("lecture",),
    "help": ("completion", "manual"),
}
_FAMILY_OF = {verb: family for family, verbs in FAMILIES.items() for verb in verbs}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status. An error is one line on stderr."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(format=f"{PROGRAM}: %(message)s")
    if "_ARGCOMPLETE" in os.environ:
        _complete(os.environ.get("COMP_LINE", "").split()[1:])
    if os.path.basename(sys.argv[0]).startswith("umount."):
        from overlayfs_demo.cli.mount_helper import umount_as_helper

        return guarded(PROGRAM, lambda: umount_as_helper(arguments))
    if _is_mount_helper(arguments, _FAMILY_OF):
        from overlayfs_demo.cli.mount_helper import mount_as_helper

        return guarded(PROGRAM, lambda: mount_as_helper(arguments))
    options = parser_for(arguments).parse_args(arguments)
    return guarded(PROGRAM, lambda: int(options.run(options)))


def parser_for(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """Return the parser for these arguments: with the family of the verb that they begin with, or with all verbs."""
    parser = argparse.ArgumentParser(prog=PROGRAM, description="An overlay filesystem you can watch.")
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    # The manual is made from the parser of all verbs.
    parser.set_defaults(whole_parser=lambda: parser_for([]))
    verbs = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    family = _FAMILY_OF.get(arguments[0]) if arguments else None
    for name in (family,) if family else FAMILIES:
        import_module(f"overlayfs_demo.cli.{name}").add_verbs(verbs)
    return parser


def _complete(words: Sequence[str]) -> None:
    """Tell a shell what the last of these words may become, and end the process."""
    from overlayfs_demo.cli.completion import complete

    complete(parser_for(words))


def _is_mount_helper(arguments: Sequence[str], verbs: Collection[str]) -> bool:
    """Return whether mount(8) calls us as a helper: SOURCE MOUNTPOINT [-sfnv] [-N NS] [-t TYPE] [-o OPTIONS].

    That is so under the helper's name, `mount.fuse.overlayfs-demo`, and through mount.fuse3(8), which
    runs this program by its own name with two bare words in front.
    """
    if os.path.basename(sys.argv[0]).startswith("mount."):
        return True
    bare = len(arguments) >= 2 and not arguments[0].startswith("-") and not arguments[1].startswith("-")
    return bare and arguments[0] not in verbs
