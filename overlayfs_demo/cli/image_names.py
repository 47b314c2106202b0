"""The verbs that name images and remove them."""

from __future__ import annotations

import argparse

from overlayfs_demo.cli.command import Verbs, for_each
from overlayfs_demo.cli.confirm import confirmed
from overlayfs_demo.cli.docker_flags import OF_PRUNE, add_answers
from overlayfs_demo.cli.image_lists import inventory
from overlayfs_demo.cli.store_options import add_json, add_verb, store_of
from overlayfs_demo.images.reference import ImageName
from overlayfs_demo.store import remove
from overlayfs_demo.ui.console import put, put_json
from overlayfs_demo.ui.text import human_size


def add_verbs(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Add the verbs of this module."""
    verb = add_verb(verbs, "tag", "tag app:1.0 app:stable", _tag)
    verb.add_argument("image", metavar="IMAGE")
    verb.add_argument("name", metavar="NAME[:TAG]")
    verb = add_verb(verbs, "rmi", "rmi app:1.0", _rmi)
    verb.add_argument("images", nargs="+", metavar="IMAGE")
    verb.add_argument("--force", "-f", action="store_true", help="remove an image by ID even if it has several names")
    verb.add_argument("--no-prune", action="store_true", help="keep layers that no image uses then, until 'prune'")
    add_json(verb)
    verb = add_verb(verbs, "prune", "prune\nprune --all --force", _prune)
    verb.add_argument("--all", "-a", action="store_true", help="also remove named images that no container uses")
    verb.add_argument("--force", "-f", action="store_true", help="do not ask before --all removes named images")
    verb.add_argument("--volumes", action="store_true", help="accepted as in docker: there are no volumes here")
    add_answers(verb, OF_PRUNE)
    add_json(verb)


def _tag(arguments: argparse.Namespace) -> int:
    remove.tag(store_of(arguments), arguments.image, ImageName.parse(arguments.name))
    return 0


def _rmi(arguments: argparse.Namespace) -> int:
    store = store_of(arguments)

    def remove_one(word: str) -> None:
        gone = remove.remove_image(store, word, force=arguments.force, keep_layers=arguments.no_prune)
        _tell_removed(gone, as_json=arguments.json)

    return for_each(arguments.images, remove_one)


def _prune(arguments: argparse.Namespace) -> int:
    store = store_of(arguments)
    asks = arguments.all and not arguments.force
    if asks and not confirmed("This will remove all images that no container uses."):
        gone = remove.Removed()
    else:
        gone = remove.prune(store, every=arguments.all)
    _tell_removed(gone, as_json=arguments.json)
    inventory(store)
    if not arguments.json:
        put(f"Total reclaimed space: {human_size(gone.size)}\n")
    return 0


def _tell_removed(gone: remove.Removed, *, as_json: bool) -> None:
    if as_json:
        put_json(
            [
                {
                    "Untagged": list(map(str, gone.names)),
                    "DeletedImages": [str(image) for image in gone.images],
                    "DeletedLayers": [str(chain_id) for chain_id in gone.layers],
                    "ReclaimedSize": gone.size,
                }
            ]
        )
        return
    lines = [f"Untagged: {name}" for name in gone.names]
    lines += [f"Deleted: {image}" for image in gone.images]
    lines += [f"Deleted: {chain_id}" for chain_id in gone.layers]
    put("".join(line + "\n" for line in lines))
