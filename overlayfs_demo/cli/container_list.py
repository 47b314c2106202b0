"""The verb `ps`, which lists containers."""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass

from overlayfs_demo.cli.command import Verbs
from overlayfs_demo.cli.container_filters import add_filters, chosen
from overlayfs_demo.cli.container_rows import put_containers
from overlayfs_demo.cli.format_option import add_format, form_of
from overlayfs_demo.cli.store_options import add_json, add_verb, store_of
from overlayfs_demo.errors import printable
from overlayfs_demo.mounts.registry import MountRecord
from overlayfs_demo.store.container import Container, all_containers
from overlayfs_demo.store.container_state import records_of, upper_size
from overlayfs_demo.ui import docker_tables
from overlayfs_demo.ui.console import put, put_json
from overlayfs_demo.ui.table import Table
from overlayfs_demo.ui.terminal import put_table
from overlayfs_demo.ui.text import human_size, plural

# For how many seconds the processor time of a daemon is measured.
_SAMPLE = 0.1


def add_verbs(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Add the verb of this module."""
    verb = add_verb(verbs, "ps", "ps --quiet --filter status=exited\nps --format '{{.Names}}: {{.Status}}'", _ps)
    verb.add_argument("--all", "-a", action="store_true", help="accepted as in docker: stopped ones are always listed")
    verb.add_argument("--quiet", "-q", action="store_true", help="print only names")
    verb.add_argument("--no-trunc", action="store_true", help="show the ID of each image in full")
    verb.add_argument("--size", "-s", action="store_true", help="accepted as in docker: UPPER always shows it")
    add_filters(verb)
    add_format(verb)
    add_json(verb)


@dataclass(frozen=True, slots=True)
class _Daemon:
    """The process that serves a mounted container: `memory` in bytes, `cpu` in percent.

    `uptime` says for how many seconds the container is mounted, `restarts` how many such processes died meanwhile.
    """

    pid: int
    memory: int
    cpu: float
    uptime: float
    restarts: int


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
            if daemon.restarts:
                up += f" (restarted {plural(daemon.restarts, 'time')})"
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
            "Restarts": daemon.restarts if daemon else 0,
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
    daemons = _daemons(records_of(containers))
    rows = [_Row(container, daemons.get(container.name), upper_size(container)) for container in containers]
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


def _daemons(records: Mapping[str, MountRecord]) -> Mapping[str, _Daemon]:
    """Return the daemons of mounted containers by the containers' names, all measured for the same `_SAMPLE` seconds.

    One that was killed, and whose mount is not yet removed, is as good as stopped.
    """
    if not records:
        return {}
    import psutil  # Imported late: only a mounted container needs it, and it costs more than the rest of the list.

    found = {}
    processes = {}
    for name, record in records.items():
        with contextlib.suppress(psutil.NoSuchProcess):
            processes[name] = psutil.Process(record.daemon)
            processes[name].cpu_percent()  # It measures from here to the next call.
    time.sleep(_SAMPLE)
    for name, process in processes.items():
        with contextlib.suppress(psutil.NoSuchProcess):
            record = records[name]
            uptime = max(time.time() - psutil.Process(record.pid).create_time(), 0.0)
            memory, cpu = process.memory_info().rss, process.cpu_percent()
            found[name] = _Daemon(process.pid, memory, cpu, uptime, record.restarts)
    return found
