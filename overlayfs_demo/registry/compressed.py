"""Layers as they are uploaded: the tar that the image names, put together again and compressed with gzip.

The same tar gives the same bytes with the same zlib: the header has no time and no name. Another program, or another
zlib, may compress differently, so the digest need not be the one that the layer had elsewhere.
"""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, cast

from overlayfs_demo.errors import RegistryError
from overlayfs_demo.images.model import Digest
from overlayfs_demo.images.progress import Progress
from overlayfs_demo.images.record_file import open_file
from overlayfs_demo.images.tarsplit import tar_size
from overlayfs_demo.registry.download import Blob
from overlayfs_demo.registry.listener import Listener
from overlayfs_demo.store.layer_tar import write_tar
from overlayfs_demo.store.stored import StoredLayer

GZIP_TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"
# A window of the largest size, with gzip's header and trailer (zlib's manual, deflateInit2).
_GZIP_WINDOW = 31
_LEVEL = 6


class _GzipFile:
    """A file that is written compressed, hashed and counted on the way."""

    def __init__(self, file: BinaryIO, require_running: Callable[[], None]) -> None:
        self._file = file
        self._require_running = require_running
        self._compressor = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP_WINDOW)
        self._hasher = Digest("sha256", "").hasher()
        self.size = 0

    def write(self, data: bytes) -> None:
        self._require_running()
        self._keep(self._compressor.compress(data))

    def finish(self) -> Digest:
        """Write what is left, and return the digest of the file."""
        self._keep(self._compressor.flush())
        self._file.flush()
        return Digest("sha256", self._hasher.hexdigest())

    def _keep(self, data: bytes) -> None:
        self._hasher.update(data)
        self._file.write(data)
        self.size += len(data)


def compressed(
    layer: StoredLayer, title: str, scratch: Path, listener: Listener, require_running: Callable[[], None]
) -> tuple[Blob, BinaryIO]:
    """Return a layer's blob, and an unnamed file in `scratch` that holds it, which the caller closes.

    `title` names the layer in errors. `require_running` is called often; what it raises ends the work. Raises
    ImageError if the layer has changed, RegistryError if there is no room.
    """
    with open_file(layer.recipe) as recipe:
        progress: Progress = listener.begin(layer.diff_id.short, "Compressing", tar_size(recipe, title))
    file = cast(BinaryIO, tempfile.TemporaryFile(dir=scratch))  # noqa: SIM115 - the caller closes it
    try:
        packed = _GzipFile(file, require_running)
        write_tar(layer, packed.write, progress)
        return Blob(packed.finish(), packed.size, title), file
    except BaseException as error:
        with suppress(OSError):
            file.close()
        if isinstance(error, OSError):
            raise RegistryError(f"{title} cannot be compressed: {error.strerror}", "make room in the store") from None
        raise
