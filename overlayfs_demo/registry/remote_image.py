"""An image in a registry as an archive: its members are blobs, which are fetched when they are needed.

So the same code reads an image from a registry and from an OCI layout: `formats` finds it, `config` checks it, and
`unpack` makes its layers.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, cast

from overlayfs_demo.errors import ImageError, RegistryError
from overlayfs_demo.images.archive import Archive, Member
from overlayfs_demo.images.formats import Candidate, Names, contents
from overlayfs_demo.images.layer_stream import LayerReader
from overlayfs_demo.images.model import Digest, Document, Image, Layer, Platform
from overlayfs_demo.images.progress import SILENT, Progress
from overlayfs_demo.images.reference import ImageName
from overlayfs_demo.images.select import of_platform
from overlayfs_demo.registry.client import MAX_DOCUMENT
from overlayfs_demo.registry.download import Blob, Downloads
from overlayfs_demo.registry.remote import INDEXES, MANIFESTS, Manifest, Remote, faults

# An index may list indexes; nobody nests them deeper.
_MAX_NESTING = 3
_MAX_ENTRIES = 10_000


class RegistryArchive(Archive):
    """One manifest of a registry as an OCI image layout. Its blobs come from `downloads`, which the caller closes."""

    def __init__(self, label: str, manifest: Manifest, name: ImageName | None, downloads: Downloads, scratch: Path):
        super().__init__(label)
        self._downloads = downloads
        self._own: dict[str, BinaryIO] = {}
        self.blobs: dict[str, Blob] = {}
        descriptor: dict[str, object] = {
            "mediaType": manifest.media_type,
            "digest": str(manifest.digest),
            "size": len(manifest.data),
        }
        if name is not None:
            descriptor["annotations"] = {"io.containerd.image.name": name.full}
        documents = {
            "oci-layout": json.dumps({"imageLayoutVersion": "1.0.0"}).encode(),
            "index.json": json.dumps({"schemaVersion": 2, "manifests": [descriptor]}).encode(),
            _place(manifest.digest): manifest.data,
        }
        for place, data in documents.items():
            file = cast(BinaryIO, tempfile.TemporaryFile(dir=scratch))  # noqa: SIM115 - `close` closes it
            self._own[place] = file
            file.write(data)
            file.flush()
            self._add(place, Member(0, len(data), None, directory=False))

    def close(self) -> None:
        """Close the archive's own files."""
        for file in self._own.values():
            file.close()

    def add_blob(self, blob: Blob) -> None:
        """Add a blob that the manifest names; one that is named twice is one blob."""
        blob = replace(blob, title=f"{blob.title} of {self.label}")
        place = _place(blob.digest)
        if place not in self.blobs and place not in self._own:
            self.blobs[place] = blob
            self._add(place, Member(0, blob.size, None, directory=False))

    def blob(self, layer: Layer) -> Blob:
        """Return the blob that holds a layer."""
        return self.blobs[layer.member]

    def open_layer(self, layer: Layer, progress: Progress = SILENT) -> LayerReader:
        """Return a reader of a layer's tar, see `Archive`. The blob's own digest was checked when it arrived."""
        blob = self.blob(layer)
        return LayerReader(self._descriptor(layer.member), 0, blob.size, blob.title, layer.diff_id, None, progress)

    def _descriptor(self, member: str) -> int:
        if member in self._own:
            return self._own[member].fileno()
        blob = self.blobs[member]
        # A layer that was here when the downloads began may have been removed since.
        self._downloads.begin([blob], silent=True)
        return self._downloads.file(blob.digest).fileno()

    def _whole(self) -> int | None:
        return None


def _place(digest: Digest) -> str:
    return f"blobs/{digest.algorithm}/{digest.encoded}"


def chosen_manifest(remote: Remote, reference: str, manifest: Manifest, platform: Platform | None) -> Manifest:
    """Return the manifest of one platform: that in an index which `select.of_platform` chooses, or the given one.

    Raises RegistryError, ImageError.
    """
    for _ in range(_MAX_NESTING):
        if not manifest.is_index:
            return manifest
        wanted = _of_index(remote, reference, manifest, platform)
        manifest = remote.manifest(str(wanted), wanted)
    raise RegistryError(f"{remote.client.title}: {remote.title}:{reference} nests indexes too deeply", "name a digest")


def _of_index(remote: Remote, reference: str, index: Manifest, platform: Platform | None) -> Digest:
    """Return the digest of the manifest in an index that suits a platform."""
    label = f"{remote.title}:{reference}"
    with faults():
        entries = remote.document(index.data, f"index {reference} of {remote.title}").documents("manifests")
        if len(entries) > _MAX_ENTRIES:
            raise ImageError(f"{remote.client.title}: {label} lists more than {_MAX_ENTRIES} manifests")
        found = [candidate for entry in entries if (candidate := _candidate(entry)) is not None]
    if not found:
        raise ImageError(f"{label} lists no image for any platform", "check the name and tag")
    digest = of_platform(Archive(label), found, platform)[0].identity
    assert digest is not None, "_candidate sets it"
    return digest


def _candidate(entry: Document) -> Candidate | None:
    """Return what an index says about an image; None if the entry is something else, such as an attestation."""
    if entry.text("mediaType", "") not in (*MANIFESTS, *INDEXES):
        return None
    place, platform = entry.document("platform"), None
    if entry.has("platform"):
        platform = Platform(place.text("os"), place.text("architecture"), place.text("variant", ""))
        if platform.os == "unknown":
            return None

    def read() -> Image:
        raise NotImplementedError("only the digest is wanted")

    return Candidate(Names(), entry.digest("digest"), platform, read)


def read_image(archive: RegistryArchive, remote: Remote, manifest: Manifest) -> Image:
    """Return the image of a manifest, whose config is fetched now. Raises RegistryError."""
    with faults():
        document = remote.document(manifest.data, f"manifest of {archive.label}")
        if document.has("config"):
            row = document.document("config")
            config = Blob(row.digest("digest"), row.size("size"), "config")
            if config.size > MAX_DOCUMENT:
                raise ImageError(
                    f"{remote.client.title}: the config of {archive.label} has more than {MAX_DOCUMENT} bytes"
                )
            archive.add_blob(config)
        layers = document.documents("layers")
        for number, row in enumerate(layers, 1):
            digest = row.digest("digest")
            archive.add_blob(Blob(digest, row.size("size"), f"layer {number} of {len(layers)} ({digest.short})"))
        [candidate, *_] = contents(archive).candidates
        return candidate.read()
