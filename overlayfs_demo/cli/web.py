"""The verbs that show a stack in a browser: `serve` and `report`."""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import replace

from overlayfs_demo.cli.command import Verbs
from overlayfs_demo.cli.extras import needing
from overlayfs_demo.cli.foreign_containers import Engine, add_engines, view_of
from overlayfs_demo.cli.image_analysis import analysis_of
from overlayfs_demo.cli.output import add_output, output
from overlayfs_demo.cli.store_options import add_verb, store_of
from overlayfs_demo.cli.view_end import tell_end
from overlayfs_demo.cli.view_or_image import MountedView, own_view, view_or_image
from overlayfs_demo.errors import MountError, printable
from overlayfs_demo.mounts import registry
from overlayfs_demo.mounts.control.titles import titled_record
from overlayfs_demo.store.stored import StoredImage
from overlayfs_demo.ui.console import note
from overlayfs_demo.ui.terminal import progress

_PORT = 8080


def add_verbs(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Add the verbs of this module."""
    verb = add_verb(
        verbs, "serve", "serve view\nserve app:1.0 --port 0\nserve view --host 0.0.0.0   # in a virtual machine", _serve
    )
    verb.add_argument("what", metavar="MOUNTPOINT|C|IMAGE")
    add_engines(verb)
    verb.add_argument(
        "--host", default="127.0.0.1", metavar="ADDRESS", help="address to listen on (default: 127.0.0.1, this machine)"
    )
    verb.add_argument(
        "--port",
        type=_port,
        default=_PORT,
        metavar="N",
        help=f"port to listen on (default: {_PORT}; 0 picks a free one)",
    )
    verb.add_argument(
        "--no-token",
        action="store_true",
        help="for a classroom: an address without a secret; anyone who reaches the port can read the layers' files",
    )
    verb = add_verb(verbs, "report", "report app:1.0 -o app.html", _report)
    verb.add_argument("image", metavar="IMAGE")
    add_output(verb, required=True)


def _port(word: str) -> int:
    if not word.isdigit() or int(word) > 65535:
        raise argparse.ArgumentTypeError("use a number from 0 to 65535")
    return int(word)


# --- serve -----------------------------------------------------------------------------------------


def _serve(arguments: argparse.Namespace) -> int:
    view = view_or_image(arguments, "serve") if arguments.engine is None else _foreign(arguments.engine, arguments.what)
    if isinstance(view, StoredImage):
        return _serve_image(arguments, view)
    with needing("web", "the page needs"):
        from overlayfs_demo.web import app, model, serve, subject
    record, socket = view.record, view.socket
    shown = subject.mount_subject(record, socket)
    serve.serve(
        shown,
        lambda: model.mount_page(record, shown),
        app.LiveView(record.mountpoint, socket),
        arguments.host,
        arguments.port,
        lambda address: _tell(arguments, address, "until it is unmounted"),
        secret=not arguments.no_token,
    )
    # A signal ends the server too, and then the view goes on.
    return 0 if registry.is_served(record.mountpoint) else tell_end(record.mountpoint, os.geteuid())


def _foreign(engine: Engine, name: str) -> MountedView:
    """Return the view of another engine's container. Raises MountError."""
    found = view_of(engine, name)
    view = own_view(found.path, "serve")
    if view is None:
        raise MountError(f"{found.path} was unmounted in the meantime", "start the container again")
    return replace(view, record=titled_record(view.record, found.titles))


def _serve_image(arguments: argparse.Namespace, image: StoredImage) -> int:
    with needing("web", "the page needs"):
        from overlayfs_demo.web import model, serve, subject
    store = store_of(arguments)
    with progress() as told:
        analysis = analysis_of(image, told)
    with subject.image_subject(store, image) as shown:
        serve.serve(
            shown,
            lambda: model.image_page(image, analysis, time.time()),
            None,
            arguments.host,
            arguments.port,
            lambda address: _tell(arguments, address, "until interrupted (Ctrl-C)"),
            secret=not arguments.no_token,
        )
    return 0


def _tell(arguments: argparse.Namespace, address: str, until: str) -> None:
    note(f"serving {printable(arguments.what)} {until}, at")
    # Alone on its line, to be copied or clicked whole.
    print(address, file=sys.stderr, flush=True)
    if arguments.no_token:
        note("warning: without a token, anyone who reaches this port can read every file of the layers")
    if os.path.exists("/vagrant") and arguments.host == "127.0.0.1":
        note("to reach the page from outside this virtual machine, use --host 0.0.0.0")


# --- report ----------------------------------------------------------------------------------------


def _report(arguments: argparse.Namespace) -> int:
    with needing("web", "the page needs"):
        from overlayfs_demo.web import model, report, subject
    store = store_of(arguments)
    image = store.find(arguments.image)
    with progress() as told:
        analysis = analysis_of(image, told)
        page = model.image_page(image, analysis, time.time())
        told.step("reading files", None)
        with subject.image_subject(store, image) as shown, shown.asking() as ask:
            held = report.embedded(shown, ask)
    with output(arguments.output) as out:
        out.write(report.report(page, held).encode("utf-8"))
    if held.note:
        note(held.note)
    return 0
