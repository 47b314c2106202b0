"""How does one layer of an archive become a directory, proved to be what its digests promise?

The layer is read once: hashed as stored, decompressed, hashed as a tar, and unpacked on the way.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from overlayfs_demo.images.archive import Archive
from overlayfs_demo.images.lowers import Lowers
from overlayfs_demo.images.model import Layer, shown
from overlayfs_demo.images.tarstream import TarStream
from overlayfs_demo.images.unpack import Unpacked, unpack_layer
from overlayfs_demo.overlay.whiteout import PrivateXattrs


def extract_layer(
    archive: Archive, layer: Layer, title: str, root_fd: int, spare_fd: int, below: Sequence[Path],
    marks: PrivateXattrs, owners: bool,
) -> Unpacked:
    """Unpack a layer into the empty directory `root_fd`; `below` are the layers under it, bottom to top.

    `title` names the layer in errors; the other parameters are those of `unpack_layer`. Raises ImageError; the
    directory is then half-built, and the caller's to remove.
    """
    label = archive.label
    if layer.member:
        label = f"{label}: layer {title} (member '{shown(layer.member)}')"
    with Lowers(below, marks) as lowers:
        reader = archive.open_layer(layer)
        done = unpack_layer(
            TarStream(reader.tar, label, marked_end=False), label, root_fd, spare_fd, lowers, marks, owners
        )
        reader.finish()
    return done
