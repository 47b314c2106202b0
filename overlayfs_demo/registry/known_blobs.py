"""The record of what stored images were in registries: a file of the store, `blobs.json`.

A layer's diff ID does not say how its tar was compressed, so it does not give the digest of its blob. What was pulled
or pushed once is recorded. So a push finds a layer that the registry has already, in this repository or in another one.
If all layers are found, the image also keeps its manifest, and so its digest. A record only saves work: without the
file, layers are compressed and pushed again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from overlayfs_demo.errors import ImageError
from overlayfs_demo.images.model import Digest, Document, parse_json
from overlayfs_demo.images.record_file import read_file
from overlayfs_demo.registry.remote import Manifest
from overlayfs_demo.store import durable
from overlayfs_demo.store.store import Store

_FILE = "blobs.json"
# For each layer; the oldest are forgotten.
_MOST = 16
# A manifest with more bytes is not recorded; that of an image with a hundred layers has 20,000.
_LARGEST_MANIFEST = 1 << 16


@dataclass(frozen=True, slots=True)
class KnownBlob:
    """A blob that holds a layer: its digest, size in bytes and media type, and a repository that has it, in full."""

    digest: Digest
    size: int
    media_type: str
    repository: str


@dataclass(frozen=True, slots=True)
class Known:
    """The blobs of each layer by its diff ID, the newest first, and the last manifest of each image by its ID."""

    blobs: Mapping[Digest, tuple[KnownBlob, ...]] = field(default_factory=dict)
    manifests: Mapping[Digest, Manifest] = field(default_factory=dict)


def read_known(store: Store) -> Known:
    """Return what is recorded; nothing if the file is damaged."""
    path = store.root / _FILE
    where = str(path)
    try:
        record = Document(parse_json(read_file(path), where), where)
        layers, manifests = record.document("layers"), record.document("manifests")
        return Known(
            {Digest.parse(key, where): tuple(map(_blob, layers.documents(key))) for key in layers},
            {Digest.parse(key, where): _manifest(manifests.document(key)) for key in manifests},
        )
    except (ImageError, OSError):
        return Known()


def _blob(row: Document) -> KnownBlob:
    return KnownBlob(row.digest("digest"), row.size("size"), row.text("media_type"), row.text("repository"))


def _manifest(row: Document) -> Manifest:
    data = row.text("data").encode()
    return Manifest(data, Digest.of(data), row.text("media_type"))


def remember(store: Store, image: Digest, manifest: Manifest, blobs: Iterable[tuple[Digest, KnownBlob]]) -> None:
    """Record an image's manifest and blobs, each with the diff ID of the layer that it holds.

    Images and layers that are gone are forgotten. Call while `writing`. Raises OSError.
    """
    before, inventory = read_known(store), store.inventory()
    known = {layer.diff_id: before.blobs.get(layer.diff_id, ()) for layer in inventory.layers}
    for diff_id, blob in blobs:
        known[diff_id] = (blob, *(other for other in known.get(diff_id, ()) if other != blob))[:_MOST]
    manifests = {stored.id: before.manifests[stored.id] for stored in inventory.images if stored.id in before.manifests}
    if len(manifest.data) <= _LARGEST_MANIFEST:
        manifests[image] = manifest
    after = Known({diff_id: found for diff_id, found in known.items() if found}, manifests)
    if after != before:
        durable.write_file(store.root / _FILE, _json(after), store.tmp / f"{_FILE}.new")


def _json(known: Known) -> bytes:
    layers = {
        str(diff_id): [
            {
                "digest": str(blob.digest),
                "size": blob.size,
                "media_type": blob.media_type,
                "repository": blob.repository,
            }
            for blob in blobs
        ]
        for diff_id, blobs in known.blobs.items()
    }
    manifests = {
        # A manifest that is not valid UTF-8 would not come back as it was, so no image keeps it.
        str(image): {"media_type": manifest.media_type, "data": manifest.data.decode("utf-8", "replace")}
        for image, manifest in known.manifests.items()
    }
    return json.dumps({"layers": layers, "manifests": manifests}).encode()
