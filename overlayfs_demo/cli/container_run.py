"""The verbs `run`, `exec` and `shell`, which run a command with a container as its root."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from overlayfs_demo.cli.command import Verbs
from overlayfs_demo.cli.docker_flags import OF_COMMANDS, add_answers
from overlayfs_demo.cli.store_options import add_verb, store_of
from overlayfs_demo.errors import MountError, UsageError
from overlayfs_demo.linux import mounting
from overlayfs_demo.linux.mount_flags import changed
from overlayfs_demo.run.process import Process
from overlayfs_demo.run.settings import Defaults, Wanted, command_of, directory_of, environment_of
from overlayfs_demo.run.start import run
from overlayfs_demo.store.container import Container
from overlayfs_demo.store.container_state import record_of, root_of
from overlayfs_demo.store.containers import Containers
from overlayfs_demo.store.store import Store
from overlayfs_demo.ui.console import note

_LONGEST_HOST_NAME = 63

_CONFINED = """
It is confined as in docker: it has its own root, processes, network (an empty one) and /dev, and no devices of the
image unless the container was made with '-o dev'. But it shares the kernel with this machine, and what it uses of the
memory and the disk is not limited: see 'overlayfs-demo manual security'. The exit status is the command's; or 125 if it
was not run, 126 if it cannot be executed, 127 if there is no such program.
"""


def add_verbs(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Add the verbs of this module."""
    verb = add_verb(verbs, "run", "run --rm app:1.0 ls /\nrun -i -t --name c1 app:1.0 sh", _run)
    verb.description = "Create a container, run a command in it, and stop it. Without a command, run the image's."
    verb.description += _CONFINED
    _add_options(verb)
    verb.add_argument("--name", metavar="C", help="container name (default: a random one)")
    verb.add_argument("--rm", action="store_true", help="remove the container afterwards")
    verb.add_argument("--entrypoint", metavar="PROGRAM", help="instead of the image's; '' means none")
    add_answers(verb, OF_COMMANDS)
    verb.add_argument("image", metavar="IMAGE")
    verb.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND")
    verb = add_verb(verbs, "exec", "exec c1 cat /etc/motd\nexec -i -t c1 sh", _exec)
    verb.description = "Run a command in a mounted container." + _CONFINED
    _add_options(verb)
    add_answers(verb, OF_COMMANDS)
    verb.add_argument("container", metavar="C")
    verb.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND")
    verb = add_verb(verbs, "shell", "shell c1 ls -l /", _shell)
    verb.description = "Run a command, by default /bin/sh, in a mounted container, as 'exec -i' does." + _CONFINED
    verb.add_argument("container", metavar="C")
    verb.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND")


def _add_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--interactive", "-i", action="store_true", help="let the command read standard input")
    verb.add_argument("--tty", "-t", action="store_true", help="give the command a terminal")
    verb.add_argument("--workdir", "-w", metavar="PATH", help="working directory (default: the image's, or /)")
    verb.add_argument(
        "--env", "-e", action="append", default=[], metavar="NAME[=VALUE]", help="set a variable; NAME passes yours on"
    )
    verb.add_argument("--user", "-u", metavar="USER[:GROUP]", help="names or numbers (default: the image's, or root)")


def _run(arguments: argparse.Namespace) -> int:
    store = store_of(arguments)
    containers = Containers(store)
    terminal = _terminal(arguments)
    wanted = _wanted(arguments, arguments.entrypoint)
    image = containers.base(arguments.image)
    command_of(wanted, Defaults.of(image.config, image.title))  # Before the container is made.
    container = containers.create(image, arguments.name)
    try:
        return _in_container(store, container, wanted, arguments, terminal=terminal, is_new=True)
    finally:
        _end(containers, container, remove=arguments.rm)


def _end(containers: Containers, container: Container, *, remove: bool) -> None:
    if remove:
        containers.remove(container, force=True)
        return
    try:
        containers.stop(container)
    except MountError as error:  # It does not change how the command ended.
        note(f"note: {error}")


def _exec(arguments: argparse.Namespace) -> int:
    store = store_of(arguments)
    container = _mounted(Containers(store), arguments.container)
    if not arguments.command:
        raise UsageError("no command was given", f"name one: exec {container.name} COMMAND")
    terminal = _terminal(arguments)
    return _in_container(store, container, _wanted(arguments, ""), arguments, terminal=terminal, is_new=False)


def _shell(arguments: argparse.Namespace) -> int:
    store = store_of(arguments)
    container = _mounted(Containers(store), arguments.container)
    arguments.interactive = True
    wanted = Wanted(tuple(arguments.command or ["/bin/sh"]), directory="/", user="", entrypoint="")
    terminal = os.isatty(0) and os.isatty(1)
    return _in_container(store, container, wanted, arguments, terminal=terminal, is_new=False)


def _mounted(containers: Containers, name: str) -> Container:
    container = containers.find(name)
    if record_of(container) is None:
        raise MountError(f"container '{container.name}' is not mounted", f"'start {container.name}' mounts it")
    return container


def _terminal(arguments: argparse.Namespace) -> bool:
    """Return whether the command gets a terminal. Raises UsageError if we have none to show it on."""
    if arguments.tty and arguments.interactive and not os.isatty(0):
        raise UsageError("-t needs a terminal, and standard input is none", "leave out -t")
    return bool(arguments.tty)


def _wanted(arguments: argparse.Namespace, entrypoint: str | None) -> Wanted:
    return Wanted(tuple(arguments.command), tuple(arguments.env), arguments.workdir, arguments.user, entrypoint)


def _in_container(
    store: Store, container: Container, wanted: Wanted, arguments: argparse.Namespace, *, terminal: bool, is_new: bool
) -> int:
    """Run a command in a mounted container, and return its exit status; a new one gets its working directory made."""
    defaults = Defaults.of(store.image(container.image).config, container.image_name)
    hostname = container.name[:_LONGEST_HOST_NAME]
    with root_of(container.mountpoint) as root:
        filesystem = os.fstat(root).st_dev
    process = Process(
        str(container.mountpoint),
        filesystem,
        command_of(wanted, defaults),
        environment_of(wanted, defaults, hostname, terminal=terminal),
        directory_of(wanted, defaults),
        wanted.user if wanted.user is not None else defaults.user,
        hostname,
        makes_directory=is_new,
        devices=_allows_devices(container.options.split(",")),
        terminal=terminal,
    )
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    return run(process, interactive=arguments.interactive)


def _allows_devices(words: Sequence[str]) -> bool:
    return not changed(mounting.MS_NODEV, words) & mounting.MS_NODEV
