"""The verbs that list what the store holds: `images`, `history` and `layers`."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Mapping, Sequence

from overlayfs_demo.cli.command import Verbs
from overlayfs_demo.cli.format_option import add_format, form_of
from overlayfs_demo.cli.image_filters import ImageFilter, add_image_filter, is_named
from overlayfs_demo.cli.store_options import add_json, add_verb, store_of
from overlayfs_demo.images import describe
from overlayfs_demo.images.describe import ImageRow, LayerFacts
from overlayfs_demo.images.model import Digest
from overlayfs_demo.store.store import Store
from overlayfs_demo.store.stored import Inventory, StoredImage, StoredLayer
from overlayfs_demo.ui import docker_tables
from overlayfs_demo.ui.console import note, put, put_json
from overlayfs_demo.ui.docker_format import put_rows
from overlayfs_demo.ui.docker_listings import HISTORY, HISTORY_WITH_LAYERS, IMAGES
from overlayfs_demo.ui.table import Table
from overlayfs_demo.ui.terminal import put_table
from overlayfs_demo.ui.text import human_size

# `docker images --digests`. Images come from archives here, so no registry has given them a digest.
_WITH_DIGESTS = "table {{.Repository}}\t{{.Tag}}\t{{.Digest}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}"


def add_verbs(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Add the verbs of this module."""
    verb = add_verb(verbs, "images", "images app\nimages --format 'table {{.ID}}\\t{{.Size}}'", _images)
    verb.add_argument("name", nargs="?", metavar="NAME[:TAG]", help="list only images with this name, or 'app*'")
    verb.add_argument(
        "--all", "-a", action="store_true", help="accepted as in docker: there are no intermediate images here"
    )
    add_image_filter(verb)
    _add_form(verb)
    add_format(verb)
    verb.add_argument("--digests", action="store_true", help="show docker's column of digests, which a registry gives")
    verb.add_argument("--quiet", "-q", action="store_true", help="print only IDs")
    verb = add_verb(verbs, "history", "history --layers app:1.0", _history)
    verb.add_argument("image", metavar="IMAGE")
    _add_form(verb)
    add_format(verb)
    verb.add_argument(
        "--human",
        type=_truth,
        default=True,
        metavar="true|false",
        help="sizes and times in human-readable form (the default)",
    )
    verb.add_argument("-H", dest="human", action="store_true", help="the same as --human=true")
    verb.add_argument("--quiet", "-q", action="store_true", help="print only IDs")
    verb.add_argument("--layers", action="store_true", help="also show the layer of each step, which docker does not")
    verb = add_verb(verbs, "layers", "layers\nlayers app:1.0", _layers)
    verb.add_argument("image", nargs="?", metavar="IMAGE", help="list only the layers of this image")
    _add_form(verb)


def _add_form(verb: argparse.ArgumentParser) -> None:
    add_json(verb)
    verb.add_argument("--no-trunc", action="store_true", help="do not shorten IDs and commands")


def _truth(word: str) -> bool:
    if word not in ("true", "false"):
        raise argparse.ArgumentTypeError("use true or false")
    return word == "true"


# --- images and history ----------------------------------------------------------------------------


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
    store = store_of(arguments)
    wanted = ImageFilter.of(arguments.filters, store)
    found = [image for image in inventory(store).images if wanted.takes(image)]
    rows = [row for row in image_rows(found) if wanted.takes_name(row)]
    if arguments.name is not None:
        rows = [row for row in rows if is_named(row, arguments.name)]
    trunc, now = not arguments.no_trunc, time.time()
    digests = arguments.digests and not (arguments.quiet or arguments.json)
    own = form_of(arguments)
    if form := own or (_WITH_DIGESTS if digests else None):
        fields = [docker_tables.image_fields(row, now, trunc) for row in rows]
        put_rows(IMAGES, form, fields, quiet=arguments.quiet, whole=own is not None or not trunc)
    elif arguments.quiet:
        put("".join(f"{docker_tables.short_id(row.id) if trunc else row.id}\n" for row in rows))
    elif arguments.json:
        put(docker_tables.images_json(rows, now, trunc))
    else:
        put_table(docker_tables.images_table(rows, now, trunc))
    return 0


def image_rows(images: Iterable[StoredImage]) -> Sequence[ImageRow]:
    """Return a row for each name of the images, the newest image first."""
    return describe.image_rows(describe.summarize(image.value, _facts(image)) for image in images)


def _counted(image: StoredImage) -> list[LayerFacts]:
    """Return the same, with what each layer changes, for which all of them are read."""
    from overlayfs_demo.cli.image_analysis import analysis_of  # Only --layers needs it.

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
    if form := form_of(arguments):
        fields = [docker_tables.step_fields(row, *words, layer=arguments.layers) for row in rows]
        put_rows(HISTORY_WITH_LAYERS if arguments.layers else HISTORY, form, fields)
    elif arguments.quiet:
        put("".join(f"{docker_tables.short_id(row.id) if words[-1] else row.id}\n" for row in rows))
    elif arguments.json:
        put(docker_tables.history_json(rows, *words, layers=arguments.layers))
    elif arguments.layers:
        put_table(docker_tables.extended_history_table(rows, *words))
    else:
        put_table(docker_tables.history_table(rows, *words))
    return 0


# --- layers ----------------------------------------------------------------------------------------


def _layers(arguments: argparse.Namespace) -> int:
    """Print every stored layer, or those of one image, the largest first."""
    store = store_of(arguments)
    wanted = None if arguments.image is None else {layer.chain_id for layer in store.find(arguments.image).layers}
    found = inventory(store)
    used_by = _images_by_layer(found.images)
    chosen = [layer for layer in found.layers if wanted is None or layer.chain_id in wanted]
    layers = sorted(chosen, key=lambda layer: (-layer.size, str(layer.chain_id)))
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
