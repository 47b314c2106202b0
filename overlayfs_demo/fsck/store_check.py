"""The check of a store: version, names, images, and what an interrupted writer left."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from overlayfs_demo.errors import ImageError, printable
from overlayfs_demo.fsck.container_check import containers, users_known
from overlayfs_demo.fsck.finding import Finding
from overlayfs_demo.fsck.layer_check import layers
from overlayfs_demo.fsck.store_parts import Parts, shown
from overlayfs_demo.fsck.work_check import remove
from overlayfs_demo.images.model import Digest
from overlayfs_demo.images.progress import SILENT, Progress
from overlayfs_demo.store import durable
from overlayfs_demo.store.names import names_by_image, read_sound_names
from overlayfs_demo.store.root import PARTS, VERSION, has_lost_version, read_version, write_version
from overlayfs_demo.store.store import Store

_HASH = re.compile("[0-9a-f]{64}")


def is_store(root: Path) -> bool:
    """Return whether a directory is a store, perhaps one that has lost its version. Raises OSError."""
    return root.is_dir() and (read_version(root) == VERSION or has_lost_version(root))


def check_store(
    root: Path, progress: Progress = SILENT, *, quick: bool = False, sound: set[Digest] | None = None
) -> Iterator[Finding]:
    """Find the damage of a store that nobody changes, see `claim`. `quick` does not read the layers' files.

    Nor are those read whose chain IDs are in `sound`, which gets those that are whole. Raises OSError.
    """
    parts = Parts(Store.unchecked(root))
    if read_version(root) != VERSION:
        yield Finding(
            "version",
            shown(root / "version"),
            "it is missing or cut off, as after a power failure, so that no command takes this for a store; the repair "
            "writes it again",
            partial(write_version, root),
        )
    for part in PARTS:
        if not os.path.lexists(root / part):
            yield Finding(
                "missing-directory",
                shown(root / part),
                "every store has this directory, and without it nothing can be changed; the repair makes it",
                partial(durable.make_directory, root / part, 0o700),
            )
    yield from _leftovers(parts)
    yield from layers(parts, progress, set() if sound is None else sound, quick=quick)
    yield from _images(parts)
    yield from _names(parts)
    yield from containers(parts)


def _leftovers(parts: Parts) -> Iterator[Finding]:
    for path in parts.files("tmp"):
        yield Finding(
            "leftover",
            shown(path),
            "it is what an interrupted command left, which takes space until the next one that changes the store; the "
            "repair removes it",
            partial(remove, path),
        )
    for path in parts.files("empty"):
        yield Finding(
            "not-empty",
            shown(path),
            "it is in the directory that stands for an image without layers, so that containers of such images show "
            f"it; the repair moves it to {shown(parts.lost)}",
            partial(parts.set_aside, path),
        )


def _images(parts: Parts) -> Iterator[Finding]:
    store, users = parts.store, users_known(parts)
    for path in parts.files("images"):
        if not _HASH.fullmatch(path.name):
            continue
        identity = Digest("sha256", path.name)
        names = ", ".join(map(str, store.names_of(identity))) or identity.short
        missing = parts.missing_layers(identity)
        if missing is None:
            yield Finding(
                "damaged-image",
                shown(path),
                f"its contents do not match its name, so that the image {names} cannot be used; the repair moves it "
                f"to {shown(parts.lost)} and removes its names, and loading the image brings it back",
                partial(_remove_image, parts, identity),
            )
        if not missing:
            continue
        what = f"the image {names} is missing its layer {missing[0].short}, so that it cannot be used; "
        if made := users.get(identity):
            yield Finding(
                "image-without-layer",
                shown(path),
                f"{what}load it again, because it stays for {', '.join(f'container {name}' for name in made)}",
            )
        else:
            yield Finding(
                "image-without-layer",
                shown(path),
                f"{what}the repair moves it to {shown(parts.lost)} and removes its names, and loading it brings it "
                "back",
                partial(_remove_image, parts, identity),
            )


def _remove_image(parts: Parts, identity: Digest) -> None:
    names = read_sound_names(parts.store.names_file, [])
    parts.store.write_names({name: target for name, target in names.items() if target != identity})
    parts.set_aside(parts.store.root / "images" / identity.encoded)


def _names(parts: Parts) -> Iterator[Finding]:
    store, problems = parts.store, list[ImageError]()
    path = store.names_file
    sound = read_sound_names(path, problems)

    def write_sound() -> None:
        parts.set_aside(path)
        store.write_names(sound)

    if problems:
        yield Finding(
            "damaged-names",
            shown(path),
            f"{problems[0].problem}, so that images cannot be named, nor found by these names; the repair moves the "
            f"file to {shown(parts.lost)} and keeps the names that can be read",
            write_sound,
        )
        return
    for identity, names in names_by_image(sound).items():
        if os.path.lexists(store.root / "images" / identity.encoded):
            continue
        for name in names:
            yield Finding(
                "name-of-nothing",
                shown(path),
                f"the name {printable(str(name))} stands for {identity.short}, which is not an image of this store, so "
                "that commands with this name fail; the repair removes the name",
                partial(store.remove_name, name),
            )
