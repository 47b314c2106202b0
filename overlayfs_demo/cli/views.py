"""The verb `mount`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress

from overlayfs_demo.cli.command import Verbs
from overlayfs_demo.cli.families import SUMMARIES
from overlayfs_demo.cli.help_text import HelpFormatter
from overlayfs_demo.cli.mount_help import mount_help
from overlayfs_demo.cli.parser import Parser
from overlayfs_demo.errors import UsageError
from overlayfs_demo.events import Listener
from overlayfs_demo.mounts import mount
from overlayfs_demo.mounts.options import FRONTS, parse


def add_verbs(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Add the verbs of this module."""
    verb = verbs.add_parser("mount", help=SUMMARIES["mount"], formatter_class=HelpFormatter)
    assert isinstance(verb, Parser)
    verb.describe_with(mount_help)
    verb.add_argument("-o", dest="options", action="append", default=[], metavar="OPTIONS", help="see above")
    verb.add_argument("--front", choices=FRONTS, help="how to talk to the kernel (default: auto)")
    verb.add_argument("--foreground", "-f", action="store_true", help="serve in this process until unmounted")
    verb.add_argument("--trace", action="store_true", help="with --foreground: report each change in a sentence")
    verb.add_argument("mountpoint", metavar="MOUNTPOINT")
    verb.set_defaults(run=_mount)


def _mount(arguments: argparse.Namespace) -> int:
    if mount.remount(os.fsencode(arguments.mountpoint), arguments.options):
        return 0
    options = parse(arguments.options)
    if arguments.front:
        options = options._replace(front=arguments.front)
    if arguments.trace and not arguments.foreground:
        raise UsageError("--trace prints to this terminal", "add --foreground")
    with _trace() if arguments.trace else nullcontext() as trace:
        mount.mount(os.fsencode(arguments.mountpoint), options, foreground=arguments.foreground, trace=trace)
    return 0


@contextmanager
def _trace() -> Iterator[Listener]:
    """Give a listener that prints a sentence for each event."""
    from overlayfs_demo.watch.trace import Trace

    trace = Trace(_put)
    try:
        yield trace.tell
    finally:
        trace.finish()


def _put(sentence: str) -> None:
    """Print a sentence. If stdout cannot take it, it is lost: the program whose change it reports must not fail."""
    with suppress(OSError):
        # Not through a buffer, which would keep what could not be written.
        os.write(sys.stdout.fileno(), f"{sentence}\n".encode("utf-8", "surrogateescape"))
