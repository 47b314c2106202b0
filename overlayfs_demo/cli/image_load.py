"""The verbs that put images into the store."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from overlayfs_demo.cli.change_option import add_changes
from overlayfs_demo.cli.command import Verbs, one_line
from overlayfs_demo.cli.store_options import add_json, add_verb, store_of
from overlayfs_demo.errors import UsageError, printable
from overlayfs_demo.images.model import Platform
from overlayfs_demo.images.progress import SILENT
from overlayfs_demo.images.reference import ImageName
from overlayfs_demo.store.load import Loaded, import_tree, load
from overlayfs_demo.ui.console import note, put, put_json
from overlayfs_demo.ui.terminal import progress
from overlayfs_demo.ui.text import human_size, plural


def add_verbs(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Add the verbs of this module."""
    verb = add_verb(verbs, "load", "load image.tar", _load)
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
    verb.add_argument("--quiet", "-q", action="store_true", help="show no progress, and print only names")
    add_json(verb)
    example = "import rootfs.tar app:flat\nimport -c 'CMD [\"sh\"]' rootfs.tar app:flat"
    verb = add_verb(verbs, "import", example, _import)
    verb.add_argument("archive", metavar="FILE", help="a tar as docker export writes it, or - for standard input")
    verb.add_argument("name", nargs="?", metavar="NAME[:TAG]")
    add_changes(verb, "a Dockerfile line for the image's settings, as for 'commit'")
    add_json(verb)


def _source(word: str) -> Path | BinaryIO:
    """Return the file or stream to read an archive from. Raises UsageError."""
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
    quiet = contextlib.nullcontext(SILENT) if arguments.quiet else progress()
    with quiet as told:
        outcome = load(
            store_of(arguments), _source("-" if archive is None else archive), platform, told, every_platform=every
        )
    if arguments.json:
        put_json([_loaded_json(loaded) for loaded in outcome])
        put_json([{"Image": failed.title, "Error": one_line(failed.error)} for failed in outcome.failed])
    else:
        for loaded in outcome:
            _report(loaded, quiet=arguments.quiet, platform=every)
    if outcome.others:
        skipped = plural(len(outcome.others), "manifest that is not an image", "manifests that are not images")
        note(f"note: skipped {skipped}: {', '.join(map(str, outcome.others))}")
    for failed in outcome.failed:
        note(f"image {failed.title} was not loaded: {one_line(failed.error)}")
    return 1 if outcome.failed else 0


def _import(arguments: argparse.Namespace) -> int:
    name = ImageName.parse(arguments.name) if arguments.name is not None else None
    with progress() as told:
        loaded = import_tree(
            store_of(arguments),
            _source(arguments.archive),
            name,
            changes=arguments.changes,
            comment=arguments.message,
            progress=told,
        )
    if arguments.json:
        put_json([_loaded_json(loaded)])
        return 0
    for taken in _taken(loaded):
        note(taken)
    note_left_out(loaded.left_out)
    put(f"{loaded.image.id}\n")
    return 0


def _loaded_json(loaded: Loaded) -> dict[str, object]:
    """Return what `load` and `import` report about an image. Sizes are in bytes; LeftOut counts members."""
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
    note_left_out(loaded.left_out)


def _taken(loaded: Loaded) -> list[str]:
    """Return a sentence for each name that another image lost to this one."""
    return [f"Moved the name {name} from image {before.short} to this one" for name, before in loaded.displaced.items()]


def note_left_out(left_out: Mapping[str, int]) -> None:
    """Say on stderr what an ordinary user could not keep of an image, and in how many members."""
    for reason, count in sorted(left_out.items()):
        note(f"note: skipped in {plural(count, 'member')}: {reason}")
