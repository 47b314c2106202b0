"""Commit: a container's upper becomes a layer, and the layer the top of a new image."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from overlayfs_demo.images.archive import open_archive
from overlayfs_demo.images.dockerfile_change import changed
from overlayfs_demo.images.layer_tar_writer import write_layer
from overlayfs_demo.images.model import Config, Digest, Image, Layer, parse_json
from overlayfs_demo.images.progress import SILENT, Progress, counted
from overlayfs_demo.images.reference import ImageName
from overlayfs_demo.overlay.stack import Stack
from overlayfs_demo.store.load import Loaded, load_one
from overlayfs_demo.store.store import Store
from overlayfs_demo.store.stored import StoredImage


def commit(
    store: Store,
    base: StoredImage,
    stack: Stack,
    name: ImageName | None,
    *,
    created_by: str,
    comment: str = "",
    author: str = "",
    changes: Sequence[str] = (),
    epoch: int | None = None,
    progress: Progress = SILENT,
) -> Loaded:
    """Make an image of `base` and one more layer: the changes that the upper of `stack` makes to `base`.

    The upper may be in use. `changes` are Dockerfile instructions, see `images.dockerfile_change`. `epoch`
    (SOURCE_DATE_EPOCH, in seconds) is the time of creation, and no file gets a later time. Raises OverlayError or
    OSError and leaves the store unchanged.
    """
    names = () if name is None else (str(name),)
    # First, because the layer may take long, and an instruction may be wrong.
    settings = _settings(base, changes)
    when = datetime.now(UTC) if epoch is None else datetime.fromtimestamp(epoch, UTC)
    tar = store.tmp / "layer.tar"
    with store.writing():
        with tar.open("xb") as file:
            progress.step("reading the container's changes")
            write_layer(stack, counted(file, progress), epoch)
        with open_archive(tar, label="the container's changes") as archive:
            diff_id = archive.whole_digest(progress)
            created = when.isoformat().replace("+00:00", "Z")
            config = _config(base, settings, diff_id, created, created_by, comment, author)
            layers = (*(Layer(layer.diff_id, "") for layer in base.layers), Layer(diff_id, ""))
            image = Image(config, layers, Config.parse(config, "the new config").history, names)
            return load_one(store, archive, image, progress)


def _parsed(base: StoredImage) -> dict[str, object]:
    config = parse_json(base.config, "config")
    assert isinstance(config, dict), "it was checked when it was loaded"
    return config


def _settings(base: StoredImage, changes: Sequence[str]) -> Mapping[str, object] | None:
    """Return the base's settings after these instructions; None if there are none, and the settings stay as they are.

    Raises UsageError.
    """
    if not changes:
        return None
    before = _parsed(base).get("config")
    return changed(before if isinstance(before, dict) else {}, changes)


def _config(
    base: StoredImage,
    settings: Mapping[str, object] | None,
    diff_id: Digest,
    created: str,
    created_by: str,
    comment: str,
    author: str,
) -> bytes:
    """Return the base's config with one more step; fields that we do not know stay (config.md)."""
    config = _parsed(base)
    if settings is not None:
        config["config"] = settings
    config["created"] = created
    step = {"created": created, "created_by": created_by, "author": author, "comment": comment}
    history = config.get("history")
    config["history"] = [
        *(history if isinstance(history, list) else []),
        {key: value for key, value in step.items() if value},
    ]
    below = [str(layer.diff_id) for layer in base.layers]
    rootfs = config["rootfs"]
    assert isinstance(rootfs, dict), "it was checked when it was loaded"
    config["rootfs"] = {**rootfs, "diff_ids": [*below, str(diff_id)]}
    if author:
        config["author"] = author
    # Docker records here which container the base was committed from, which says nothing about the new image.
    for key in ("container", "container_config", "id", "parent"):
        config.pop(key, None)
    return json.dumps(config, sort_keys=True, separators=(",", ":")).encode()
