"""Options of `docker run` and `docker exec` that can mean nothing here: each is answered in one line."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence

from overlayfs_demo.ui.console import PROGRAM

_NETWORK = "a command in a container has no network here"
_VOLUME = "a container has no volumes here: 'cp' copies files into it, and out of it"
_RIGHTS = "the rights of a command in a container are fixed here"
_LIMITS = "a command in a container has no limits here: see ulimit in sh(1)"
_FOREGROUND = "a command in a container runs in the foreground here: end it with & to go on meanwhile"
_LIFE = "a container has no process that is kept alive here: it is mounted until 'stop'"

_ANSWERS: Mapping[str, Sequence[str]] = {
    _NETWORK: (
        "-p",
        "--publish",
        "-P",
        "--publish-all",
        "--network",
        "--net",
        "--expose",
        "--dns",
        "--link",
        "--add-host",
    ),
    _VOLUME: ("-v", "--volume", "--mount", "--tmpfs", "--volumes-from"),
    _RIGHTS: ("--privileged", "--cap-add", "--cap-drop", "--security-opt", "--device", "--gpus", "--userns"),
    _LIMITS: ("-m", "--memory", "-c", "--cpu-shares", "--cpus", "--pids-limit", "--ulimit", "--shm-size"),
    _FOREGROUND: ("-d", "--detach", "--detach-keys"),
    _LIFE: ("--restart", "--init", "--health-cmd", "--stop-signal", "--stop-timeout"),
}


class _Answer(argparse.Action):
    """Says why an option means nothing here, and ends the program with status 2."""

    def __call__(
        self, parser: argparse.ArgumentParser, _namespace: object, _values: object, option: str | None = None
    ) -> None:
        parser.exit(2, f"{PROGRAM}: {option}: {self.const}\n")


def add_answers(verb: argparse.ArgumentParser) -> None:
    """Let the verb answer the options that it does not have."""
    taken = verb._option_string_actions
    for answer, options in _ANSWERS.items():
        free = [option for option in options if option not in taken]
        verb.add_argument(*free, action=_Answer, nargs="?", const=answer, help=argparse.SUPPRESS, dest="unused")
