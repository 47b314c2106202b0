"""The record of the blobs that stored layers were in registries: a file of the store, `blobs.json`.

A layer's diff ID does not say how its tar was compressed, so it does not give the digest of its blob. What was pulled
or pushed once is recorded. So a push finds a layer that the registry has already, in this repository or in another one.
A record only saves work: without the file, layers are compressed and pushed again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from overlayfs_demo.errors import ImageError
from overlayfs_demo.images.model import Digest, Document, parse_json
from overlayfs_demo.images.record_file import read_file
from overlayfs_demo.store import durable
from overlayfs_demo.store.store import Store

_FILE = "blobs.json"
# For each layer; the oldest are forgotten.
_MOST = 16


@dataclass(frozen=True, slots=True)
class KnownBlob:
    """A blob that holds a layer: its digest, size in bytes and media type, and a repository that has it, in full."""

    digest: Digest
    size: int
    media_type: str
    repository: str


KnownBlobs = Mapping[Digest, tuple[KnownBlob, ...]]


def read_known(store: Store) -> KnownBlobs:
    """Return the known blobs by diff ID, the newest first; nothing if the file is damaged."""
    path = store.root / _FILE
    try:
        rows = Document(parse_json(read_file(path), str(path)), str(path))
        return {
            Digest.parse(diff_id, str(path)): tuple(
                KnownBlob(row.digest("digest"), row.size("size"), row.text("media_type"), row.text("repository"))
                for row in rows.documents(diff_id)
            )
            for diff_id in rows
        }
    except (ImageError, OSError):
        return {}


def remember(store: Store, blobs: Iterable[tuple[Digest, KnownBlob]]) -> None:
    """Record blobs, each with the diff ID of the layer that it holds. Layers that are gone are forgotten.

    Call while `writing`. Raises OSError.
    """
    before = read_known(store)
    known = {layer.diff_id: list(before.get(layer.diff_id, ())) for layer in store.layers()}
    for diff_id, blob in blobs:
        if diff_id in known:
            known[diff_id] = [blob, *(other for other in known[diff_id] if other != blob)][:_MOST]
    if known == {diff_id: list(found) for diff_id, found in before.items()}:
        return
    rows = {
        str(diff_id): [
            {
                "digest": str(blob.digest),
                "size": blob.size,
                "media_type": blob.media_type,
                "repository": blob.repository,
            }
            for blob in found
        ]
        for diff_id, found in known.items()
        if found
    }
    durable.write_file(store.root / _FILE, json.dumps(rows).encode(), store.tmp / f"{_FILE}.new")
