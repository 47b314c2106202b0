"""The verb `browse`, which shows the layers of an image or of a mounted view in a terminal."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from overlayfs_demo.cli.command import Verbs
from overlayfs_demo.cli.extras import needing
from overlayfs_demo.cli.store_options import add_verb, store_of
from overlayfs_demo.cli.view_or_image import view_or_image
from overlayfs_demo.errors import UsageError
from overlayfs_demo.store.stored import StoredImage
from overlayfs_demo.ui.console import can_place_cursor, note


def add_verbs(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Add the verbs of this module."""
    verb = add_verb(verbs, "browse", "browse app:1.0\nbrowse view", _browse)
    verb.add_argument("what", metavar="MOUNTPOINT|C|IMAGE")


def _browse(arguments: argparse.Namespace) -> int:
    _require_terminal()
    shown = view_or_image(arguments, "browse")
    with needing("browse", "the browser needs"):
        from overlayfs_demo.browse import app, subject
    if isinstance(shown, StoredImage):
        browsed = subject.image_subject(store_of(arguments), shown)
    else:
        browsed = subject.view_subject(shown.record)
    with _warnings_after():
        return app.browse(browsed)


def _require_terminal() -> None:
    """Raise UsageError unless there is a terminal to draw on. Textual reads stdin and draws on stderr."""
    if not all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)):
        raise UsageError("browse needs a terminal", "'analyze' and 'history --layers' also print to a pipe or a file")
    if not can_place_cursor():
        raise UsageError(
            "browse needs a terminal that can place its cursor, and TERM says that this one cannot",
            "'analyze' and 'history --layers' work on any terminal",
        )


@contextmanager
def _warnings_after() -> Iterator[None]:
    """Print the warnings of the engine afterwards, because they would spoil the picture."""
    kept: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: kept.append(record.getMessage())  # type: ignore[method-assign]
    root = logging.getLogger()
    before = root.handlers[:]
    root.handlers[:] = [handler]
    try:
        yield
    finally:
        root.handlers[:] = before
        for message in dict.fromkeys(kept):
            note(message)
