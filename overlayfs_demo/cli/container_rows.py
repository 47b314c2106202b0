"""Containers as rows of `docker ps`, under the names that `--format` has."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from overlayfs_demo.cli.image_settings import command_words, labels_of
from overlayfs_demo.images.config import read_time
from overlayfs_demo.mounts.registry import MountRecord
from overlayfs_demo.store.container import Container
from overlayfs_demo.store.container_state import records_of, state_of, upper_size
from overlayfs_demo.store.store import Store
from overlayfs_demo.store.stored import StoredImage
from overlayfs_demo.ui import docker_tables
from overlayfs_demo.ui.docker_format import Form
from overlayfs_demo.ui.docker_listings import CONTAINERS
from overlayfs_demo.ui.go_printf import sprintf
from overlayfs_demo.ui.go_values import Row
from overlayfs_demo.ui.text import cut_end, human_size

_COMMAND_WIDTH = 20


@dataclass(frozen=True, slots=True)
class ContainerUsage:
    """A container with its image; `record` is None if it is not mounted, `size` the bytes of the files in its upper."""

    container: Container
    image: StoredImage
    record: MountRecord | None
    size: int


def usages_of(store: Store, containers: Sequence[Container], *, sizes: bool = True) -> list[ContainerUsage]:
    """Look at the containers, and count their uppers if `sizes`. Raises ImageError if an image is damaged."""
    records = records_of(containers)
    return [
        ContainerUsage(
            container,
            store.image(container.image),
            records.get(container.name),
            (upper_size(container) or 0) if sizes else 0,
        )
        for container in containers
    ]


def put_containers(
    store: Store, containers: Sequence[Container], form: str, *, trunc: bool = True, quiet: bool = False
) -> None:
    """Print the containers in the form that `ps --format` gives. Raises TemplateError, ImageError."""
    now = time.time()
    parsed = Form.parse(CONTAINERS, form, quiet=quiet)
    # As in docker, the uppers are only walked if their sizes are asked for.
    found = usages_of(store, containers, sizes=parsed.template.asks_for("Size"))
    parsed.put([container_fields(usage, now, trunc=trunc) for usage in found])


def container_fields(usage: ContainerUsage, now: float, *, trunc: bool = True) -> Row:
    """Return the row; every value is a string, and `.Label "KEY"` gives the value of one label.

    There are no ports, networks and volumes here, so those are empty. The ID of a container is its name.
    """
    container, labels = usage.container, labels_of(usage.image)
    created, _ = read_time(container.created, container.name)
    age = docker_tables.ago(created, now)
    command = _command(command_words(usage.image))
    # Docker counts the size that is written, and in brackets that of the whole tree.
    size = f"{human_size(usage.size)} (virtual {human_size(usage.size + usage.image.size)})"
    return Row(
        Command=sprintf("%q", [cut_end(command, _COMMAND_WIDTH) if trunc else command]),
        CreatedAt=docker_tables.go_time(created),
        ID=container.name,
        Image=container.image_name,
        Label=lambda key: labels.get(key, ""),
        Labels=",".join(f"{key}={value}" for key, value in labels.items()),
        LocalVolumes="0",
        Mounts="",
        Names=container.name,
        Networks="",
        Platform=str(usage.image.parsed.platform),
        Ports="",
        RunningFor=age,
        Size=size,
        State=state_of(usage.record),
        Status=_status(usage.record, now),
    )


def _command(words: Sequence[str]) -> str:
    """Return the words of a command as one; arguments with blanks are in quotes (moby daemon/list.go)."""
    path, *arguments = words or [""]
    return " ".join([path, *(f"'{word}'" if " " in word else word for word in arguments)])


def _status(record: MountRecord | None, now: float) -> str:
    """Return since when the container is mounted; docker also tells when one ended, which is not known here."""
    since = None if record is None else _start_of(record.pid)
    return "Exited" if since is None else f"Up {docker_tables.human_duration(max(now - since, 0.0))}"


def _start_of(pid: int) -> float | None:
    """Return when a process started, in seconds since 1970; None if it has ended."""
    import psutil  # Imported late: only a mounted container needs it.

    try:
        return psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return None
