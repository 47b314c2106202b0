"""The verb `container prune`, which only Docker's group of verbs for containers has."""

from __future__ import annotations

import argparse

from overlayfs_demo.cli.command import Verbs
from overlayfs_demo.cli.confirm import confirmed
from overlayfs_demo.cli.docker_flags import OF_PRUNE, add_answers
from overlayfs_demo.cli.store_options import add_json, add_verb, store_of
from overlayfs_demo.errors import MountError
from overlayfs_demo.store.container import Container
from overlayfs_demo.store.container_state import record_of, upper_size
from overlayfs_demo.store.containers import Containers
from overlayfs_demo.ui.console import put, put_json
from overlayfs_demo.ui.text import human_size


def add_verbs(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Add the verb of this module."""
    verb = add_verb(verbs, "prune", "prune --force", _prune)
    verb.description = "Remove all stopped containers and their changes."  # Unlike the verb `prune`.
    verb.add_argument("--force", "-f", action="store_true", help="do not ask")
    add_answers(verb, OF_PRUNE)
    add_json(verb)


def _prune(arguments: argparse.Namespace) -> int:
    containers = Containers(store_of(arguments))
    gone: list[str] = []
    size = 0
    if arguments.force or confirmed("This will remove all stopped containers and their changes."):
        for container in containers.all():
            freed = upper_size(container) or 0
            if _removed(containers, container):
                gone.append(container.name)
                size += freed
    if arguments.json:
        put_json([{"DeletedContainers": gone, "ReclaimedSize": size}])
    else:
        put("".join(f"Deleted: {name}\n" for name in gone) + f"Total reclaimed space: {human_size(size)}\n")
    return 0


def _removed(containers: Containers, container: Container) -> bool:
    """Remove a container unless it is mounted; return whether it was removed. Raises MountError."""
    if record_of(container) is not None:
        return False
    try:
        containers.remove(container)
    except MountError:
        if record_of(container) is None:
            raise
        return False  # It was started in the meantime.
    return True
