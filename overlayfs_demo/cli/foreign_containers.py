"""Containers of podman and Docker whose view this program serves: where it is, and what made its layers.

The engines themselves are asked, by their own commands. views.md explains how they come to mount with this program.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
from collections.abc import Mapping, Sequence
from enum import Enum

from overlayfs_demo.cli.view_name import view_path
from overlayfs_demo.errors import MountError, printable
from overlayfs_demo.images.model import History
from overlayfs_demo.linux import mountinfo
from overlayfs_demo.mounts import registry
from overlayfs_demo.named_tuple import NamedTuple

# Docker puts a layer of its own between the image and the upper, with files such as /etc/hosts (moby, layer/layer.go).
_INIT = "-init"
_INIT_TITLE = "files that docker adds to a container"
# What Docker 20.10 writes for these instructions makes no layer. WORKDIR does if it makes the directory.
_METADATA = {
    *("ARG", "CMD", "ENTRYPOINT", "ENV", "EXPOSE", "HEALTHCHECK", "LABEL", "MAINTAINER", "ONBUILD", "SHELL"),
    *("STOPSIGNAL", "USER", "VOLUME"),
}
# The storage drivers that mount layers.
_LAYERED = ("overlay", "overlay2", "fuse-overlayfs")

_log = logging.getLogger(__name__)


class Engine(Enum):
    """A program with containers; the value is its command."""

    PODMAN = "podman"
    DOCKER = "docker"

    def __str__(self) -> str:
        return self.value


class NamedView(NamedTuple):
    """A path in a view, and the titles of its layers from the bottom up; () if the daemon's are to be used."""

    path: str
    titles: tuple[str, ...]


def add_engines(verb: argparse.ArgumentParser) -> argparse._MutuallyExclusiveGroup:
    """Give the verb the options --podman and --docker, which set `engine`. Return the group that they exclude."""
    engines = verb.add_mutually_exclusive_group()
    for engine in Engine:
        engines.add_argument(
            f"--{engine}",
            dest="engine",
            action="store_const",
            const=engine,
            help=f"the container C is one of {engine}, which mounts with this program",
        )
    return engines


def view_meant(word: str, arguments: argparse.Namespace) -> NamedView:
    """Return the view that a word means: a container's, with --podman or --docker, or as in `view_name`.

    Raises UsageError, MountError.
    """
    if arguments.engine is None:
        return NamedView(view_path(word, arguments.store), ())
    return view_of(arguments.engine, word)


def view_of(engine: Engine, name: str) -> NamedView:
    """Return the view of a container. Raises MountError, which names engine, container and remedy."""
    who = f"container {printable(name)} of {engine}"
    container = _object(engine, "container", "inspect", name)
    driver = _fields(container.get("GraphDriver"))
    if driver.get("Name") not in _LAYERED:
        problem = f"{who} has no mounted layers, because {engine} stores it as {printable(str(driver.get('Name')))}"
        raise MountError(problem, _how_to_install(engine))
    places = _fields(driver.get("Data"))
    mountpoint = os.path.realpath(str(places.get("MergedDir", os.devnull)))
    found = mountinfo.top(os.fsencode(mountpoint))
    if found is None:
        raise MountError(f"{who} is not mounted", _how_to_mount(engine, name))
    if mountpoint not in registry.mounted():
        raise MountError(f"{who} is mounted as {found.kind}, and not by overlayfs-demo", _how_to_install(engine))
    return NamedView(mountpoint, _titles(engine, container, str(places.get("LowerDir", ""))))


def _how_to_mount(engine: Engine, name: str) -> str:
    quoted = printable(name)
    if engine is Engine.DOCKER:
        return f"'docker start {quoted}' mounts it, and 'docker exec' works in it"
    if os.geteuid() != 0:
        return f"after 'podman start {quoted}', look from podman's namespace: put 'podman unshare' before this command"
    return f"'podman start {quoted}' or 'podman mount {quoted}' mounts it"


