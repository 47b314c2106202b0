"""Writer of images in the forms that other programs can read.

All are an OCI image layout (image-layout.md). Docker's archive, since version 25, has `manifest.json` beside it for
programs that know only that. Layers are written uncompressed, byte for byte the tars that they were, so their digests
stay the same. Each tar is put together from its directory and recipe, and its digest is checked on the way.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import BinaryIO

from overlayfs_demo.images.model import Digest
from overlayfs_demo.images.progress import SILENT, Progress
from overlayfs_demo.images.record_file import open_file
from overlayfs_demo.images.reference import ImageName
from overlayfs_demo.images.tarsplit import tar_size
from overlayfs_demo.store.layer_tar import write_tar
from overlayfs_demo.store.save_sink import Sink, TarSink
from overlayfs_demo.store.stored import StoredImage, StoredLayer

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"

Descriptor = Mapping[str, object]


def save(images: Sequence[StoredImage], out: BinaryIO, progress: Progress = SILENT) -> None:
    """Write the images as the archive that `docker save` writes, see `write_layout`. The caller owns `out`."""
    write_layout(images, TarSink(out), progress, docker=True)


def write_layout(
    images: Sequence[StoredImage], out: Sink, progress: Progress = SILENT, *, docker: bool = False
) -> None:
    """Write the images as an OCI layout; with `docker`, also the `manifest.json` that Docker reads.

    Raises ImageError if a layer is no longer what it was, or OSError.

    Each image gets only the names by which it was requested (`StoredImage.name`): others may be private, and the
    receiver may use the same name for something else. An image may be given several times, under several names.
    The same images give the same bytes. After an error, the caller must remove what was written so far.
    """
    layout = _Layout(out, progress)
    rows, descriptors = [], []
    for image in {given.id: given for given in images}.values():
        names = tuple(dict.fromkeys(given.name for given in images if given.id == image.id and given.name is not None))
        layers = [layout.layer(layer) for layer in image.layers]
        config = layout.blob(image.config, CONFIG_TYPE)
        manifest = layout.blob(manifest_json(config, layers), MANIFEST_TYPE)
        platform = {"architecture": image.parsed.platform.architecture, "os": image.parsed.platform.os}
        entry = {**manifest, "platform": platform}
        descriptors += [{**entry, "annotations": _annotations(name)} for name in names] or [entry]
        rows.append(
            {
                "Config": _path(image.id),
                "RepoTags": list(map(str, names)),
                "Layers": [_path(layer.diff_id) for layer in image.layers],
            }
        )
    out.file("index.json", _json({"schemaVersion": 2, "manifests": descriptors}))
    if docker:
        out.file("manifest.json", _json(rows))
    out.file("oci-layout", _json({"imageLayoutVersion": "1.0.0"}))
    out.end()


def _annotations(name: ImageName) -> dict[str, str]:
    """Return a name as containerd and Docker write it: the full name under containerd's key, the tag under OCI's."""
    return {"io.containerd.image.name": name.full, "org.opencontainers.image.ref.name": name.tag}


def _path(digest: Digest) -> str:
    return f"blobs/{digest.algorithm}/{digest.encoded}"


def manifest_json(config: Descriptor, layers: Sequence[Descriptor]) -> bytes:
    """Return the manifest of an image (manifest.md), whose blobs have these descriptors."""
    return _json({"schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": config, "layers": layers})


def descriptor(media_type: str, digest: Digest, size: int) -> Descriptor:
    """Return the descriptor of a blob of `size` bytes (descriptor.md)."""
    return {"mediaType": media_type, "digest": str(digest), "size": size}


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


class _Layout:
    """The blobs of a layout. One that several images share is written once."""

    def __init__(self, out: Sink, progress: Progress) -> None:
        self._out = out
        self._progress = progress
        self._blobs: set[Digest] = set()

    def blob(self, data: bytes, media_type: str) -> Descriptor:
        """Write a blob; return its descriptor (descriptor.md)."""
        digest = Digest.of(data)
        if digest not in self._blobs:
            self._blobs.add(digest)
            self._out.file(_path(digest), data)
        return descriptor(media_type, digest, len(data))

    def layer(self, layer: StoredLayer) -> Descriptor:
        """Write a layer's tar, put together again; return its descriptor."""
        label = f"layer {layer.diff_id.short}"
        with open_file(layer.recipe) as recipe:
            size = tar_size(recipe, label)
        if layer.diff_id not in self._blobs:
            self._blobs.add(layer.diff_id)
            self._progress.step(label, size)
            with self._out.member(_path(layer.diff_id), size) as write:
                write_tar(layer, write, self._progress)
        return descriptor(LAYER_TYPE, layer.diff_id, size)
