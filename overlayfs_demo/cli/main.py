"""The command line: its parser, and the exit status, which is 0, 1 (failed) or 2 (wrong usage)."""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module

from overlayfs_demo import __version__
from overlayfs_demo.cli.command import guarded
from overlayfs_demo.cli.overview import overview
from overlayfs_demo.cli.parser import Parser, summaries_of
from overlayfs_demo.cli.streams import open_missing_streams
from overlayfs_demo.cli.unknown import unknown_verb
from overlayfs_demo.ui.console import PROGRAM, Notes

# All verbs, in the order of the overview: its groups, the modules of this folder in each, and which of a module's verbs
# belong there. A module's function `add_verbs` adds all its verbs. It is imported only for them: a mount must not wait
# for the import of what images need.
FAMILIES: Mapping[str, Mapping[str, Sequence[str]]] = {
    "Learn": {"tour": ("tour",), "lab": ("lab",), "lecture": ("lecture",), "sample": ("sample",)},
    "Views": {
        "views": ("mount",),
        "umount": ("umount",),
        "watch": ("watch",),
        "which": ("which",),
        "explain": ("explain",),
        "web": ("serve",),
    },
    "Images": {
        "images": ("load", "import", "images", "history", "layers", "tag", "rmi", "prune"),
        "save": ("save",),
        "inspect": ("inspect",),
        "disk_usage": ("df",),
        "groups": ("image", "system"),
    },
    "Containers": {
        "container_run": ("run", "exec", "shell"),
        "containers": ("create", "ps", "diff", "commit", "export", "stop", "start", "rename", "rm"),
        "container_cp": ("cp",),
        "groups": ("container",),
    },
    "Analysis": {"browse": ("browse",), "analysis": ("analyze", "ghosts"), "web": ("report",)},
    "Help": {"help": ("help", "manual", "completion", "version")},
}
_VERSION_OPTIONS = ("--version", "-v")
_OPTIONS = ("--help", "-h", *_VERSION_OPTIONS)
_FAMILY_OF = {verb: family for group in FAMILIES.values() for family, verbs in group.items() for verb in verbs}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status. An error is one line on stderr."""
    open_missing_streams()
    arguments = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(format="%(message)s", handlers=[Notes()])
    if "_ARGCOMPLETE" in os.environ:
        _complete(os.environ.get("COMP_LINE", "").split()[1:])
    if os.path.basename(sys.argv[0]).startswith("umount."):
        from overlayfs_demo.cli.mount_helper import umount_as_helper

        return guarded(PROGRAM, lambda: umount_as_helper(arguments))
    if _is_mount_helper(arguments):
        from overlayfs_demo.cli.mount_helper import mount_as_helper

        return guarded(PROGRAM, lambda: mount_as_helper(arguments))
    return guarded(PROGRAM, lambda: _run(arguments))


def _run(arguments: Sequence[str]) -> int:
    """Run the verb that the arguments begin with; without arguments, print the help. Raises OverlayError, OSError."""
    if arguments and arguments[0] not in (*_FAMILY_OF, *_OPTIONS):
        raise unknown_verb(arguments[0], _FAMILY_OF)
    options = parser_for(arguments).parse_args(arguments or ["--help"])
    return int(options.run(options))


class _Program(Parser):
    """The parser of the whole command line."""

    def format_help(self) -> str:
        """Return the overview of all verbs, which this parser must have."""
        groups = {group: list(itertools.chain(*families.values())) for group, families in FAMILIES.items()}
        return overview(groups, summaries_of(self))


def parser_for(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """Return the parser for these arguments: with the family of the verb that they begin with, or with all verbs."""
    parser = _Program(prog=PROGRAM)
    parser.add_argument(*_VERSION_OPTIONS, action="version", version=f"{PROGRAM} {__version__}")
    # The manual is made from the parser of all verbs.
    parser.set_defaults(whole_parser=lambda: parser_for([]))
    verbs = parser.add_subparsers(prog=PROGRAM, metavar="COMMAND", required=True, parser_class=Parser)
    family = _FAMILY_OF.get(arguments[0]) if arguments else None
    for name in (family,) if family else dict.fromkeys(_FAMILY_OF.values()):
        import_module(f"overlayfs_demo.cli.{name}").add_verbs(verbs)
    return parser


def _complete(words: Sequence[str]) -> None:
    """Tell a shell what the last of these words may become, and end the process."""
    from overlayfs_demo.cli.completion import complete

    complete(parser_for(words))


def _is_mount_helper(arguments: Sequence[str]) -> bool:
    """Return whether mount(8) calls us as a helper: SOURCE MOUNTPOINT [-sfnv] [-N NS] [-t TYPE] [-o OPTIONS].

    That is so under the helper's name, `mount.fuse.overlayfs-demo`, and through mount.fuse3(8), which runs this program
    by its own name with exactly these words: SOURCE MOUNTPOINT -o OPTIONS. mount(8) has made the mount point absolute.
    """
    if os.path.basename(sys.argv[0]).startswith("mount."):
        return True
    match arguments:
        case [source, mountpoint, "-o", _]:
            return source not in _FAMILY_OF and mountpoint.startswith("/")
    return False
