"""Containers of a store: record, directories, and the image that each is made from."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from overlayfs_demo.errors import MountError, printable
from overlayfs_demo.fsck.finding import Finding
from overlayfs_demo.fsck.store_parts import Parts, shown
from overlayfs_demo.images.model import Digest
from overlayfs_demo.linux import mountinfo, xattr
from overlayfs_demo.store import durable
from overlayfs_demo.store.container import MERGED, Container, find_container
from overlayfs_demo.store.stored import StoredImage

_DIRECTORIES = ("upper", "work", MERGED)


def containers(parts: Parts) -> Iterator[Finding]:
    """Find containers without a sound record, without their directories, or without their image."""
    for directory in parts.container_directories():
        try:
            container = find_container(parts.store, directory.name)
        except (MountError, OSError):
            yield _without_record(parts, directory)
            continue
        yield from _directories(directory)
        missing = parts.missing_layers(container.image)
        if missing is None or missing:
            what = f"layer {missing[0].short}" if missing else "config"
            yield Finding(
                "container-without-image",
                shown(directory),
                f"it was made from the image {printable(container.image_name)}, whose {what} is missing, so that "
                "it cannot be mounted; its changes are safe, and it works again once the image "
                f"{container.image.short} is loaded again",
            )


def _directories(directory: Path) -> Iterator[Finding]:
    for name in _DIRECTORIES:
        if not (directory / name).is_dir() and not os.path.lexists(directory / name):
            yield Finding(
                "container-without-directory",
                shown(directory / name),
                "the container cannot be mounted without this directory; the repair makes an empty one",
                partial(durable.make_directory, directory / name, 0o755),
            )


def _without_record(parts: Parts, directory: Path) -> Finding:
    what = "its record is missing or damaged, as after a power failure, so that it cannot be used, nor its name; "
    if mountinfo.below(os.path.realpath(os.fsencode(directory))):
        return Finding("container-without-record", shown(directory), f"{what}unmount it, and then check again")
    image = _image_of(parts, directory / "upper")
    if image is None:
        then = f"the repair moves it with its changes to {shown(parts.lost)}"
        return Finding("container-without-record", shown(directory), what + then, partial(parts.set_aside, directory))
    then = (
        f"the repair writes it again for the image {printable(image.title)}, over which it was mounted last, without "
        "the options that it was created with"
    )
    return Finding("container-without-record", shown(directory), what + then, partial(_write_record, directory, image))


def _image_of(parts: Parts, upper: Path) -> StoredImage | None:
    """Return an image with the layers over which an upper was last mounted, see `lower_fingerprint`.

    Its topmost layer is enough to know, because a chain ID depends on all layers.
    """
    try:
        value = xattr.get(os.fsencode(upper), parts.store.marks.lowers)
        names = json.loads(value or b"{}")["names"]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    top = os.path.basename(str(names).partition(":")[0])
    images = [image for image in parts.store.images() if image.layers and image.layers[-1].chain_id.encoded == top]
    return max(images, key=lambda image: len(image.names), default=None)


def _write_record(directory: Path, image: StoredImage) -> None:
    made = datetime.fromtimestamp(int(directory.stat().st_mtime), UTC)
    record = Container(
        directory.name,
        directory,
        image.id,
        image.title,
        tuple(layer.chain_id for layer in image.layers),
        made.isoformat().replace("+00:00", "Z"),
        directory / MERGED,
        False,
        "",
    )
    record.write(directory)


def users_known(parts: Parts) -> dict[Digest, list[str]]:
    """Return the names of the containers that are made from each image; those without a sound record are left out."""
    found: dict[Digest, list[str]] = {}
    for directory in parts.container_directories():
        try:
            container = find_container(parts.store, directory.name)
        except (MountError, OSError):
            continue  # It is another finding.
        found.setdefault(container.image, []).append(container.name)
    return found
