"""What is happening in a view right now?"""

from __future__ import annotations

import argparse
import fnmatch
import os
import time
from typing import Any

from overlayfs_demo import records, render
from overlayfs_demo.commands import PROGRAM, Verbs, note, put, put_json
from overlayfs_demo.control import Connection, event_of
from overlayfs_demo.events import Action

# For how long writes of one process to one file are told in one sentence, in seconds.
_FOLD = 0.5


def add_watch_verb(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """The verb of this module."""
    verb = verbs.add_parser(
        "watch", help="tell of each change in a view, as it happens",
        description="Tell of each change in a view, as it happens, until it is unmounted.",
        epilog=f"example:\n  {PROGRAM} watch view --only copy-up,whiteout --path '/etc/*'",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verb.add_argument("mountpoint", metavar="MOUNTPOINT", help="or any path in it")
    verb.add_argument("--json", action="store_true", help="an object a line, and none for several writes")
    actions = ", ".join(one.value for one in Action)
    verb.add_argument("--only", type=_actions, metavar="ACTION[,ACTION...]", help=f"of these: {actions}")
    verb.add_argument("--path", metavar="GLOB", help="only where the path in the view is like that; * takes in /")
    verb.set_defaults(run=_watch)


def _actions(words: str) -> frozenset[str]:
    known = {one.value for one in Action}
    actions = frozenset(words.split(","))
    if unknown := sorted(actions - known):
        raise argparse.ArgumentTypeError(f"'{unknown[0]}' is no action: there are {', '.join(sorted(known))}")
    return actions


def _watch(arguments: argparse.Namespace) -> int:
    mountpoint, _, path = records.place_in_view(os.fsencode(arguments.mountpoint), follow=True)
    teller = _Teller(as_json=arguments.json)
    with Connection(path, mountpoint) as connection:
        try:
            connection.attach()
            note(f"watching {render.printable(os.fsencode(mountpoint))} until it is unmounted")
            while True:
                answer = connection.event(teller.patience())
                if answer is None:
                    teller.finish()
                elif _is_wanted(answer, arguments.only, arguments.path):
                    teller.tell(answer)
        except EOFError:
            return 0
        finally:
            teller.finish()


def _is_wanted(answer: dict[str, Any], only: frozenset[str] | None, glob: str | None) -> bool:
    if "dropped" in answer:
        return True
    if only is not None and answer["action"] not in only:
        return False
    paths = [answer["path"]]
    if answer["action"] in (Action.RENAME.value, Action.EXCHANGE.value):
        paths.append(answer["detail"])
    return glob is None or any(fnmatch.fnmatchcase(path, glob) for path in paths)


class _Teller:
    """Prints what happened, as objects or as sentences; in sentences, writes that follow each other are one."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._write: dict[str, Any] | None = None
        self._until = 0.0

    def patience(self) -> float | None:
        """For how many seconds the next event may be waited for; None: for ever."""
        return None if self._write is None else max(self._until - time.monotonic(), 0.001)

    def tell(self, answer: dict[str, Any]) -> None:
        """Print an event, or note it if it is a write."""
        if self._as_json:
            put_json([answer])
            return
        if self._write is not None:
            same = all(answer.get(key) == self._write[key] for key in ("action", "path", "pid"))
            if same and time.monotonic() < self._until:
                self._write["size"] += answer["size"]
                return
            self.finish()
        if answer.get("action") == Action.WRITE.value:
            self._write, self._until = answer, time.monotonic() + _FOLD
        else:
            _print(answer)

    def finish(self) -> None:
        """Print what was noted."""
        write, self._write = self._write, None
        if write is not None:
            _print(write)


def _print(answer: dict[str, Any]) -> None:
    if "dropped" in answer:
        put(f"{answer['dropped']} more events came faster than they could be told\n")
    else:
        put(render.sentence(event_of(answer), answer["who"]) + "\n")
