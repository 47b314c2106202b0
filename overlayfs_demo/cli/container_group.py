"""The verb `container`: Docker's longer names for the verbs about containers, and `container prune`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence

from overlayfs_demo.cli.command import Verbs
from overlayfs_demo.cli.confirm import confirmed
from overlayfs_demo.cli.store_options import add_json, add_verb, store_of
from overlayfs_demo.errors import MountError
from overlayfs_demo.store.containers import Containers, record_of, upper_size
from overlayfs_demo.ui.console import put, put_json
from overlayfs_demo.ui.text import human_size

# The words that stand for `container WORD`. Our own words stay as they are.
_VERBS: Mapping[str, Sequence[str]] = {
    "ls": ("ps",),
    "list": ("ps",),
    "inspect": ("inspect", "--type", "container"),
    **{
        verb: (verb,)
        for verb in ("ps", "create", "start", "stop", "rm", "rename", "run", "exec", "cp", "diff", "commit", "export")
    },
}


def expanded(arguments: Sequence[str]) -> list[str]:
    """Return a command line in which `container WORD` is replaced by our word for it, if that is another verb."""
    if len(arguments) > 1 and arguments[0] == "container" and arguments[1] in _VERBS:
        return [*_VERBS[arguments[1]], *arguments[2:]]
    return list(arguments)


def add_verbs(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Add the verbs of this module."""
    verb = add_verb(
        verbs,
        "container",
        "remove all stopped containers, or do what another verb does",
        "container ls\ncontainer prune --force",
        _container,
    )
    verb.description = (
        f"'container prune' removes all containers that are not mounted. The other words, {', '.join(_VERBS)}, are the "
        "verbs of the same names ('ls' is 'ps'), with their options."
    )
    verb.add_argument("word", choices=("prune", *_VERBS), metavar="WORD", help="what to do")
    verb.add_argument("--force", "-f", action="store_true", help="prune without asking")
    add_json(verb)


def _container(arguments: argparse.Namespace) -> int:
    """Prune. The other words have become verbs of their own before: see `expanded`."""
    containers = Containers(store_of(arguments))
    if not confirmed("This removes all stopped containers and their changes.", force=arguments.force):
        return 1
    gone, size = [], 0
    for container in containers.all():
        if record_of(container) is not None:
            continue
        freed = upper_size(container) or 0
        try:
            containers.remove(container)
        except MountError:
            if record_of(container) is None:
                raise
            continue  # It was started in the meantime.
        gone.append(container.name)
        size += freed
    if arguments.json:
        put_json([{"DeletedContainers": gone, "ReclaimedSize": size}])
    else:
        put("".join(f"Deleted: {name}\n" for name in gone) + f"Reclaimed space: {human_size(size)}\n")
    return 0
