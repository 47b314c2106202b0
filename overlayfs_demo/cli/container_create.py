"""The verb `create`."""

from __future__ import annotations

import argparse
from pathlib import Path

from overlayfs_demo.cli.command import Verbs
from overlayfs_demo.cli.docker_flags import OF_CREATE, add_answers
from overlayfs_demo.cli.store_options import add_json, add_verb, store_of
from overlayfs_demo.errors import UsageError, printable
from overlayfs_demo.store.containers import Containers
from overlayfs_demo.ui.console import put, put_json


def add_verbs(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Add the verb of this module."""
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
    verb.add_argument("command", nargs="*", help=argparse.SUPPRESS)
    add_answers(verb, OF_CREATE)


def _create(arguments: argparse.Namespace) -> int:
    if arguments.command:
        raise UsageError(
            f"create runs nothing here, not even '{printable(arguments.command[0])}'", "use 'run IMAGE COMMAND'"
        )
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
