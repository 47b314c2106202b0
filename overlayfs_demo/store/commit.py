"""How does a container's upper become a layer, and the layer a new image?"""

from __future__ import annotations

import json
from datetime import UTC, datetime

from overlayfs_demo.images.archive import open_archive
from overlayfs_demo.images.layer_tar import write_layer
from overlayfs_demo.images.model import Config, Digest, Image, Layer, parse_json
from overlayfs_demo.images.progress import SILENT, Progress, counted
from overlayfs_demo.images.reference import ImageName
from overlayfs_demo.overlay.stack import Stack
from overlayfs_demo.store.load import Loaded, load_one
from overlayfs_demo.store.store import Store, StoredImage


def commit(
    store: Store,
    base: StoredImage,
    stack: Stack,
    name: ImageName | None,
    *,
    created_by: str,
    comment: str = "",
    author: str = "",
    epoch: int | None = None,
    progress: Progress = SILENT,
) -> Loaded:
    """Make an image of `base` and one more layer: what the upper of `stack`, on the layers of `base`, changes.

    The upper may be in use. `epoch` (SOURCE_DATE_EPOCH) is the time of creation, and no file's time is later.
    Raises ImageError or OSError, with the store as it was.
    """
    names = () if name is None else (str(name),)
    when = datetime.now(UTC) if epoch is None else datetime.fromtimestamp(epoch, UTC)
    tar = store.tmp / "layer.tar"
    with store.writing():
        with tar.open("xb") as file:
            progress.step("reading the container's changes")
            write_layer(stack, counted(file, progress), epoch)
        with open_archive(tar, label="the container's changes") as archive:
            diff_id = archive.whole_digest(progress)
            config = _config(base, diff_id, when.isoformat().replace("+00:00", "Z"), created_by, comment, author)
            layers = (*(Layer(layer.diff_id, "") for layer in base.layers), Layer(diff_id, ""))
            image = Image(config, layers, Config.parse(config, "the new config").history, names)
            return load_one(store, archive, image, progress)


def _config(base: StoredImage, diff_id: Digest, created: str, created_by: str, comment: str, author: str) -> bytes:
    """The base's config with one more step; all that we do not know of stays (config.md)."""
    config = parse_json(base.config, "config")
    assert isinstance(config, dict), "it was checked when it was loaded"
    config["created"] = created
    step = {"created": created, "created_by": created_by, "author": author, "comment": comment}
    config["history"] = [*(config.get("history") or []), {key: value for key, value in step.items() if value}]
    below = [str(layer.diff_id) for layer in base.layers]
    config["rootfs"] = {**config["rootfs"], "diff_ids": [*below, str(diff_id)]}
    if author:
        config["author"] = author
    # What Docker notes of the container that the base was committed from says nothing of the new image.
    for key in ("container", "container_config", "id", "parent"):
        config.pop(key, None)
    return json.dumps(config, sort_keys=True, separators=(",", ":")).encode()
