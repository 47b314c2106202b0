"""The tar of a stored layer, put together again from its directory and its recipe, and checked against its diff ID."""

from __future__ import annotations

import os
from collections.abc import Callable

from overlayfs_demo.errors import ImageError
from overlayfs_demo.images.progress import SILENT, Progress
from overlayfs_demo.images.record_file import open_file
from overlayfs_demo.images.tarsplit import assemble
from overlayfs_demo.store.stored import StoredLayer

# How many bytes are hashed and written at once: most pieces of a tar are only a header, or a small file.
_BLOCK = 1 << 18


def write_tar(layer: StoredLayer, write: Callable[[bytes], object], progress: Progress = SILENT) -> None:
    """Hand a layer's tar to `write`, block by block. Raises ImageError if it is no longer what it was, or OSError.

    After an error, the blocks so far are useless.
    """
    label = f"layer {layer.diff_id.short}"
    hasher = layer.diff_id.hasher()
    pieces: list[bytes] = []
    size = 0

    def take(data: bytes) -> None:
        nonlocal size
        pieces.append(data)
        size += len(data)
        if size >= _BLOCK:
            flush()

    def flush() -> None:
        nonlocal size
        block = b"".join(pieces)
        hasher.update(block)
        write(block)
        progress.advance(size)
        pieces.clear()
        size = 0

    root_fd = os.open(layer.directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with open_file(layer.recipe) as recipe:
            assemble(recipe, root_fd, take, label)
    finally:
        os.close(root_fd)
    flush()
    if hasher.hexdigest() != layer.diff_id.encoded:
        raise ImageError(f"{label} has changed since it was loaded: {layer.directory}", "load its image again")


def verify(layer: StoredLayer, progress: Progress = SILENT) -> None:
    """Read the whole layer. Raises ImageError if it is no longer what it was, or OSError."""
    write_tar(layer, lambda block: None, progress)
