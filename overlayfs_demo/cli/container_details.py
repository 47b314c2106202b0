"""What `inspect` shows of a container: docker's keys for what a container has here (moby api/types, ContainerJSON).

A container here is an image with a writable layer, mounted or not. It has no network and no limits, so those keys are
left out. Its ID is its name, which every verb takes.
"""

from __future__ import annotations

from overlayfs_demo.cli.image_settings import command_words, settings_of
from overlayfs_demo.store.container import Container
from overlayfs_demo.store.container_state import record_of, state_of, upper_size
from overlayfs_demo.store.store import Store
from overlayfs_demo.ui.console import PROGRAM


def container_details(store: Store, container: Container, *, sizes: bool) -> dict[str, object]:
    """Return the object that `inspect` prints. `sizes` counts the upper, in bytes. Raises MountError, ImageError."""
    image = store.image(container.image)
    path, *arguments = command_words(image) or [""]
    details: dict[str, object] = {
        "Id": container.name,
        "Created": container.created,
        "Path": path,
        "Args": arguments,
        "State": _state(container),
        "Image": str(container.image),
        "Name": f"/{container.name}",
        "Driver": PROGRAM,
        "Platform": image.parsed.platform.os,
        "GraphDriver": {"Data": _directories(store, container), "Name": PROGRAM},
    }
    size = upper_size(container) if sizes else None
    if size is not None:
        details |= {"SizeRw": size, "SizeRootFs": size + image.size}
    return details | {"Mounts": [], "Config": settings_of(image) | {"Image": container.image_name}}


def _state(container: Container) -> dict[str, object]:
    """Return its state. A mounted container runs: its process is the daemon that serves its view."""
    record = record_of(container)
    return {
        "Status": state_of(record),
        "Running": record is not None,
        "Paused": False,
        "Restarting": False,
        "OOMKilled": False,
        "Dead": False,
        "Pid": 0 if record is None else record.daemon,
        "ExitCode": 0,
        "Error": "",
    }


def _directories(store: Store, container: Container) -> dict[str, str]:
    """Return the directories of the overlay; LowerDir has the topmost lower first."""
    layers = [store.place(chain_id) for chain_id in reversed(container.chain_ids)] or [store.empty_directory()]
    return {
        "LowerDir": ":".join(map(str, layers)),
        "MergedDir": str(container.mountpoint),
        "UpperDir": str(container.upper),
        "WorkDir": str(container.work),
    }