def _how_to_install(engine: Engine) -> str:
    if engine is Engine.PODMAN:
        return "let podman mount with it: --storage-opt overlay.mount_program=PATH, or mount_program in storage.conf"
    return "start dockerd with --storage-driver fuse-overlayfs and a PATH whose fuse-overlayfs is a link to it"


# --- what made the layers --------------------------------------------------------------------------


def _titles(engine: Engine, container: Mapping[str, object], lowers: str) -> tuple[str, ...]:
    """Return the titles of a container's layers; none if the image is gone, or its history says too little."""
    image = str(container.get("Image"))
    try:
        described = _object(engine, "image", "inspect", image)
        titles = _titles_by_podman(described) if engine is Engine.PODMAN else _titles_by_docker(described, image)
    except MountError as error:
        _log.warning("what made the layers is unknown: %s", error)
        return ()
    top = lowers.partition(":")[0]
    return (*titles, _INIT_TITLE) if titles and os.path.dirname(top).endswith(_INIT) else titles


def _titles_by_podman(image: Mapping[str, object]) -> tuple[str, ...]:
    rows = (_fields(row) for row in _items(image.get("History")))
    steps = [_instruction(row.get("created_by")) for row in rows if not row.get("empty_layer")]
    return tuple(steps) if len(steps) == _number_of_layers(image) else ()


def _titles_by_docker(image: Mapping[str, object], name: str) -> tuple[str, ...]:
    lines = _ask(Engine.DOCKER, "history", "--no-trunc", "--human=false", "--format", "{{json .}}", name)
    return titles_of_history([_fields(_parsed(line)) for line in lines.splitlines()], _number_of_layers(image))


def _number_of_layers(image: Mapping[str, object]) -> int:
    return len(_items(_fields(image.get("RootFS")).get("Layers")))


def _instruction(created_by: object) -> str:
    return History("", str(created_by or "")).instruction


def titles_of_history(rows: Sequence[Mapping[str, object]], count: int) -> tuple[str, ...]:
    """Return the titles of `count` layers from the rows of `docker history`, whose first is the newest.

    Docker does not say which steps made a layer. A step with a size did, and one that only changes metadata did not.
    The others are taken together: all of them did, or none, whichever accounts for every layer.
    """
    steps = [(_instruction(row.get("CreatedBy")), row.get("Size") != "0") for row in reversed(rows)]
    certain = [step for step, has_size in steps if has_size]
    possible = [step for step, has_size in steps if has_size or step.partition(" ")[0] not in _METADATA]
    return next((tuple(chosen) for chosen in (possible, certain) if len(chosen) == count), ())


# --- asking an engine ------------------------------------------------------------------------------


def _object(engine: Engine, *words: str) -> Mapping[str, object]:
    """Return the one object that `inspect` prints. Raises MountError."""
    return _fields(next(iter(_items(_parsed(_ask(engine, *words)))), None))


def _ask(engine: Engine, *words: str) -> str:
    """Return what an engine's command prints. Raises MountError."""
    *command, name = words
    try:
        done = subprocess.run(
            [engine.value, *command, "--", name], capture_output=True, text=True, errors="replace", check=False
        )
    except OSError as error:
        raise MountError(f"{engine} cannot be run: {error.strerror}", f"install it, or leave out --{engine}") from None
    if done.returncode:
        said = printable(" ".join(done.stderr.split()).removeprefix("Error: "))
        why = said or f"it failed with status {done.returncode}"
        raise MountError(f"{engine}: {printable(name)}: {why}", f"'{engine} ps -a' lists its containers")
    return done.stdout


def _parsed(text: str) -> object:
    """Return the value of a JSON text; None if it is none, as if the engine had said nothing."""
    try:
        return json.loads(text)
    except ValueError:
        return None


def _fields(value: object) -> Mapping[str, object]:
    return value if isinstance(value, dict) else {}


def _items(value: object) -> list[object]:
    return value if isinstance(value, list) else []
