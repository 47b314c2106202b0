"""The verbs that work on a container: an image's layers with one writable layer on top."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from overlayfs_demo.cli.change_option import add_changes
from overlayfs_demo.cli.command import Verbs, for_each
from overlayfs_demo.cli.docker_flags import OF_START, add_answers
from overlayfs_demo.cli.output import add_output, output
from overlayfs_demo.cli.store_options import add_json, add_verb, store_of
from overlayfs_demo.images.progress import counted
from overlayfs_demo.images.reference import ImageName
from overlayfs_demo.store.container import Container
from overlayfs_demo.store.containers import Containers
from overlayfs_demo.ui.console import put, put_json
from overlayfs_demo.ui.terminal import progress


def add_verbs(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Add the verbs of this module."""
    verb = add_verb(verbs, "commit", "commit c1 app:1.1\ncommit -c 'CMD [\"sh\"]' -c 'ENV A=1' c1 app:1.2", _commit)
    verb.add_argument("container", metavar="C")
    verb.add_argument("name", nargs="?", metavar="NAME[:TAG]")
    verb.add_argument("--author", "-a", default="", metavar="WHO", help="the author that inspect shows")
    add_changes(
        verb,
        "a Dockerfile line for the image's settings, as in 'CMD [\"sh\"]': CMD, ENTRYPOINT, ENV, EXPOSE, "
        "HEALTHCHECK, LABEL, ONBUILD, STOPSIGNAL, USER, VOLUME or WORKDIR",
    )
    verb.add_argument(
        "--pause",
        "-p",
        action="store_true",
        help="accepted as in docker, but nothing is paused: what is written meanwhile may be caught halfway, or make "
        "the commit fail. Docker pauses by default; here, 'stop C' first makes sure",
    )
    add_json(verb)
    verb = add_verb(verbs, "export", "export c1 -o rootfs.tar", _export)
    verb.add_argument("container", metavar="C")
    add_output(verb)
    _add_running_verbs(verbs)


def _add_running_verbs(verbs: Verbs[argparse.ArgumentParser]) -> None:
    verb = add_verb(verbs, "stop", "stop c1", _stop)
    verb.add_argument("containers", nargs="+", metavar="C")
    verb.add_argument("--lazy", "-l", action="store_true", help="detach now, clean up when no longer busy")
    verb.add_argument("--time", "-t", metavar="SECONDS", help="accepted as in docker: there is nothing to wait for")
    add_json(verb)
    verb = add_verb(verbs, "start", "start c1", _start)
    verb.add_argument("containers", nargs="+", metavar="C")
    add_json(verb)
    add_answers(verb, OF_START)
    verb = add_verb(verbs, "rename", "rename c1 web", _rename)
    verb.add_argument("container", metavar="C")
    verb.add_argument("name", metavar="NAME")
    verb = add_verb(verbs, "rm", "rm c1", _rm)
    verb.add_argument("containers", nargs="+", metavar="C")
    verb.add_argument("--force", "-f", action="store_true", help="unmount them first")
    verb.add_argument("--volumes", "-v", action="store_true", help="accepted as in docker: there are no volumes here")
    add_json(verb)


def _commit(arguments: argparse.Namespace) -> int:
    name = ImageName.parse(arguments.name) if arguments.name is not None else None
    containers = Containers(store_of(arguments))
    container = containers.find(arguments.container)
    with progress() as told:
        made = containers.commit(container, name, arguments.message, arguments.author, told, changes=arguments.changes)
    if arguments.json:
        put_json([{"ID": str(made.image.id), "Names": list(map(str, made.names))}])
    else:
        put(f"{made.image.id}\n")
    return 0


def _export(arguments: argparse.Namespace) -> int:
    containers = Containers(store_of(arguments))
    container = containers.find(arguments.container)
    with output(arguments.output) as out, progress() as told:
        told.step(f"writing the tree of {container.name}")
        containers.export(container, counted(out, told))
    return 0


def _each(arguments: argparse.Namespace, act: Callable[[Containers, Container], None]) -> int:
    """Act on every container that is named, and print its name when that is done."""
    containers = Containers(store_of(arguments))

    def act_on(name: str) -> None:
        act(containers, containers.find(name))
        if arguments.json:
            put_json([{"Name": name}])
        else:
            put(f"{name}\n")

    return for_each(arguments.containers, act_on)


def _stop(arguments: argparse.Namespace) -> int:
    return _each(arguments, lambda containers, container: containers.stop(container, lazy=arguments.lazy))


def _start(arguments: argparse.Namespace) -> int:
    return _each(arguments, lambda containers, container: containers.start(container))


def _rename(arguments: argparse.Namespace) -> int:
    containers = Containers(store_of(arguments))
    containers.rename(containers.find(arguments.container), arguments.name)
    return 0


def _rm(arguments: argparse.Namespace) -> int:
    return _each(arguments, lambda containers, container: containers.remove(container, force=arguments.force))
