"""The state of a container: whether it is mounted, and how much it has changed."""

from __future__ import annotations

import os

from overlayfs_demo.mounts import registry
from overlayfs_demo.mounts.layer_facts import UPPER, LayerFacts, walked
from overlayfs_demo.store.container import Container


def served_at(container: Container) -> registry.MountRecord | None:
    """Return the record of the view at the container's mount point, which may be that of another container."""
    # The view itself is not asked, because its daemon may hang.
    where = os.path.join(os.path.realpath(container.mountpoint.parent), container.mountpoint.name)
    return next((record for record in registry.live_records() if record.mountpoint == where), None)


def record_of(container: Container) -> registry.MountRecord | None:
    """Return the record of the container's mount; None unless it is mounted and served."""
    record = served_at(container)
    if record is None or record.upper is None:
        return None
    return record if os.path.realpath(record.upper) == os.path.realpath(container.upper) else None


def state_of(record: registry.MountRecord | None) -> str:
    """Return docker's word for the state of a container with this record: a mounted one runs."""
    return "exited" if record is None else "running"


def upper_size(container: Container) -> int | None:
    """Return the bytes of the files in the upper, each file once; None if the upper cannot be read."""
    count = walked(LayerFacts(UPPER, "", str(container.upper))).count
    return None if count is None else count.size
