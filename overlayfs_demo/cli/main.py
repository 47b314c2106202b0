"""What can be typed at a shell? The command line, and the exit status: 0, 1 (failed), 2 (wrong usage)."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

from overlayfs_demo import __version__
from overlayfs_demo.cli.command import Verbs, guarded, new_verb
from overlayfs_demo.cli.mount_help import mount_help
from overlayfs_demo.errors import MountError, UsageError
from overlayfs_demo.events import Event
from overlayfs_demo.linux import syscalls
from overlayfs_demo.mounts import mount
from overlayfs_demo.mounts.options import FRONTS, parse
from overlayfs_demo.ui import wording
from overlayfs_demo.ui.console import PROGRAM


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status. Errors are one line on stderr."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(format=f"{PROGRAM}: %(message)s")
    if "_ARGCOMPLETE" in os.environ:
        _complete(os.environ.get("COMP_LINE", "").split()[1:])
    if os.path.basename(sys.argv[0]).startswith("umount."):
        return guarded(PROGRAM, lambda: _umount_as_helper(arguments))
    if _is_mount_helper(arguments, _VERBS):
        return guarded(PROGRAM, lambda: _mount_as_helper(arguments))
    options = _parser(arguments).parse_args(arguments)
    return guarded(PROGRAM, lambda: int(options.run(options)))


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """The parser for these arguments: of the verb that they begin with and its kin, or of all verbs."""
    parser = argparse.ArgumentParser(prog=PROGRAM, description="An overlay filesystem you can watch.")
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    verbs = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    wanted = _VERBS.get(arguments[0]) if arguments else None
    for add in (wanted,) if wanted else dict.fromkeys(_VERBS.values()):
        add(verbs)
    return parser


def _complete(words: Sequence[str]) -> None:
    """A shell asks what the last of the words may become: answer it, and end."""
    from overlayfs_demo.cli.completion import complete

    complete(_parser(words))


def _add_mount_verbs(verbs: Verbs[argparse.ArgumentParser]) -> None:
    mount = verbs.add_parser(
        "mount",
        help="mount a stack of layers as one tree",
        description=mount_help(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    mount.add_argument("-o", dest="options", action="append", default=[], metavar="OPTIONS", help="see above")
    mount.add_argument("--front", choices=FRONTS, help="how to talk to the kernel (default: auto)")
    mount.add_argument("--foreground", "-f", action="store_true", help="serve in this process until unmounted")
    mount.add_argument("--trace", action="store_true", help="with --foreground: report each change in a sentence")
    mount.add_argument("mountpoint", metavar="MOUNTPOINT")
    mount.set_defaults(run=_mount)
    umount = new_verb(
        verbs,
        "umount",
        "unmount a view",
        f"{PROGRAM} umount merged",
        _umount,
        "Unmount a view. If it is busy, show which processes use it.",
    )
    umount.add_argument("--lazy", "-l", action="store_true", help="detach now, clean up when no longer busy")
    umount.add_argument("mountpoint", metavar="MOUNTPOINT")


def _add_watch_verb(verbs: Verbs[argparse.ArgumentParser]) -> None:
    from overlayfs_demo.cli.watch import add_watch_verb

    add_watch_verb(verbs)


def _add_explain_verb(verbs: Verbs[argparse.ArgumentParser]) -> None:
    from overlayfs_demo.cli.explain import add_explain_verb

    add_explain_verb(verbs)


def _add_image_verbs(verbs: Verbs[argparse.ArgumentParser]) -> None:
    from overlayfs_demo.cli.images import add_image_verbs

    add_image_verbs(verbs)


def _add_analysis_verbs(verbs: Verbs[argparse.ArgumentParser]) -> None:
    from overlayfs_demo.cli.analysis import add_analysis_verbs

    add_analysis_verbs(verbs)


def _add_which_verb(verbs: Verbs[argparse.ArgumentParser]) -> None:
    from overlayfs_demo.cli.which import add_which_verb

    add_which_verb(verbs)


def _add_web_verbs(verbs: Verbs[argparse.ArgumentParser]) -> None:
    from overlayfs_demo.cli.web import add_web_verbs

    add_web_verbs(verbs)


def _add_container_verbs(verbs: Verbs[argparse.ArgumentParser]) -> None:
    from overlayfs_demo.cli.containers import add_container_verbs

    add_container_verbs(verbs)


def _add_shell_verbs(verbs: Verbs[argparse.ArgumentParser]) -> None:
    from overlayfs_demo.cli.help import add_shell_verbs

    add_shell_verbs(verbs, lambda: _parser([]))


def _add_tour_verbs(verbs: Verbs[argparse.ArgumentParser]) -> None:
    from overlayfs_demo.cli.tour import add_tour_verbs

    add_tour_verbs(verbs)


# Who adds a verb, in the order of --help. A mount must not wait for the import of what images need.
_VERBS: Mapping[str, Callable[[Verbs[argparse.ArgumentParser]], None]] = {
    **dict.fromkeys(("mount", "umount"), _add_mount_verbs),
    "watch": _add_watch_verb,
    "explain": _add_explain_verb,
    **dict.fromkeys(
        ("load", "import", "images", "history", "inspect", "layers", "df", "save", "tag", "rmi", "prune"),
        _add_image_verbs,
    ),
    **dict.fromkeys(("analyze", "ghosts"), _add_analysis_verbs),
    "which": _add_which_verb,
    **dict.fromkeys(("serve", "report"), _add_web_verbs),
    **dict.fromkeys(("create", "ps", "diff", "commit", "export", "stop", "start", "rm", "shell"), _add_container_verbs),
    **dict.fromkeys(("tour", "lab"), _add_tour_verbs),
    **dict.fromkeys(("completion", "manual"), _add_shell_verbs),
}


def _mount(arguments: argparse.Namespace) -> int:
    if mount.remount(os.fsencode(arguments.mountpoint), arguments.options):
        return 0
    options = parse(arguments.options)
    if arguments.front:
        options = replace(options, front=arguments.front)
    if arguments.trace and not arguments.foreground:
        raise UsageError("--trace prints to this terminal", "add --foreground")
    mount.mount(
        os.fsencode(arguments.mountpoint),
        options,
        foreground=arguments.foreground,
        trace=_print_event if arguments.trace else None,
    )
    return 0


def _print_event(event: Event) -> None:
    print(wording.sentence(event), flush=True)


def _umount(arguments: argparse.Namespace) -> int:
    mount.unmount(os.fsencode(arguments.mountpoint), lazy=arguments.lazy)
    return 0


# --- mount(8) and umount(8) ------------------------------------------------------------------------


def _is_mount_helper(arguments: Sequence[str], verbs: Collection[str]) -> bool:
    """Are we called as mount(8) calls its helpers: SOURCE MOUNTPOINT [-sfnv] [-N NS] [-t TYPE] [-o OPTIONS]?

    That is so under the helper's name, `mount.fuse.overlayfs-demo`, and through mount.fuse3(8), which
    runs this program by its own name with two bare words in front.
    """
    if os.path.basename(sys.argv[0]).startswith("mount."):
        return True
    bare = len(arguments) >= 2 and not arguments[0].startswith("-") and not arguments[1].startswith("-")
    return bare and arguments[0] not in verbs


def _mount_as_helper(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog=f"mount.fuse.{PROGRAM}", add_help=False)
    parser.add_argument("source")
    parser.add_argument("mountpoint")
    parser.add_argument("-o", dest="options", action="append", default=[])
    parser.add_argument("-t", dest="type")
    for flag in "sfnv":
        parser.add_argument(f"-{flag}", dest=flag, action="store_true")
    given = parser.parse_args(arguments)
    if mount.remount(os.fsencode(given.mountpoint), given.options):
        return 0
    options = parse(given.options)
    if not given.f:  # mount -f: everything but the mounting.
        mount.mount(os.fsencode(given.mountpoint), replace(options, source=options.source or given.source))
    return 0


def _umount_as_helper(arguments: Sequence[str]) -> int:
    """Called as umount(8) calls its helpers: DIR [-flnrv] [-N NS] [-t TYPE]. It thus returns when the layers are free,
    and not before the daemon has let go of them."""
    parser = argparse.ArgumentParser(prog=f"umount.fuse.{PROGRAM}", add_help=False)
    parser.add_argument("mountpoint")
    parser.add_argument("-N", dest="namespace")
    parser.add_argument("-t", dest="type")
    for flag in "flnrv":
        parser.add_argument(f"-{flag}", dest=flag, action="store_true")
    given = parser.parse_args(arguments)
    if given.namespace is not None:
        syscalls.enter_mount_namespace(given.namespace)
    try:
        mount.unmount(os.fsencode(given.mountpoint), lazy=given.l, force=given.f)
    except MountError:
        if not given.r or not mount.remount(os.fsencode(given.mountpoint), ["remount", "ro"]):
            raise
    return 0
