"""The answer to a verb that does not exist: the one that was probably meant, or what to use instead."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from overlayfs_demo.cli.families import SUMMARIES
from overlayfs_demo.errors import UsageError, near, printable
from overlayfs_demo.ui.console import PROGRAM

_NOTHING_RUNS = "a container here is a mounted view, in which nothing runs by itself"
_NO_NETWORK = "containers here have no network, and so no ports"
_NO_CLUSTER = "there is only this machine"

# Docker's verbs that we lack: why, and what to use. Words in quotes begin with our verb, or with another program.
INSTEAD: Mapping[str, str] = {
    "search": "no registry is searched here: 'images' lists what is stored",
    "trust": "signatures are not checked here: 'inspect IMAGE' shows the digests",
    "manifest": "manifests stay in their registry: 'inspect IMAGE' shows the digests of an image and its layers",
    "build": "Dockerfiles are for docker: 'create' a container, change it, and 'commit' it; "
    "'build-layers IMAGE.tar DIR' takes an image apart",
    "buildx": "Dockerfiles are for docker: 'load' an image that 'docker save' wrote",
    "builder": "Dockerfiles are for docker: 'load' an image that 'docker save' wrote",
    "logs": f"{_NOTHING_RUNS}: 'watch' shows its changes as they happen",
    "attach": f"{_NOTHING_RUNS}: 'shell C' opens a shell in it",
    "wait": f"{_NOTHING_RUNS}: 'ps' shows whether it is mounted",
    "kill": f"{_NOTHING_RUNS}: 'stop C' unmounts it",
    "pause": f"{_NOTHING_RUNS}: 'stop C' unmounts it, and 'start C' mounts it again",
    "unpause": f"{_NOTHING_RUNS}: 'start C' mounts it",
    "top": f"{_NOTHING_RUNS}: 'ps' shows its daemon",
    "stats": "'ps' shows the memory and processor time of each container's daemon",
    "events": "'watch' shows each change in a view as it happens",
    "checkpoint": f"{_NOTHING_RUNS}: 'commit C' keeps its files as an image",
    "update": f"{_NOTHING_RUNS}, so there are no limits to change: 'create' has its mount options",
    "network": f"{_NO_NETWORK}: 'cp' copies files in and out",
    "port": f"{_NO_NETWORK}: 'cp' copies files in and out",
    "volume": "there are no volumes: 'diff C' lists what a container changed, and 'export C' writes all its files",
    "docker": "leave out that word: 'images' lists the images, and 'ps' the containers",
    "ls": "'images' lists the images, and 'ps' the containers",
    "info": "'df' shows the images and their space, 'ps' the containers, 'version' the version",
    "plugin": "there are no plugins: 'help' lists the commands",
    "context": f"{_NO_CLUSTER}: the option --store and OVERLAYFS_DEMO_STORE choose another store, as 'help load' says",
    "compose": "there are no services: 'create IMAGE --name C' makes one container",
    "swarm": f"{_NO_CLUSTER}: 'create IMAGE --name C' makes a container",
    "service": f"{_NO_CLUSTER}: 'create IMAGE --name C' makes a container",
    "stack": f"{_NO_CLUSTER}: 'create IMAGE --name C' makes a container; 'mount' mounts a stack of layers",
    "node": f"{_NO_CLUSTER}: 'ps' lists its containers",
    "config": f"{_NO_CLUSTER}: 'inspect IMAGE' shows an image's Config",
    "secret": f"{_NO_CLUSTER}: 'ghosts IMAGE' finds secrets that were deleted but still ship",
}
# Docker's other names for verbs of its groups.
_OTHER_NAMES = {"list": "ls", "ps": "ls", "remove": "rm"}


def unknown_verb(word: str, verbs: Iterable[str]) -> UsageError:
    """Return the error for a word that is none of these verbs."""
    if word.startswith("-"):
        return UsageError(
            f"unknown option '{printable(word)}'", f"options follow the command: {PROGRAM} COMMAND [OPTION]..."
        )
    problem = f"unknown command '{printable(word)}'"
    if word in INSTEAD:
        return UsageError(problem, INSTEAD[word])
    meant = near(word, verbs)
    return UsageError(problem, f"did you mean '{meant[0]}'?" if meant else f"'{PROGRAM} help' lists the commands")


def unknown_in_group(group: str, word: str, verbs: Iterable[str]) -> UsageError:
    """Return the error for a word that is none of the verbs of one of docker's groups."""
    problem = f"unknown command '{group} {printable(word)}'"
    meant = _OTHER_NAMES.get(word)
    if meant is None or meant not in verbs:
        if word in INSTEAD:
            return UsageError(problem, INSTEAD[word])
        if word in SUMMARIES:
            return UsageError(problem, f"use '{word}'")
        meant = next(iter(near(word, verbs)), None)
    if meant is None:
        return UsageError(problem, f"'{PROGRAM} {group}' lists the commands")
    return UsageError(problem, f"did you mean '{group} {meant}'?")
