"""Writer of images as an archive that other programs can read.

The format is Docker's since version 25: an OCI image layout (image-layout.md), with Docker's `manifest.json` beside it
for programs that know only that. Layers are written uncompressed, byte for byte the tars that they were, so their
digests stay the same. Each tar is put together from its directory and recipe, and its digest is checked on the way.
"""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Sequence
from typing import BinaryIO

from overlayfs_demo.errors import ImageError
from overlayfs_demo.images.model import Digest
from overlayfs_demo.images.progress import SILENT, Progress
from overlayfs_demo.images.record_file import open_file
from overlayfs_demo.images.reference import ImageName
from overlayfs_demo.images.tarsplit import assemble, tar_size
from overlayfs_demo.store.stored import StoredImage, StoredLayer

_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar"


def save(images: Sequence[StoredImage], out: BinaryIO, progress: Progress = SILENT) -> None:
    """Write the images. Raises ImageError if a layer is no longer what it was, or OSError.

    Each image gets only the names by which it was requested (`StoredImage.name`): others may be private, and the
    receiver may use the same name for something else. An image may be given several times, under several names.
    The same images give the same bytes. After an error, the caller must remove what was written so far.
    """
    archive = _Archive(out, progress)
    rows, descriptors = [], []
    for image in {given.id: given for given in images}.values():
        names = tuple(dict.fromkeys(given.name for given in images if given.id == image.id and given.name is not None))
        layers = [archive.layer(layer) for layer in image.layers]
        config = archive.blob(image.config, _CONFIG)
        manifest = archive.blob(
            _json({"schemaVersion": 2, "mediaType": _MANIFEST, "config": config, "layers": layers}), _MANIFEST
        )
        platform = {"architecture": image.parsed.platform.architecture, "os": image.parsed.platform.os}
        descriptor = {**manifest, "platform": platform}
        descriptors += [{**descriptor, "annotations": _annotations(name)} for name in names] or [descriptor]
        rows.append(
            {
                "Config": _path(image.id),
                "RepoTags": list(map(str, names)),
                "Layers": [_path(layer.diff_id) for layer in image.layers],
            }
        )
    archive.file("index.json", _json({"schemaVersion": 2, "manifests": descriptors}))
    archive.file("manifest.json", _json(rows))
    archive.file("oci-layout", _json({"imageLayoutVersion": "1.0.0"}))
    archive.end()


def _annotations(name: ImageName) -> dict[str, str]:
    """Return a name as containerd and Docker write it: the full name under containerd's key, the tag under OCI's."""
    return {"io.containerd.image.name": name.full, "org.opencontainers.image.ref.name": name.tag}


def _path(digest: Digest) -> str:
    return f"blobs/{digest.algorithm}/{digest.encoded}"


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


class _Archive:
    """The tar, written strictly forward. A blob that several images share is written once."""

    def __init__(self, out: BinaryIO, progress: Progress) -> None:
        self._out = out
        self._progress = progress
        self._blobs: set[Digest] = set()

    def _head(self, name: str, size: int) -> None:
        info = tarfile.TarInfo(name)
        info.size = size
        self._out.write(info.tobuf(tarfile.PAX_FORMAT))

    def _pad(self, size: int) -> None:
        self._out.write(bytes(-size % tarfile.BLOCKSIZE))

    def file(self, name: str, data: bytes) -> None:
        self._head(name, len(data))
        self._out.write(data)
        self._pad(len(data))

    def blob(self, data: bytes, media_type: str) -> dict[str, object]:
        """Write a blob; return its descriptor (descriptor.md)."""
        digest = Digest.of(data)
        if digest not in self._blobs:
            self._blobs.add(digest)
            self.file(_path(digest), data)
        return {"mediaType": media_type, "digest": str(digest), "size": len(data)}

    def layer(self, layer: StoredLayer) -> dict[str, object]:
        """Write a layer's tar, put together again; return its descriptor."""
        label = f"layer {layer.diff_id.short}"
        with open_file(layer.recipe) as recipe:
            size = tar_size(recipe, label)
        if layer.diff_id not in self._blobs:
            self._blobs.add(layer.diff_id)
            self._progress.step(label, size)
            self._head(_path(layer.diff_id), size)
            self._assemble(layer, label)
            self._pad(size)
        return {"mediaType": _LAYER, "digest": str(layer.diff_id), "size": size}

    def _assemble(self, layer: StoredLayer, label: str) -> None:
        hasher = layer.diff_id.hasher()

        def take(data: bytes | memoryview) -> None:
            hasher.update(data)
            self._out.write(data)
            self._progress.advance(len(data))

        root_fd = os.open(layer.directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with open_file(layer.recipe) as recipe:
                assemble(recipe, root_fd, take, label)
        finally:
            os.close(root_fd)
        if hasher.hexdigest() != layer.diff_id.encoded:
            raise ImageError(f"{label} has changed since it was loaded: {layer.directory}", "load its image again")

    def end(self) -> None:
        self._out.write(bytes(2 * tarfile.BLOCKSIZE))
        self._out.flush()
