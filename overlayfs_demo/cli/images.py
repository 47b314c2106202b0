"""What can be typed about images and the layers they are made of?"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from overlayfs_demo.analysis.waste import analyse
from overlayfs_demo.cli.command import Verbs, one_line
from overlayfs_demo.cli.output import add_output, output
from overlayfs_demo.cli.store_options import add_json, add_verb, store_of
from overlayfs_demo.errors import ImageError, UsageError, printable
from overlayfs_demo.images import describe
from overlayfs_demo.images.describe import LayerFacts
from overlayfs_demo.images.model import Digest, Platform
from overlayfs_demo.images.reference import ImageName, Reference
from overlayfs_demo.store import remove
from overlayfs_demo.store.containers import Containers
from overlayfs_demo.store.load import Loaded, import_tree, load
from overlayfs_demo.store.save import save
from overlayfs_demo.store.store import Inventory, Store, StoredImage
from overlayfs_demo.ui import docker_tables
from overlayfs_demo.ui.console import PROGRAM, note, put, put_json
from overlayfs_demo.ui.table import Table
from overlayfs_demo.ui.terminal import progress, put_table
from overlayfs_demo.ui.text import human_size, plural


def add_image_verbs(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """The verbs of this module."""
    verb = add_verb(verbs, "load", "load images from an archive", "load image.tar", _load)
    verb.add_argument(
        "archive",
        nargs="?",
        metavar="FILE",
        help="an archive from docker save, podman save or skopeo, a directory with an unpacked one (an OCI layout, "
        "skopeo's dir:), or - for standard input (the default)",
    )
    verb.add_argument("--input", "-i", metavar="FILE", help="the same as FILE, as in docker")
    verb.add_argument(
        "--platform",
        metavar="OS/ARCH|all",
        help="load this platform instead of this machine's; 'all' loads every platform, and gives the name to this "
        "machine's, or else to the last",
    )
    verb.add_argument("--quiet", "-q", action="store_true", help="print only names")
    add_json(verb)
    verb = add_verb(verbs, "import", "create an image from a tar of a file tree", "import rootfs.tar app:flat", _import)
    verb.add_argument("archive", metavar="FILE", help="a tar as docker export writes it, or - for standard input")
    verb.add_argument("name", nargs="?", metavar="NAME[:TAG]")
    add_json(verb)
    verb = add_verb(verbs, "images", "list images", "images app", _images)
    verb.add_argument("name", nargs="?", metavar="NAME[:TAG]", help="list only images with this name")
    _add_format(verb)
    verb.add_argument("--quiet", "-q", action="store_true", help="print only IDs")
    verb.add_argument("--digests", action="store_true", help="also show the digests that a registry gave them")
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
    verb = add_verb(verbs, "save", "write images to an archive", "save app:1.0 -o app.tar", _save)
    verb.add_argument("images", nargs="+", metavar="IMAGE")
    add_output(verb)
    verb = add_verb(verbs, "tag", "give an image another name", "tag app:1.0 app:stable", _tag)
    verb.add_argument("image", metavar="IMAGE")
    verb.add_argument("name", metavar="NAME[:TAG]")
    verb = add_verb(verbs, "rmi", "remove image names, and images left without a name", "rmi app:1.0", _rmi)
    verb.add_argument("images", nargs="+", metavar="IMAGE")
    verb.add_argument("--force", "-f", action="store_true", help="remove an image by ID even if it has several names")
    add_json(verb)
    verb = add_verb(verbs, "prune", "remove unused images and layers", "prune --all", _prune)
    verb.add_argument("--all", "-a", action="store_true", help="also remove named images that no container uses")
    add_json(verb)


def _add_format(verb: argparse.ArgumentParser) -> None:
    add_json(verb)
    verb.add_argument("--no-trunc", action="store_true", help="do not shorten IDs and commands")


def _truth(word: str) -> bool:
    if word not in ("true", "false"):
        raise argparse.ArgumentTypeError("use true or false")
    return word == "true"


# --- getting images in -----------------------------------------------------------------------------


def _source(word: str) -> Path | BinaryIO:
    """Where an archive is read from. Raises UsageError."""
    if not word:
        raise UsageError("the archive has an empty name", "name a file, or - for standard input")
    if word != "-":
        return Path(word)
    if sys.stdin.isatty():
        raise UsageError("refusing to read an archive from a terminal", "name a file, or pipe an archive in")
    return sys.stdin.buffer


def _load(arguments: argparse.Namespace) -> int:
    if None not in (arguments.archive, arguments.input):
        raise UsageError("two archives were given", "name one")
    archive = arguments.input if arguments.archive is None else arguments.archive
    every = arguments.platform == "all"
    platform = Platform.parse(arguments.platform) if arguments.platform and not every else None
    with progress() as told:
        outcome = load(
            store_of(arguments), _source("-" if archive is None else archive), platform, told, every_platform=every
        )
    if arguments.json:
        put_json([_loaded_json(one) for one in outcome])
        put_json([{"Image": one.title, "Error": one_line(one.error)} for one in outcome.failed])
    else:
        for one in outcome:
            _report(one, quiet=arguments.quiet, platform=every)
    if outcome.others:
        what = plural(len(outcome.others), "manifest that is not an image", "manifests that are not images")
        note(f"note: skipped {what}: {', '.join(map(str, outcome.others))}")
    for failed in outcome.failed:
        note(f"image {failed.title} was not loaded: {one_line(failed.error)}")
    return 1 if outcome.failed else 0


def _import(arguments: argparse.Namespace) -> int:
    name = ImageName.parse(arguments.name) if arguments.name is not None else None
    with progress() as told:
        loaded = import_tree(store_of(arguments), _source(arguments.archive), name, progress=told)
    if arguments.json:
        put_json([_loaded_json(loaded)])
        return 0
    for taken in _taken(loaded):
        note(taken)
    _note_left_out(loaded)
    put(f"{loaded.image.id}\n")
    return 0


def _loaded_json(loaded: Loaded) -> dict[str, object]:
    """What `load` and `import` say of an image. Sizes in bytes; LeftOut counts members."""
    image = loaded.image
    return {
        "ID": str(image.id),
        "Names": list(map(str, loaded.names)),
        "Platform": str(image.parsed.platform),
        "Size": image.size,
        "Layers": len(image.layers),
        "LayersHereBefore": len(loaded.skipped),
        "LeftOut": dict(loaded.left_out),
        "NamesTaken": {str(name): str(before) for name, before in loaded.displaced.items()},
    }


def _report(loaded: Loaded, *, quiet: bool, platform: bool = False) -> None:
    image = loaded.image
    suffix = f" ({printable(str(image.parsed.platform))})" if platform else ""
    for taken in _taken(loaded):
        put(f"{taken}\n")
    if not quiet and loaded.skipped:
        saved = human_size(sum(layer.size for layer in loaded.skipped))
        layers = f"{len(loaded.skipped)} of {plural(len(image.layers), 'layer')}"
        put(f"Already stored: {layers} ({saved})\n")
    for name in loaded.names:
        put(f"Loaded image: {name}{suffix}\n")
    if not loaded.names:
        put(f"Loaded image ID: {image.id}{suffix}\n")
    _note_left_out(loaded)


def _taken(loaded: Loaded) -> list[str]:
    """A sentence for each name that another image lost to this one."""
    return [f"Moved the name {name} from image {before.short} to this one" for name, before in loaded.displaced.items()]


def _note_left_out(loaded: Loaded) -> None:
    for what, count in sorted(loaded.left_out.items()):
        note(f"note: skipped in {plural(count, 'member')}: {what}")


# --- getting images out ----------------------------------------------------------------------------


def _save(arguments: argparse.Namespace) -> int:
    store = store_of(arguments)
    images = [store.find(word) for word in arguments.images]
    with output(arguments.output) as out, progress() as told:
        save(images, out, told)
    return 0


# --- telling of them -------------------------------------------------------------------------------


def _inventory(store: Store) -> Inventory:
    """What the store keeps; of what is damaged a person is told."""
    found = store.inventory()
    for problem in found.problems:
        note(f"note: {problem}")
    return found


def _facts(image: StoredImage) -> list[LayerFacts]:
    return [LayerFacts(layer.size) for layer in image.layers]


def _images(arguments: argparse.Namespace) -> int:
    found = _inventory(store_of(arguments)).images
    rows = describe.image_rows((describe.summarize(image.value, _facts(image)) for image in found), arguments.digests)
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
        put_table(docker_tables.images_table(rows, now, arguments.digests, trunc))
    return 0


def _counted(image: StoredImage) -> list[LayerFacts]:
    """The same, and what each layer changes, for which all of them are read."""
    reports = analyse([layer.directory for layer in image.layers], [""] * len(image.layers), duplicates=False).layers
    return [
        LayerFacts(
            layer.size,
            describe.Changes(report.added.paths, report.changed.paths, report.deleted.paths, report.whiteouts),
        )
        for layer, report in zip(image.layers, reports, strict=True)
    ]


def _history(arguments: argparse.Namespace) -> int:
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
        stored = describe.Stored(graph_driver=(PROGRAM, place))
        found.append(describe.inspect(image.value, _facts(image), stored))
    put(docker_tables.inspect_text(found))
    return status


def _users(images: Sequence[StoredImage]) -> Mapping[Digest, list[str]]:
    """What the images that have a layer are called, by its chain ID."""
    users: dict[Digest, list[str]] = {}
    for image in images:
        for layer in dict.fromkeys(image.layers):
            users.setdefault(layer.chain_id, []).append(image.title)
    return users


def _layers(arguments: argparse.Namespace) -> int:
    found = _inventory(store_of(arguments))
    users = _users(found.images)
    layers = sorted(found.layers, key=lambda layer: (-layer.size, str(layer.chain_id)))
    if arguments.json:
        put_json(
            [
                {
                    "ChainID": str(layer.chain_id),
                    "DiffID": str(layer.diff_id),
                    "Size": layer.size,
                    "Images": users.get(layer.chain_id, []),
                    "Directory": str(layer.directory),
                }
                for layer in layers
            ]
        )
        return 0

    def words(digest: Digest) -> str:
        return str(digest) if arguments.no_trunc else digest.short

    put_table(
        Table(
            ("CHAIN ID", "DIFF ID", "SIZE", "USED BY"),
            [
                (
                    words(layer.chain_id),
                    words(layer.diff_id),
                    human_size(layer.size),
                    ", ".join(users.get(layer.chain_id, []))
                    or ("a damaged image" if found.may_need(layer) else "nothing"),
                )
                for layer in layers
            ],
        )
    )
    return 0


def _df(arguments: argparse.Namespace) -> int:
    found = _inventory(store_of(arguments))
    images, layers = found.images, found.layers
    uses = Counter(layer.chain_id for image in images for layer in set(image.layers))

    def split(image: StoredImage) -> tuple[int, int]:
        shared = sum(layer.size for layer in image.layers if uses[layer.chain_id] > 1)
        return shared, image.size - shared

    stored = sum(layer.size for layer in layers)
    listed = sum(image.size for image in images)
    unused = sum(layer.size for layer in layers if not uses[layer.chain_id] and not found.may_need(layer))
    if arguments.json:
        put_json(
            [
                {
                    "Image": image.title,
                    "ID": str(image.id),
                    "Size": image.size,
                    "SharedSize": split(image)[0],
                    "UniqueSize": split(image)[1],
                }
                for image in images
            ]
            + [{"Listed": listed, "Stored": stored, "Unused": unused}]
        )
        return 0
    put_table(
        Table(
            ("IMAGE", "IMAGE ID", "SIZE", "SHARED SIZE", "UNIQUE SIZE"),
            [
                (image.title, image.id.short, *(human_size(size) for size in (image.size, *split(image))))
                for image in images
            ],
        )
    )
    told, used = [], stored - unused
    if listed > used:
        told.append(
            f"The sizes add up to {human_size(listed)}, but only {human_size(used)} is stored: a layer "
            "shared by several images is stored once."
        )
    if unused:
        told.append(f"{human_size(unused)} is in layers that no image uses: 'prune' removes them.")
    if told:
        put("\n" + "".join(line + "\n" for line in told))
    return 0


# --- names, and getting rid of images --------------------------------------------------------------


def _tag(arguments: argparse.Namespace) -> int:
    remove.tag(store_of(arguments), arguments.image, ImageName.parse(arguments.name))
    return 0


def _rmi(arguments: argparse.Namespace) -> int:
    store = store_of(arguments)
    for word in arguments.images:
        gone = remove.remove_image(store, word, Containers(store).users(), force=arguments.force)
        _tell_removed(gone, as_json=arguments.json)
    return 0


def _prune(arguments: argparse.Namespace) -> int:
    store = store_of(arguments)
    gone = remove.prune(store, Containers(store).users(), every=arguments.all)
    _tell_removed(gone, as_json=arguments.json)
    _inventory(store)
    if not arguments.json:
        put(f"Reclaimed space: {human_size(gone.size)}\n")
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
