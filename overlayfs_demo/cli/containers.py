"""The verbs for containers: an image's layers with one writable layer on top."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from overlayfs_demo.cli.analysis import diff_images
from overlayfs_demo.cli.command import Verbs
from overlayfs_demo.cli.container_filters import add_filters, chosen
from overlayfs_demo.cli.container_rows import put_containers
from overlayfs_demo.cli.format_option import add_format, form_of
from overlayfs_demo.cli.output import add_output, output
from overlayfs_demo.cli.store_options import add_json, add_verb, store_of
from overlayfs_demo.errors import UsageError, printable
from overlayfs_demo.images.progress import counted
from overlayfs_demo.images.reference import ImageName
from overlayfs_demo.store.container import Container, all_containers
from overlayfs_demo.store.containers import Containers, record_of, upper_size
from overlayfs_demo.ui import docker_tables
from overlayfs_demo.ui.console import put, put_json
from overlayfs_demo.ui.table import Table
from overlayfs_demo.ui.terminal import progress, put_changes, put_table
from overlayfs_demo.ui.text import human_size

# For how many seconds the processor time of a daemon is measured.
_SAMPLE = 0.1


def add_verbs(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Add the verbs of this module."""
    verb = add_verb(verbs, "create", "create app:1.0 --name c1", _create)
    verb.add_argument("image", metavar="IMAGE", help="an image, or 'scratch' for an empty base")
    verb.add_argument("--name", metavar="C", help="container name (default: a random one)")
    verb.add_argument("--at", type=Path, metavar="MOUNTPOINT", help="where to mount it (default: in the store)")
    verb.add_argument(
        "-o",
        dest="options",
        action="append",
        default=[],
        metavar="OPTIONS",
        help="mount(8) options, also used by 'start'. With --at, where other users may enter, nosuid and nodev "
        "apply unless you add suid or dev",
    )
    verb.add_argument("--timemachine", action="store_true", help="add a hidden directory .layers, see 'mount --help'")
    add_json(verb)
    verb = add_verb(verbs, "ps", "ps --quiet --filter status=exited\nps --format '{{.Names}}: {{.Status}}'", _ps)
    verb.add_argument("--all", "-a", action="store_true", help="accepted as in docker: stopped ones are always listed")
    verb.add_argument("--quiet", "-q", action="store_true", help="print only names")
    verb.add_argument("--no-trunc", action="store_true", help="show the ID of each image in full")
    add_filters(verb)
    add_format(verb)
    add_json(verb)
    verb = add_verb(verbs, "diff", "diff c1\ndiff --content app:1.0@3 app:1.0@5", _diff)
    verb.add_argument(
        "first", metavar="C|IMAGE[@N]", help="a container, or an image; @N takes only its N lowest layers"
    )
    verb.add_argument("second", nargs="?", metavar="IMAGE[@N]", help="the image to compare it with")
    verb.add_argument(
        "--content", action="store_true", help="for images: also show the lines that differ in text files"
    )
    add_json(verb)
    verb = add_verb(verbs, "commit", "commit c1 app:1.1\ncommit -c 'CMD [\"sh\"]' -c 'ENV A=1' c1 app:1.2", _commit)
    verb.add_argument("container", metavar="C")
    verb.add_argument("name", nargs="?", metavar="NAME[:TAG]")
    verb.add_argument("--message", "-m", default="", metavar="TEXT", help="the comment in the image's history")
    verb.add_argument("--author", "-a", default="", metavar="WHO", help="the author that inspect shows")
    verb.add_argument(
        "--change",
        "-c",
        dest="changes",
        action="append",
        default=[],
        metavar="INSTRUCTION",
        help="a Dockerfile line for the image's settings, as in 'CMD [\"sh\"]': CMD, ENTRYPOINT, ENV, EXPOSE, "
        "HEALTHCHECK, LABEL, ONBUILD, STOPSIGNAL, USER, VOLUME or WORKDIR",
    )
    verb.add_argument(
        "--pause",
        "-p",
        action="store_true",
        help="accepted as in docker: nothing can be paused, so a file that is being written may be caught halfway",
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
    add_json(verb)
    verb = add_verb(verbs, "start", "start c1", _start)
    verb.add_argument("containers", nargs="+", metavar="C")
    add_json(verb)
    verb = add_verb(verbs, "rename", "rename c1 web", _rename)
    verb.add_argument("container", metavar="C")
    verb.add_argument("name", metavar="NAME")
    verb = add_verb(verbs, "rm", "rm c1", _rm)
    verb.add_argument("containers", nargs="+", metavar="C")
    verb.add_argument("--force", "-f", action="store_true", help="unmount them first")
    add_json(verb)


def _create(arguments: argparse.Namespace) -> int:
    containers = Containers(store_of(arguments))
    container = containers.create(
        containers.base(arguments.image),
        arguments.name,
        arguments.at,
        time_machine=arguments.timemachine,
        options=",".join(arguments.options),
    )
    if arguments.json:
        put_json(
            [
                {
                    "Name": container.name,
                    "Image": container.image_name,
                    "ImageID": str(container.image),
                    "Mountpoint": str(container.mountpoint),
                }
            ]
        )
    else:
        put(f"{container.name} {printable(str(container.mountpoint))}\n")
    return 0


@dataclass(frozen=True, slots=True)
class _Daemon:
    """The process that serves a mounted container: `memory` in bytes, `cpu` in percent, `uptime` in seconds."""

    pid: int
    memory: int
    cpu: float
    uptime: float


@dataclass(frozen=True, slots=True)
class _Row:
    """A container in the list; `daemon` is None if it is not mounted, `upper_size` if the upper cannot be read."""

    container: Container
    daemon: _Daemon | None
    upper_size: int | None

    def cells(self, *, full: bool) -> tuple[str, ...]:
        """Return the row of the table; `full`: with the image's whole ID."""
        container, daemon = self.container, self.daemon
        process = ("Stopped", "-", "-", "-")
        if daemon is not None:
            up = f"Up {docker_tables.human_duration(daemon.uptime)}"
            process = (up, str(daemon.pid), human_size(daemon.memory), f"{daemon.cpu}%")
        upper = "?" if self.upper_size is None else human_size(self.upper_size)
        image = str(container.image) if full else container.image_name
        return container.name, image, *process, upper, printable(str(container.mountpoint))

    def json(self) -> dict[str, object]:
        """Return the object for machines."""
        container, daemon = self.container, self.daemon
        return {
            "Name": container.name,
            "Image": container.image_name,
            "ImageID": str(container.image),
            "Created": container.created,
            "PID": daemon.pid if daemon else None,
            "Memory": daemon.memory if daemon else 0,
            "CPU": daemon.cpu if daemon else 0.0,
            "Uptime": daemon.uptime if daemon else 0.0,
            "Upper": self.upper_size,
            "Mountpoint": str(container.mountpoint),
        }


def _ps(arguments: argparse.Namespace) -> int:
    store = store_of(arguments)
    containers = chosen(store, all_containers(store), arguments)
    if form := form_of(arguments):
        put_containers(store, containers, form, trunc=not arguments.no_trunc, quiet=arguments.quiet)
        return 0
    if arguments.quiet:
        put("".join(f"{container.name}\n" for container in containers))
        return 0
    rows = [_Row(container, _daemon_of(container), upper_size(container)) for container in containers]
    if arguments.json:
        put_json([row.json() for row in rows])
        return 0
    header = ("NAME", "IMAGE", "STATUS", "PID", "MEMORY", "CPU", "UPPER", "MOUNTPOINT")
    put_table(
        Table(
            header, [row.cells(full=arguments.no_trunc) for row in rows], {"STATUS": "green"}, whole=arguments.no_trunc
        )
    )
    return 0


def _daemon_of(container: Container) -> _Daemon | None:
    """Return the daemon of a container, measured for `_SAMPLE` seconds; None if the container is not mounted."""
    record = record_of(container)
    if record is None:
        return None
    try:
        process = psutil.Process(record.pid)
        memory, cpu = process.memory_info().rss, process.cpu_percent(_SAMPLE)
        return _Daemon(record.pid, memory, cpu, max(time.time() - process.create_time(), 0.0))
    except psutil.NoSuchProcess:
        return None  # It was killed, and its mount is not yet removed: as good as stopped.


def _diff(arguments: argparse.Namespace) -> int:
    """Show what a container changed, as `docker diff` does, or how two images differ. Both print A, C and D."""
    store = store_of(arguments)
    if arguments.second is not None:
        return diff_images(store, arguments.first, arguments.second, content=arguments.content, as_json=arguments.json)
    if arguments.content:
        raise UsageError("--content compares two images", "name both: diff --content IMAGE@3 IMAGE@5")
    containers = Containers(store)
    found = containers.diff(containers.find(arguments.first))
    if arguments.json:
        put_json([{"Kind": change.kind.value, "Path": os.fsdecode(change.path)} for change in found])
        return 0
    put_changes([(change.kind.value, printable(change.path)) for change in found])
    return 0


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
    for name in arguments.containers:
        act(containers, containers.find(name))
        if arguments.json:
            put_json([{"Name": name}])
        else:
            put(f"{name}\n")
    return 0


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
