"""The verb `watch`, which reports every change in a view as it happens."""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import os
import sys
import time
from collections.abc import Mapping, Sequence

from overlayfs_demo.cli.command import Verbs, new_verb
from overlayfs_demo.cli.foreign_containers import add_engines, view_meant
from overlayfs_demo.cli.store_options import add_store
from overlayfs_demo.cli.view_end import tell_end
from overlayfs_demo.errors import MountError, printable
from overlayfs_demo.events import Action
from overlayfs_demo.mounts import registry
from overlayfs_demo.mounts.control import protocol
from overlayfs_demo.mounts.control.client import Connection
from overlayfs_demo.mounts.control.protocol import Counters, Dropped, Happened, Restarted, Seen
from overlayfs_demo.mounts.control.titles import titled_record
from overlayfs_demo.mounts.layer_facts import LayerFacts, told, unwalked
from overlayfs_demo.ui.console import PROGRAM, can_place_cursor, note, put, put_json
from overlayfs_demo.watch.state import Line, counted

# For how many seconds the writes of one process to one file become one sentence.
_FOLD = 0.5


def add_verbs(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Add the verbs of this module."""
    verb = new_verb(
        verbs,
        "watch",
        f"{PROGRAM} watch view --only copy-up,whiteout --path '/etc/*'\n{PROGRAM} watch --podman c1",
        _watch,
        "Report every change in a view as it happens, until it is unmounted. A terminal also shows the stack of "
        "layers; a pipe gets one sentence per line.",
    )
    verb.add_argument("mountpoint", metavar="MOUNTPOINT|C", help="the view, any path in it, or a container")
    add_store(verb)
    add_engines(verb)
    verb.add_argument("--json", action="store_true", help="one JSON object per line; repeated writes are not joined")
    verb.add_argument("--plain", action="store_true", help="print plain sentences on a terminal too")
    actions = ", ".join(action.value for action in Action)
    verb.add_argument(
        "--only", type=_actions, metavar="ACTION[,ACTION...]", help=f"report only these actions: {actions}"
    )
    verb.add_argument("--path", metavar="GLOB", help="report only matching paths in the view; * also matches /")


def _actions(words: str) -> frozenset[str]:
    known = {action.value for action in Action}
    actions = frozenset(words.split(","))
    if unknown := sorted(actions - known):
        raise argparse.ArgumentTypeError(f"'{unknown[0]}' is not an action: choose from {', '.join(sorted(known))}")
    return actions


def _watch(arguments: argparse.Namespace) -> int:
    path, titles = view_meant(arguments.mountpoint, arguments)
    place = registry.place_in_view(os.fsencode(path), follow=True)
    on_screen = not arguments.json and not arguments.plain and _is_screen()
    with Connection(place.socket, place.mountpoint, place.owner, titles) as connection:
        layers = _layers(connection, place, titles) if on_screen else []
        try:
            connection.attach(counters=not arguments.json)
        except EOFError:
            return tell_end(place.mountpoint, place.owner)
        if on_screen:
            return _show(connection, place, layers, arguments)
        return _tell(connection, place, arguments)


def _is_screen() -> bool:
    """Return whether stdout can show a picture that changes."""
    return sys.stdout.isatty() and can_place_cursor()


def _layers(connection: Connection, place: registry.Place, titles: Sequence[str]) -> list[LayerFacts]:
    """Return the layers of a view from the top down. Raises MountError.

    For another user's view, only what the daemon says is shown, because the paths in a record could lead root anywhere.
    """
    if place.owner != os.geteuid():
        return told(statement.layer for statement in connection.which(b"/").statements)
    record = registry.find_record(place.mountpoint)
    if record is None:
        raise MountError(f"{place.mountpoint} was unmounted in the meantime", "mount it again")
    return unwalked(titled_record(record, titles))


def _show(
    connection: Connection, place: registry.Place, layers: Sequence[LayerFacts], arguments: argparse.Namespace
) -> int:
    # rich is imported for a terminal only.
    from overlayfs_demo.watch.loop import show

    asked, ended = show(
        connection,
        place.mountpoint,
        layers,
        lambda update: _is_wanted(update, arguments.only, arguments.path),
        walk=place.owner == os.geteuid(),
    )
    _note_counters(asked)
    return tell_end(place.mountpoint, place.owner) if ended else 0


def _tell(connection: Connection, place: registry.Place, arguments: argparse.Namespace) -> int:
    teller = _Teller(as_json=arguments.json)
    asked: Mapping[str, int] = {}
    note(f"watching {printable(place.mountpoint)} until it is unmounted")
    try:
        while True:
            update = connection.receive(teller.timeout())
            if update is None:
                teller.finish()
            elif isinstance(update, Counters):
                asked = update.counts
            elif _is_wanted(update, arguments.only, arguments.path):
                teller.tell(update)
    except EOFError:
        teller.finish()
        return tell_end(place.mountpoint, place.owner)
    except KeyboardInterrupt:
        asked = _last_counters(connection) or asked
        raise
    finally:
        teller.finish()
        _note_counters(asked)


def _last_counters(connection: Connection) -> Mapping[str, int]:
    """Return the counters as they are now, because the last ones that came may be a second old."""
    asked: Mapping[str, int] = {}
    connection.detach()
    with contextlib.suppress(EOFError):
        while (update := connection.receive(1.0)) is not None:
            asked = update.counts if isinstance(update, Counters) else asked
    return asked


def _note_counters(asked: Mapping[str, int]) -> None:
    """Print the counters once, at the end, on stderr.

    On stdout a pipe gets one line for each change and nothing else, so that `| wc -l` counts them.
    """
    if words := counted(asked):
        note(f"requests answered: {words}")


def _is_wanted(update: Seen, only: frozenset[str] | None, glob: str | None) -> bool:
    if not isinstance(update, Happened):
        return True
    event = update.event
    if only is not None and event.action.value not in only:
        return False
    return glob is None or any(fnmatch.fnmatchcase(os.fsdecode(path), glob) for path in event.paths)


class _Teller:
    """Printer of what happens, as JSON or as sentences. Successive writes become one sentence."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._write: Line | None = None
        self._until = 0.0

    def timeout(self) -> float | None:
        """Return how many seconds to wait for the next update; None means for ever."""
        return None if self._write is None else max(self._until - time.monotonic(), 0.001)

    def tell(self, update: Happened | Dropped | Restarted) -> None:
        """Print an update, or keep it if it is a write."""
        if self._as_json:
            put_json([protocol.to_json(update)])
            return
        line = Line.of(update)
        if self._write is not None and time.monotonic() < self._until and (joined := self._write.joined(line)):
            self._write = joined
            return
        self.finish()
        if line.is_write:
            self._write, self._until = line, time.monotonic() + _FOLD
        else:
            put(line.words() + "\n")

    def finish(self) -> None:
        """Print what was kept."""
        write, self._write = self._write, None
        if write is not None:
            put(write.words() + "\n")
