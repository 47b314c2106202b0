"""What is happening in a view right now?"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from overlayfs_demo.cli.command import Verbs, new_verb
from overlayfs_demo.errors import MountError, printable
from overlayfs_demo.events import Action
from overlayfs_demo.mounts import registry
from overlayfs_demo.mounts.control.client import Connection, event_of
from overlayfs_demo.mounts.layer_facts import LayerFacts, told, unwalked
from overlayfs_demo.ui.console import PROGRAM, note, put, put_json
from overlayfs_demo.watch.state import Line, counted

# For how long writes of one process to one file are told in one sentence, in seconds.
_FOLD = 0.5


def add_watch_verb(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """The verb of this module."""
    verb = new_verb(
        verbs,
        "watch",
        "tell of each change in a view, as it happens",
        f"{PROGRAM} watch view --only copy-up,whiteout --path '/etc/*'",
        _watch,
        "Tell of each change in a view, as it happens, until it is unmounted. A terminal shows the stack"
        " of layers, too; a pipe gets a sentence a line.",
    )
    verb.add_argument("mountpoint", metavar="MOUNTPOINT", help="or any path in it")
    verb.add_argument("--json", action="store_true", help="an object a line, and none for several writes")
    verb.add_argument("--plain", action="store_true", help="a sentence a line on a terminal, too")
    actions = ", ".join(one.value for one in Action)
    verb.add_argument("--only", type=_actions, metavar="ACTION[,ACTION...]", help=f"of these: {actions}")
    verb.add_argument("--path", metavar="GLOB", help="only where the path in the view is like that; * takes in /")


def _actions(words: str) -> frozenset[str]:
    known = {one.value for one in Action}
    actions = frozenset(words.split(","))
    if unknown := sorted(actions - known):
        raise argparse.ArgumentTypeError(f"'{unknown[0]}' is not an action: choose from {', '.join(sorted(known))}")
    return actions


def _watch(arguments: argparse.Namespace) -> int:
    place = registry.place_in_view(os.fsencode(arguments.mountpoint), follow=True)
    on_screen = not arguments.json and not arguments.plain and _is_screen()
    with Connection(place.socket, place.mountpoint, place.owner) as connection:
        layers = _layers(connection, place) if on_screen else []
        try:
            connection.attach(counters=not arguments.json)
        except EOFError:
            return 0
        if on_screen:
            return _show(connection, place, layers, arguments)
        return _tell(connection, place.mountpoint, arguments)


def _is_screen() -> bool:
    """Whether stdout can show a picture that changes."""
    return sys.stdout.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")


def _layers(connection: Connection, place: registry.Place) -> list[LayerFacts]:
    """The layers of a view from the top down. Raises MountError.

    Of another user's view only what their daemon says is shown: root could be led anywhere by the paths in a record.
    """
    if place.owner != os.geteuid():
        return told(one.layer for one in connection.explain(b"/").statements)
    record = registry.find_record(place.mountpoint)
    if record is None:
        raise MountError(f"{place.mountpoint} was unmounted meanwhile", "mount it again")
    if not record.labels:
        raise MountError(f"{record.mountpoint}: its daemon is of an older version", "use --plain, or mount it again")
    return unwalked(record)


def _show(
    connection: Connection, place: registry.Place, layers: Sequence[LayerFacts], arguments: argparse.Namespace
) -> int:
    # rich is imported for a terminal only.
    from overlayfs_demo.watch.loop import show

    asked, ended = show(
        connection,
        place.mountpoint,
        layers,
        lambda answer: _is_wanted(answer, arguments.only, arguments.path),
        walk=place.owner == os.geteuid(),
    )
    if ended:
        note(f"{printable(place.mountpoint)} was unmounted")
    _note_counters(asked)
    return 0


def _tell(connection: Connection, mountpoint: str, arguments: argparse.Namespace) -> int:
    teller = _Teller(as_json=arguments.json)
    asked: Mapping[str, int] = {}
    note(f"watching {printable(mountpoint)} until it is unmounted")
    try:
        while True:
            answer = connection.event(teller.patience())
            if answer is None:
                teller.finish()
            elif "counters" in answer:
                asked = answer["counters"]
            elif _is_wanted(answer, arguments.only, arguments.path):
                teller.tell(answer)
    except EOFError:
        return 0
    except KeyboardInterrupt:
        asked = _last_counters(connection) or asked
        raise
    finally:
        teller.finish()
        _note_counters(asked)


def _last_counters(connection: Connection) -> Mapping[str, int]:
    """What was asked until now, for the last counters that were told may be a second old."""
    asked: Mapping[str, int] = {}
    connection.detach()
    with contextlib.suppress(EOFError):
        while (answer := connection.event(1.0)) is not None:
            asked = answer.get("counters", asked)
    return asked


def _note_counters(asked: Mapping[str, int]) -> None:
    """Once and in the end, and not on stdout: there a pipe gets a line for each change and nothing else, so that
    `| wc -l` counts them; and a line every so often would tell of a daemon that was only looked at."""
    if words := counted(asked):
        note(f"meanwhile the mount answered {words}")


def _is_wanted(answer: Mapping[str, Any], only: frozenset[str] | None, glob: str | None) -> bool:
    if "action" not in answer:
        return True
    if only is not None and answer["action"] not in only:
        return False
    return glob is None or any(fnmatch.fnmatchcase(os.fsdecode(path), glob) for path in event_of(answer).paths)


class _Teller:
    """Prints what happened, as objects or as sentences; in sentences, writes that follow each other are one."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._write: Line | None = None
        self._until = 0.0

    def patience(self) -> float | None:
        """For how many seconds the next event may be waited for; None: for ever."""
        return None if self._write is None else max(self._until - time.monotonic(), 0.001)

    def tell(self, answer: Mapping[str, Any]) -> None:
        """Print an event, or note it if it is a write."""
        if self._as_json:
            put_json([answer])
            return
        line = Line.of(answer)
        if self._write is not None and time.monotonic() < self._until and (joined := self._write.joined(line)):
            self._write = joined
            return
        self.finish()
        if line.is_write:
            self._write, self._until = line, time.monotonic() + _FOLD
        else:
            put(line.words() + "\n")

    def finish(self) -> None:
        """Print what was noted."""
        write, self._write = self._write, None
        if write is not None:
            put(write.words() + "\n")
