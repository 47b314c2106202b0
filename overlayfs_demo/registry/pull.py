"""Pulls of images: from a registry into the store, as `load` does it from an archive.

Nothing is locked while blobs arrive, and nothing is in the store before the last one has. Then the image is loaded, the
whole of it or nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from overlayfs_demo.images.model import Digest, Image, Platform
from overlayfs_demo.images.progress import SILENT, Progress
from overlayfs_demo.images.reference import ImageName, Reference
from overlayfs_demo.registry.download import Blob, Downloads
from overlayfs_demo.registry.known_blobs import KnownBlob, remember
from overlayfs_demo.registry.listener import QUIET, Listener
from overlayfs_demo.registry.moved import Moved
from overlayfs_demo.registry.remote import Remote
from overlayfs_demo.registry.remote_image import RegistryArchive, chosen_manifest, read_image
from overlayfs_demo.store.load import load_one
from overlayfs_demo.store.store import Store
from overlayfs_demo.store.stored import StoredImage

ALREADY = "Already exists"
COMPLETE = "Pull complete"


@dataclass(frozen=True, slots=True)
class Pulled:
    """An image that is now in the store. `digest` is that of what the tag stands for in the registry.

    `newer` says that the name did not stand for this image before; `left_out` is that of `Loaded`.
    """

    image: StoredImage
    name: ImageName | None
    digest: Digest
    moved: Moved
    newer: bool
    left_out: Mapping[str, int]


def pull(
    store: Store, remote: Remote, reference: Reference, platform: Platform | None = None, listener: Listener = QUIET
) -> Pulled:
    """Pull one image. By a digest it gets no name, as with docker. Raises RegistryError, ImageError, OSError."""
    name = None if reference.digest is not None else reference.name
    wanted = reference.name.tag if reference.digest is None else str(reference.digest)
    top = remote.manifest(wanted, reference.digest)
    manifest = chosen_manifest(remote, wanted, top, platform)
    label = f"{remote.title}{'@' if reference.digest else ':'}{wanted}"
    with (
        Downloads(remote, store.tmp, listener) as downloads,
        contextlib.closing(RegistryArchive(label, manifest, name, downloads, store.tmp)) as archive,
    ):
        image = read_image(archive, remote, manifest)
        plan = _Plan(store, archive, image)
        for blob in plan.here:
            listener.done(blob.digest.short, ALREADY)
        downloads.begin(plan.missing.values())
        downloads.wait()
        with store.writing():
            before = store.names_by_image()
            loaded = load_one(store, archive, image, _Extraction(listener, plan.words))
            with contextlib.suppress(OSError):
                remember(store, loaded.image.id, manifest, plan.known(remote.repository.full))
        for digest in plan.missing:
            listener.done(digest.short, COMPLETE)
    newer = name not in before.get(loaded.image.id, ()) if name else loaded.image.id not in before
    return Pulled(loaded.image, name, top.digest, plan.moved, newer, loaded.left_out)


class _Plan:
    """Which layers of an image must be fetched, and in which blobs they are."""

    def __init__(self, store: Store, archive: RegistryArchive, image: Image) -> None:
        self._layers = [(layer, archive.blob(layer)) for layer in image.layers]
        rows = zip(self._layers, image.chain_ids, strict=True)
        absent = [blob for (_, blob), chain_id in rows if store.whole_layer(chain_id) is None]
        # A blob that holds several layers is fetched once.
        self.missing: dict[Digest, Blob] = {blob.digest: blob for blob in absent}
        self.here = [blob for _, blob in self._layers if blob.digest not in self.missing]

    @property
    def words(self) -> list[str]:
        """The words by which a listener knows the layers."""
        return [blob.digest.short for _, blob in self._layers]

    @property
    def moved(self) -> Moved:
        moved, here = (sum(blob.size for blob in blobs) for blobs in (self.missing.values(), self.here))
        return Moved(len(self._layers), len(self.here), moved, here)

    def known(self, repository: str) -> list[tuple[Digest, KnownBlob]]:
        """Return what to record of the layers that were fetched, whose digests were therefore verified."""
        return [
            (layer.diff_id, KnownBlob(blob.digest, blob.size, layer.media_type, repository))
            for layer, blob in self._layers
            if blob.digest in self.missing
        ]


class _Extraction(Progress):
    """The progress of loading an image, whose steps are its layers from the bottom up."""

    def __init__(self, listener: Listener, words: Sequence[str]) -> None:
        self._listener = listener
        self._words = iter(words)
        self._present: Progress = SILENT

    def step(self, title: str, size: int | None = None) -> None:
        word = next(self._words, title)
        self._present = self._listener.begin(word, "Extracting", size) if size else SILENT

    def advance(self, count: int) -> None:
        self._present.advance(count)
