"""The state of a container: whether it is mounted, and how much it has changed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from overlayfs_demo.errors import MountError, printable
from overlayfs_demo.mounts import registry
from overlayfs_demo.mounts.layer_facts import UPPER, LayerFacts, walked
from overlayfs_demo.store.container import Container


def _mount_place(container: Container) -> str:
    """Return the container's mount point as the registry knows it. The view is not asked: its daemon may hang."""
    return os.path.join(os.path.realpath(container.mountpoint.parent), container.mountpoint.name)


def served_at(container: Container) -> registry.MountRecord | None:
    """Return the record of the view at the container's mount point, which may be that of another container."""
    where = _mount_place(container)
    return next((record for record in registry.live_records() if record.mountpoint == where), None)


def records_of(containers: Iterable[Container]) -> Mapping[str, registry.MountRecord]:
    """Return the records of those of the containers that are mounted and served, by the containers' names."""
    found = {}
    live = {record.mountpoint: record for record in registry.live_records()}
    for container in containers:
        record = live.get(_mount_place(container))
        if record is None or record.upper is None:
            continue
        # The view may be that of another container at the same mount point.
        if os.path.realpath(record.upper) == os.path.realpath(container.upper):
            found[container.name] = record
    return found


def record_of(container: Container) -> registry.MountRecord | None:
    """Return the record of the container's mount; None unless it is mounted and served."""
    return records_of([container]).get(container.name)


@contextmanager
def root_of(mountpoint: Path) -> Iterator[int]:
    """Open the root of a mounted container (O_PATH), and close it afterwards.

    Raises MountError if it is not in a view: the user of a directory above it may have put a link in its place.
    """
    with contextlib.ExitStack() as stack:
        try:
            fd = os.open(mountpoint, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, fd)
            is_view = registry.is_in_view(fd)
        except OSError as error:
            raise MountError(f"{printable(str(mountpoint))}: {error.strerror}", "see 'overlayfs-demo ps'") from None
        if not is_view:
            raise MountError(f"{printable(str(mountpoint))} is no longer a view", "see 'overlayfs-demo ps'")
        yield fd


def state_of(record: registry.MountRecord | None) -> str:
    """Return docker's word for the state of a container with this record: a mounted one runs."""
    return "exited" if record is None else "running"


def upper_size(container: Container) -> int | None:
    """Return the bytes of the files in the upper, each file once; None if the upper cannot be read."""
    count = walked(LayerFacts(UPPER, "", str(container.upper))).count
    return None if count is None else count.size
