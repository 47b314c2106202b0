"""Options of docker's verbs that can mean nothing here: each is answered in one line."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence

from overlayfs_demo.ui.console import PROGRAM

Answers = Mapping[str, Sequence[str]]

_NO_REGISTRY = "there is no registry here: 'load' brings images in"

# For a command that runs in a container.
OF_COMMANDS: Answers = {
    "a command in a container has no network here": (
        *("-p", "--publish", "-P", "--publish-all", "--network", "--net", "--network-alias", "--expose"),
        *("--dns", "--dns-search", "--link", "--add-host", "--ip", "--mac-address"),
    ),
    "a container has no volumes here: 'cp' copies files into it, and out of it": (
        *("-v", "--volume", "--mount", "--tmpfs", "--volumes-from", "--volume-driver"),
    ),
    "the rights of a command in a container are fixed here": (
        *("--privileged", "--cap-add", "--cap-drop", "--security-opt", "--device", "--gpus", "--userns", "--group-add"),
        *("--sysctl",),
    ),
    "a command in a container always has its own processes and host name here": (
        *("--hostname", "--domainname", "--pid", "--uts", "--ipc", "--cgroupns", "--cgroup-parent", "--isolation"),
    ),
    "a command in a container has no limits here: see ulimit in sh(1)": (
        *("-m", "--memory", "--memory-swap", "-c", "--cpu-shares", "--cpus", "--cpuset-cpus", "--pids-limit"),
        *("--ulimit", "--shm-size", "--blkio-weight", "--storage-opt"),
    ),
    "a command in a container runs in the foreground here: end it with & to go on meanwhile": (
        *("-d", "--detach", "--detach-keys", "-a", "--attach", "--sig-proxy", "--cidfile"),
    ),
    "a container has no process that is kept alive here: it is mounted until 'stop'": (
        *("--restart", "--init", "--health-cmd", "--no-healthcheck", "--stop-signal", "--stop-timeout", "--runtime"),
    ),
    "nothing is logged here: the output of a command goes where yours goes": ("--log-driver", "--log-opt"),
    "a container can always be written to here: 'mount' without upperdir= makes a view that cannot": ("--read-only",),
    "a container has no labels here: 'commit -c' gives them to an image": ("-l", "--label", "--label-file"),
    "give each variable with -e NAME=VALUE": ("--env-file",),
    _NO_REGISTRY: ("--pull", "--platform", "--disable-content-trust"),
}
# For `create`, which runs nothing.
OF_CREATE: Answers = {
    "create runs nothing here: 'run' and 'exec' take this option": (
        *("-i", "--interactive", "-t", "--tty", "-e", "--env", "-w", "--workdir", "-u", "--user", "--entrypoint"),
        *("--rm",),
    ),
    **OF_COMMANDS,
}
# For `start`.
OF_START: Answers = {
    "nothing runs in a container by itself here: 'shell C' opens a shell in it": (
        *("-a", "--attach", "-i", "--interactive", "--detach-keys"),
    )
}
# For the verbs that prune.
OF_PRUNE: Answers = {"prune takes all that is unused here: 'rmi' and 'rm' remove what you name": ("--filter",)}


class _Answer(argparse.Action):
    """Says why an option means nothing here, and ends the program with status 2."""

    def __call__(
        self, parser: argparse.ArgumentParser, _namespace: object, _values: object, option: str | None = None
    ) -> None:
        parser.exit(2, f"{PROGRAM}: {option}: {self.const}\n")


def add_answers(verb: argparse.ArgumentParser, answers: Answers) -> None:
    """Let the verb answer the options that it does not have."""
    taken = verb._option_string_actions
    for answer, options in answers.items():
        free = [option for option in options if option not in taken]
        verb.add_argument(*free, action=_Answer, nargs="?", const=answer, help=argparse.SUPPRESS, dest="unused")
