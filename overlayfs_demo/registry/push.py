"""Pushes of images: the blobs that the registry lacks, and the manifest last, which makes the image visible there."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

from overlayfs_demo.errors import ImageError
from overlayfs_demo.images.model import Digest, Document, parse_json
from overlayfs_demo.images.progress import SILENT, Progress
from overlayfs_demo.images.reference import Repository
from overlayfs_demo.registry.compressed import GZIP_TYPE, compressed
from overlayfs_demo.registry.download import PARALLEL, Blob
from overlayfs_demo.registry.known_blobs import Known, KnownBlob, read_known, remember
from overlayfs_demo.registry.listener import QUIET, Listener
from overlayfs_demo.registry.moved import Moved
from overlayfs_demo.registry.remote import Manifest, Remote
from overlayfs_demo.registry.upload import Upload, abandon, mounted
from overlayfs_demo.store.save import CONFIG_TYPE, LAYER_TYPE, MANIFEST_TYPE, descriptor, manifest_json
from overlayfs_demo.store.store import Store
from overlayfs_demo.store.stored import StoredImage, StoredLayer

ALREADY = "Layer already exists"
PUSHED = "Pushed"
# How many other repositories are tried for one layer; docker's limit depends on the layer's size.
_MOST_SOURCES = 3


@dataclass(frozen=True, slots=True)
class Pushed:
    """An image that is now in a registry. `compressed` counts the layers that had to be compressed for this."""

    digest: Digest
    size: int
    moved: Moved
    compressed: int


@dataclass(frozen=True, slots=True)
class _Settled:
    """A layer that the registry has: its blob there, whether it was sent, and whether it was compressed for this."""

    blob: KnownBlob
    sent: bool
    compressed: bool


def sources(store: Store, image: StoredImage, target: Repository) -> list[str]:
    """Return the paths of other repositories of a registry that had layers of an image, so a blob may be mounted."""
    known = read_known(store)
    blobs = [blob for layer in image.layers for blob in _mountable(known.blobs.get(layer.diff_id, ()), target)]
    return list(dict.fromkeys(blob.repository.removeprefix(f"{target.domain}/") for blob in blobs))


def _mountable(known: Sequence[KnownBlob], target: Repository) -> list[KnownBlob]:
    """Return those blobs that other repositories of the same registry have."""
    found = [
        blob for blob in known if blob.repository.startswith(f"{target.domain}/") and blob.repository != target.full
    ]
    return found[:_MOST_SOURCES]


def push(store: Store, remote: Remote, image: StoredImage, tag: str, listener: Listener = QUIET) -> Pushed:
    """Push one image under a tag. Raises RegistryError, ImageError, OSError; the tag is then what it was."""
    config = Blob(image.id, len(image.config), f"config of {image.title}")
    layers = {layer.diff_id: layer for layer in image.layers}
    with _Uploads(store, remote, listener) as uploads:
        futures = {
            diff_id: uploads.begin_layer(layer, f"layer {number} of {len(layers)} ({diff_id.short})")
            for number, (diff_id, layer) in enumerate(layers.items(), 1)
        }
        uploads.begin_config(config, image.config)
        uploads.wait()
        settled = {diff_id: future.result() for diff_id, future in futures.items()}
        blobs = [settled[layer.diff_id].blob for layer in image.layers]
        manifest = _manifest(uploads.known.manifests.get(image.id), config, blobs)
        remote.put_manifest(tag, manifest)
    with store.writing(), contextlib.suppress(OSError):
        remember(store, image.id, manifest, ((diff_id, each.blob) for diff_id, each in settled.items()))
    compressed_here = sum(each.compressed for each in settled.values())
    return Pushed(manifest.digest, len(manifest.data), _moved(list(settled.values())), compressed_here)


def _manifest(known: Manifest | None, config: Blob, blobs: Sequence[KnownBlob]) -> Manifest:
    """Return the manifest of an image with these blobs: the one that it had, if it names just these, or a new one."""
    if known is not None and _names(known, config, blobs):
        return known
    data = manifest_json(
        descriptor(CONFIG_TYPE, config.digest, config.size),
        [descriptor(_oci_type(blob.media_type), blob.digest, blob.size) for blob in blobs],
    )
    return Manifest(data, Digest.of(data), MANIFEST_TYPE)


def _names(manifest: Manifest, config: Blob, blobs: Sequence[KnownBlob]) -> bool:
    try:
        document = Document(parse_json(manifest.data, "manifest"), "manifest")
        named = [(row.digest("digest"), row.size("size")) for row in document.documents("layers")]
        row = document.document("config")
        named.append((row.digest("digest"), row.size("size")))
    except ImageError:
        return False
    return named == [*((blob.digest, blob.size) for blob in blobs), (config.digest, config.size)]


def _moved(settled: Sequence[_Settled]) -> Moved:
    sent = [each.blob.size for each in settled if each.sent]
    spared = [each.blob.size for each in settled if not each.sent]
    return Moved(len(settled), len(spared), sum(sent), sum(spared))


def _oci_type(media_type: str) -> str:
    """Return OCI's media type for a layer that another format names (layer.md, "Media Types")."""
    for suffix, found in (("gzip", GZIP_TYPE), ("zstd", f"{LAYER_TYPE}+zstd")):
        if media_type.endswith(suffix):
            return found
    return LAYER_TYPE


