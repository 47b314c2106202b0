"""The verbs that show what the store holds: `images`, `history`, `inspect`, `layers` and `df`."""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from overlayfs_demo.cli.command import Verbs, one_line
from overlayfs_demo.cli.image_analysis import analysis_of
from overlayfs_demo.cli.store_options import add_json, add_verb, store_of
from overlayfs_demo.errors import ImageError
from overlayfs_demo.images import describe
from overlayfs_demo.images.describe import LayerFacts
from overlayfs_demo.images.model import Digest
from overlayfs_demo.images.reference import Reference
from overlayfs_demo.store.store import Store
from overlayfs_demo.store.stored import Inventory, StoredImage, StoredLayer
from overlayfs_demo.ui import docker_tables
from overlayfs_demo.ui.console import PROGRAM, note, put, put_json
from overlayfs_demo.ui.table import Table
from overlayfs_demo.ui.terminal import put_prose, put_table
from overlayfs_demo.ui.text import human_size


def add_verbs(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Add the verbs of this module."""
    verb = add_verb(verbs, "images", "list images", "images app", _images)
    verb.add_argument("name", nargs="?", metavar="NAME[:TAG]", help="list only images with this name")
    _add_format(verb)
    verb.add_argument("--quiet", "-q", action="store_true", help="print only IDs")
    verb = add_verb(verbs, "history", "show the steps that made an image", "history --layers app:1.0", _history)
    verb.add_argument("image", metavar="IMAGE")
    _add_format(verb)
    verb.add_argument(
        "--human",
        type=_truth,
        default=True,
        metavar="true|false",
        help="sizes and times in human-readable form (the default)",
    )
    verb.add_argument("--layers", action="store_true", help="also show the layer of each step, which docker does not")
    verb = add_verb(verbs, "inspect", "show all details of images, as docker does", "inspect app:1.0", _inspect)
    verb.add_argument("images", nargs="+", metavar="IMAGE")
    verb = add_verb(verbs, "layers", "list every stored layer and the images that use it", "layers", _layers)
    _add_format(verb)
    verb = add_verb(verbs, "df", "show how much space images use and share", "df", _df)
    add_json(verb)


def _add_format(verb: argparse.ArgumentParser) -> None:
    add_json(verb)
    verb.add_argument("--no-trunc", action="store_true", help="do not shorten IDs and commands")


def _truth(word: str) -> bool:
    if word not in ("true", "false"):
        raise argparse.ArgumentTypeError("use true or false")
    return word == "true"


# --- images, history and inspect -------------------------------------------------------------------


def inventory(store: Store) -> Inventory:
    """Return what the store holds, and print a note about each damaged part."""
    found = store.inventory()
    for problem in found.problems:
        note(f"note: {problem}")
    return found


def _facts(image: StoredImage) -> list[LayerFacts]:
    return [LayerFacts(layer.size) for layer in image.layers]


def _images(arguments: argparse.Namespace) -> int:
    """Print the images, the newest first."""
    found = inventory(store_of(arguments)).images
    rows = describe.image_rows(describe.summarize(image.value, _facts(image)) for image in found)
    if arguments.name is not None:
        wanted = Reference.parse(arguments.name)
        rows = tuple(
            row for row in rows if row.repository == str(wanted.repository) and row.tag in (wanted.tag or row.tag,)
        )
    trunc, now = not arguments.no_trunc, time.time()
    if arguments.quiet:
        put("".join(f"{docker_tables.short_id(row.id) if trunc else row.id}\n" for row in rows))
    elif arguments.json:
        put(docker_tables.images_json(rows, now, trunc))
    else:
        put_table(docker_tables.images_table(rows, now, trunc))
    return 0


def _counted(image: StoredImage) -> list[LayerFacts]:
    """Return the same, with what each layer changes, for which all of them are read."""
    return [
        LayerFacts(
            layer.size,
            describe.Changes(report.added.paths, report.changed.paths, report.deleted.paths, report.whiteouts),
        )
        for layer, report in zip(image.layers, analysis_of(image).layers, strict=True)
    ]


def _history(arguments: argparse.Namespace) -> int:
    """Print the steps that made an image."""
    image = store_of(arguments).find(arguments.image)
    facts = _counted(image) if arguments.layers else _facts(image)
    rows = describe.history_rows(image.value, facts, every_layer=arguments.layers)
    words = (time.time(), arguments.human, not arguments.no_trunc)
    if arguments.json:
        put(docker_tables.history_json(rows, *words))
    elif arguments.layers:
        put_table(docker_tables.extended_history_table(rows, *words))
    else:
        put_table(docker_tables.history_table(rows, *words))
    return 0


def _inspect(arguments: argparse.Namespace) -> int:
    """Print all details of images; return 1 if one is not found."""
    store = store_of(arguments)
    found, status = [], 0
    for word in arguments.images:
        try:
            image = store.find(word)
        except ImageError as error:
            note(one_line(error))
            status = 1
            continue
        place = None
        if image.layers:
            top, *below = (str(layer.directory) for layer in reversed(image.layers))
            place = {"LowerDir": ":".join(below), "UpperDir": top}
        found.append(describe.inspect(image.value, _facts(image), describe.GraphDriver(PROGRAM, place)))
    put(docker_tables.inspect_text(found))
    return status


# --- layers ----------------------------------------------------------------------------------------


def _layers(arguments: argparse.Namespace) -> int:
    """Print every stored layer, the largest first."""
    found = inventory(store_of(arguments))
    used_by = _images_by_layer(found.images)
    layers = sorted(found.layers, key=lambda layer: (-layer.size, str(layer.chain_id)))
    if arguments.json:
        put_json([_layer_json(layer, used_by.get(layer.chain_id, [])) for layer in layers])
        return 0
    rows = []
    for layer in layers:
        ids = [str(digest) if arguments.no_trunc else digest.short for digest in (layer.chain_id, layer.diff_id)]
        unused = "a damaged image" if found.may_need(layer) else "nothing"
        rows.append((*ids, human_size(layer.size), ", ".join(used_by.get(layer.chain_id, [])) or unused))
    put_table(Table(("CHAIN ID", "DIFF ID", "SIZE", "USED BY"), rows, whole=arguments.no_trunc))
    return 0


def _images_by_layer(images: Sequence[StoredImage]) -> Mapping[Digest, list[str]]:
    """Return the titles of the images that have a layer, by its chain ID."""
    titles: dict[Digest, list[str]] = {}
    for image in images:
        for layer in dict.fromkeys(image.layers):
            titles.setdefault(layer.chain_id, []).append(image.title)
    return titles


def _layer_json(layer: StoredLayer, images: Sequence[str]) -> dict[str, object]:
    return {
        "ChainID": str(layer.chain_id),
        "DiffID": str(layer.diff_id),
        "Size": layer.size,
        "Images": images,
        "Directory": str(layer.directory),
    }


# --- df --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Usage:
    """The space that an image takes, in bytes: `shared` is that of the layers that other images have, too."""

    image: StoredImage
    shared: int

    @property
    def unique(self) -> int:
        """The bytes of the layers that only this image has."""
        return self.image.size - self.shared

    def cells(self) -> tuple[str, ...]:
        """Return the row of the table."""
        sizes = (self.image.size, self.shared, self.unique)
        return self.image.title, self.image.id.short, *map(human_size, sizes)

    def json(self) -> dict[str, object]:
        """Return the object for machines."""
        return {
            "Image": self.image.title,
            "ID": str(self.image.id),
            "Size": self.image.size,
            "SharedSize": self.shared,
            "UniqueSize": self.unique,
        }


def _df(arguments: argparse.Namespace) -> int:
    """Print how much space the images take, and how much less is stored because they share layers."""
    found = inventory(store_of(arguments))
    uses = Counter(layer.chain_id for image in found.images for layer in set(image.layers))
    usages = [
        _Usage(image, sum(layer.size for layer in image.layers if uses[layer.chain_id] > 1)) for image in found.images
    ]
    stored = sum(layer.size for layer in found.layers)
    listed = sum(image.size for image in found.images)
    unused = sum(layer.size for layer in found.layers if not uses[layer.chain_id] and not found.may_need(layer))
    if arguments.json:
        put_json([usage.json() for usage in usages] + [{"Listed": listed, "Stored": stored, "Unused": unused}])
        return 0
    put_table(Table(("IMAGE", "IMAGE ID", "SIZE", "SHARED SIZE", "UNIQUE SIZE"), [usage.cells() for usage in usages]))
    told, used = [], stored - unused
    if listed > used:
        told.append(
            f"The sizes add up to {human_size(listed)}, but only {human_size(used)} is stored: a layer "
            "shared by several images is stored once."
        )
    if unused:
        told.append(f"{human_size(unused)} is in layers that no image uses: 'prune' removes them.")
    if told:
        put_prose("\n" + "".join(line + "\n" for line in told))
    return 0
