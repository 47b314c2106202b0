"""Extraction of one layer of an archive into a directory, checked against its digests.

The layer is read once: hashed as stored, decompressed, hashed as a tar, and unpacked on the way.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from overlayfs_demo.errors import printable
from overlayfs_demo.images.archive import Archive
from overlayfs_demo.images.lowers import Lowers
from overlayfs_demo.images.model import Layer
from overlayfs_demo.images.progress import SILENT, Progress
from overlayfs_demo.images.tarsplit import recording
from overlayfs_demo.images.tarstream import TarStream
from overlayfs_demo.images.unpack import Unpacked, unpack_layer
from overlayfs_demo.overlay.whiteout import PrivateXattrs


def extract_layer(
    archive: Archive,
    layer: Layer,
    title: str,
    root_fd: int,
    spare_fd: int,
    below: Sequence[Path],
    marks: PrivateXattrs,
    owners: bool,
    recipe: Path | None = None,
    progress: Progress = SILENT,
) -> Unpacked:
    """Unpack a layer into the empty directory `root_fd`; `below` are the layers under it, from the bottom up.

    `title` names the layer in errors; the other parameters are those of `unpack_layer`. If `recipe` is given, that file
    is written; with it and the directory the tar can be put together again, see `tarsplit`. `progress` gets the stored
    bytes. Raises ImageError; the directory is then incomplete, and the caller must remove it.
    """
    label = archive.label
    if layer.member:
        label = f"{label}: layer {title} (member '{printable(layer.member)}')"
    with Lowers(below, marks) as lowers, contextlib.closing(archive.open_layer(layer, progress)) as reader:
        if recipe is None:
            tar = TarStream(reader.tar, label, marked_end=False)
            done = unpack_layer(tar, label, root_fd, spare_fd, lowers, marks, owners)
        else:
            with recording(reader.tar, root_fd, recipe.parent, label) as recorder, recipe.open("xb") as file:
                tar = TarStream(recorder.tar, label, marked_end=False)
                done = unpack_layer(tar, label, root_fd, spare_fd, lowers, marks, owners, recorder)
                recorder.finish(file)
        # After `Recorder.finish`, which must see the rest of the tar that this would read.
        reader.finish()
    return done
