"""The options of `ps` that choose containers: --filter, --last and --latest, as in `docker ps`."""

from __future__ import annotations

import argparse
import functools
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

from overlayfs_demo.cli.store_options import add_filter
from overlayfs_demo.errors import UsageError, printable
from overlayfs_demo.mounts.registry import MountRecord
from overlayfs_demo.store.container import Container
from overlayfs_demo.store.container_state import records_of, state_of
from overlayfs_demo.store.store import Store
from overlayfs_demo.store.stored import StoredImage

# The states that Docker has. Here a container has one of the first two, see `state_of`.
_STATES = ("running", "exited", "created", "restarting", "removing", "paused", "dead")

_Test = Callable[[Container], bool]


def add_filters(verb: argparse.ArgumentParser) -> None:
    """Give the verb the options that `chosen` heeds."""
    add_filter(
        verb,
        "only containers with name=PART, status=running (mounted) or status=exited, or ancestor=IMAGE (the image, "
        "or one that it is the base of). Of several values for one key, one must fit",
    )
    verb.add_argument("--last", "-n", type=int, default=-1, metavar="N", help="only the N containers created last")
    verb.add_argument("--latest", "-l", action="store_true", help="only the container created last")


def chosen(store: Store, containers: Sequence[Container], arguments: argparse.Namespace) -> list[Container]:
    """Return the containers that the options choose, in their order. Raises UsageError, ImageError."""
    wanted: Mapping[str, list[_Test]] = defaultdict(list)
    mounted = functools.cache(lambda: records_of(containers))
    for text in arguments.filters:
        key, _, value = text.partition("=")
        wanted[key].append(_test(store, key, value, text, mounted))
    found = [
        container
        for container in containers
        if all(any(test(container) for test in tests) for tests in wanted.values())
    ]
    count = 1 if arguments.latest else arguments.last
    if count < 0:
        return found
    latest = sorted(found, key=lambda container: container.created, reverse=True)[:count]
    return [container for container in found if container in latest]


def _test(store: Store, key: str, value: str, text: str, mounted: Callable[[], Mapping[str, MountRecord]]) -> _Test:
    if key == "name" and value:
        return _name_test(value)
    if key == "status" and value in _STATES:
        return lambda container: value == state_of(mounted().get(container.name))
    if key == "ancestor" and value:
        image = store.find(value)
        return lambda container: _descends(container, image)
    if key == "status":
        raise UsageError(f"'{printable(value)}' is not a state of a container", f"use one of {', '.join(_STATES)}")
    raise UsageError(
        f"--filter '{printable(text)}' cannot be used", "write name=PART, status=running|exited or ancestor=IMAGE"
    )


def _name_test(value: str) -> _Test:
    try:
        pattern = re.compile(value)
    except re.error as error:
        raise UsageError(
            f"--filter name={printable(value)} is not a regular expression ({error})", "write a part of the name"
        ) from None
    return lambda container: pattern.search(container.name) is not None


def _descends(container: Container, image: StoredImage) -> bool:
    """Return whether the container's image is this one, or has all its layers at the bottom."""
    below = tuple(layer.chain_id for layer in image.layers)
    return container.image == image.id or (bool(below) and container.chain_ids[: len(below)] == below)