class _Uploads:
    """The uploads of one push, some at a time. After an error, those that still run are broken off and cancelled."""

    def __init__(self, store: Store, remote: Remote, listener: Listener) -> None:
        self._store = store
        self._remote = remote
        self._listener = listener
        self.known: Known = read_known(store)
        self._threads = ThreadPoolExecutor(PARALLEL, "upload")
        self._running: list[Future[Any]] = []
        self._uploads: list[Upload] = []

    def __enter__(self) -> _Uploads:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._remote.client.stop()
        self._threads.shutdown(wait=True, cancel_futures=True)
        begun = [upload.location for upload in self._uploads if upload.location]
        if begun:
            with self._remote.client.successor() as client:
                for location in begun:
                    abandon(Remote(client, self._remote.repository), location)

    def begin_layer(self, layer: StoredLayer, title: str) -> Future[_Settled]:
        """Begin to bring a layer to the registry."""
        running = self._threads.submit(self._settle, layer, title)
        self._running.append(running)
        return running

    def begin_config(self, blob: Blob, data: bytes) -> None:
        """Begin to upload a config."""
        self._running.append(self._threads.submit(self._send_config, blob, data))

    def wait(self) -> None:
        """Wait for all. Raises the first error at once."""
        finished, _ = wait(self._running, return_when=FIRST_EXCEPTION)
        for running in finished:
            running.result()

    def _settle(self, layer: StoredLayer, title: str) -> _Settled:
        word = layer.diff_id.short
        known = self.known.blobs.get(layer.diff_id, ())
        for blob in known:
            if self._remote.has_blob(blob.digest, blob.size):
                self._listener.done(word, ALREADY)
                return self._kept(blob)
        for blob in _mountable(known, self._remote.repository):
            source = blob.repository.removeprefix(f"{self._remote.repository.domain}/")
            if mounted(self._remote, blob.digest, source):
                self._listener.done(word, f"Mounted from {source}")
                return self._kept(blob)
        return self._compress_and_send(layer, title)

    def _kept(self, blob: KnownBlob) -> _Settled:
        here = KnownBlob(blob.digest, blob.size, blob.media_type, self._remote.repository.full)
        return _Settled(here, sent=False, compressed=False)

    def _compress_and_send(self, layer: StoredLayer, title: str) -> _Settled:
        word = layer.diff_id.short
        blob, file = compressed(layer, title, self._store.tmp, self._listener, self._remote.client.require_running)
        with file:
            there = self._remote.has_blob(blob.digest, blob.size)
            if not there:
                self._send(blob, file, self._listener.begin(word, "Pushing", blob.size))
        self._listener.done(word, ALREADY if there else PUSHED)
        known = KnownBlob(blob.digest, blob.size, GZIP_TYPE, self._remote.repository.full)
        return _Settled(known, sent=not there, compressed=True)

    def _send_config(self, blob: Blob, data: bytes) -> None:
        if self._remote.has_blob(blob.digest, blob.size):
            return
        with cast(BinaryIO, tempfile.TemporaryFile(dir=self._store.tmp)) as file:
            file.write(data)
            file.flush()
            self._send(blob, file, SILENT)

    def _send(self, blob: Blob, file: BinaryIO, progress: Progress) -> None:
        upload = Upload(self._remote, blob, file, progress)
        self._uploads.append(upload)
        upload.run()
