"""Loader of archives into the store: each layer once, and the whole image or nothing.

Every layer is unpacked under a name in `tmp/` and checked against its digests. Layers get their final places once the
last layer of their image has passed, and the image exists once its config does. So an interrupted load leaves at most
leftovers in `tmp/`, which the next writer sweeps, and layers without an image, which do no harm. A bad image does not
keep the other images of its archive out.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from overlayfs_demo.errors import ImageError
from overlayfs_demo.images.archive import Archive, open_archive, open_stream
from overlayfs_demo.images.dockerfile_change import changed
from overlayfs_demo.images.extract import extract_layer
from overlayfs_demo.images.formats import Candidate, NotAnImage, contents
from overlayfs_demo.images.layer_tree import remove_tree
from overlayfs_demo.images.model import Digest, Image, Layer, Platform, running_platform
from overlayfs_demo.images.progress import SILENT, Progress
from overlayfs_demo.images.reference import ImageName
from overlayfs_demo.images.select import by_name, nameless_but, of_platform
from overlayfs_demo.store.store import Store
from overlayfs_demo.store.stored import RECIPE, StoredImage, StoredLayer


@dataclass(frozen=True, slots=True)
class Loaded:
    """One image that is now in the store.

    `names` are the names that this archive gave it, each once; it may have others. `skipped` are the layers that were
    already in the store; `displaced` the images that lost a name to this one; `left_out` says what an ordinary user
    could not keep, and in how many members.
    """

    image: StoredImage
    names: tuple[ImageName, ...]
    skipped: tuple[StoredLayer, ...]
    displaced: Mapping[ImageName, Digest]
    left_out: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Failed:
    """One image that could not be loaded, and the error."""

    title: str
    error: ImageError | OSError


@dataclass(slots=True)
class Outcome:
    """The result of loading an archive, in its order. Iterating gives the images that are now in the store."""

    images: list[Loaded] = field(default_factory=list)
    failed: list[Failed] = field(default_factory=list)
    others: tuple[NotAnImage, ...] = ()

    def __iter__(self) -> Iterator[Loaded]:
        return iter(self.images)

    def add(self, loaded: Loaded) -> None:
        """Add an image; an archive may list the same image several times, under several names."""
        for place, before in enumerate(self.images):
            if before.image.id == loaded.image.id:
                names = tuple(dict.fromkeys([*before.names, *loaded.names]))
                self.images[place] = replace(before, names=names, displaced={**before.displaced, **loaded.displaced})
                return
        self.images.append(loaded)


def load(
    store: Store,
    source: Path | BinaryIO,
    platform: Platform | None = None,
    progress: Progress = SILENT,
    *,
    every_platform: bool = False,
) -> Outcome:
    """Load every image of an archive file, an unpacked archive, or a stream (kept in an unnamed file).

    Of each image, load the platform that `select.of_platform` chooses, or with `every_platform` all: then the name goes
    to the running machine's platform, or to the last one if there is none for this machine. If several images have the
    same name, the last gets it. Raises ImageError or OSError if the archive, or its only image, cannot be used; if it
    has several images, a bad one is reported in the outcome instead. Nothing of a bad image stays.
    """
    outcome = Outcome()
    with store.writing(), _opened(store, source, progress) as archive:
        found = contents(archive)
        outcome.others = found.others
        for group in by_name(found.candidates):
            try:
                chosen = _all_platforms(archive, group) if every_platform else of_platform(archive, group, platform)
            except ImageError as error:
                outcome.failed.append(Failed(group[0].title, error))
                continue
            for candidate in chosen:
                _load_candidate(store, archive, candidate, progress, outcome)
        if not outcome.images and len(outcome.failed) == 1:
            raise outcome.failed[0].error
        now = store.names_by_image()
        outcome.images = [_named(loaded, now.get(loaded.image.id, ())) for loaded in outcome.images]
    return outcome


def _named(loaded: Loaded, now: tuple[ImageName, ...]) -> Loaded:
    """Return the same with the names that the image has now: a later one of the archive may have taken some."""
    names = tuple(name for name in loaded.names if name in now)
    image = replace(loaded.image, names=now, name=names[0] if names else None)
    return replace(loaded, image=image, names=names)


def _all_platforms(archive: Archive, group: list[Candidate]) -> list[Candidate]:
    try:
        named = of_platform(archive, group, None)
    except ImageError:
        named = group[-1:]
    return nameless_but(group, named)


def _load_candidate(store: Store, archive: Archive, candidate: Candidate, progress: Progress, outcome: Outcome) -> None:
    try:
        image = candidate.read()
        if not image.config:
            raise ImageError(
                f"{archive.label} is the tree of a container, not an image",
                "'overlayfs-demo import' turns it into an image",
            )
        outcome.add(_Load(store, archive, image, progress).run())
    except (ImageError, OSError) as error:
        outcome.failed.append(Failed(candidate.title, error))


def load_one(store: Store, archive: Archive, image: Image, progress: Progress) -> Loaded:
    """Load one image whose new layers are in the archive. Call while `writing`."""
    return _Load(store, archive, image, progress).run()


def import_tree(
    store: Store,
    source: Path | BinaryIO,
    name: ImageName | None = None,
    *,
    changes: Sequence[str] = (),
    comment: str = "",
    progress: Progress = SILENT,
) -> Loaded:
    """Make a one-layer image from the tar of a tree, as `docker import` does.

    `changes` are Dockerfile instructions, see `images.dockerfile_change`. Raises ImageError, UsageError.
    """
    settings = changed({}, changes)
    with store.writing(), _opened(store, source, progress) as archive:
        diff_id = archive.whole_digest(progress)
        system = running_platform()
        when = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        config = {
            "architecture": system.architecture,
            "config": settings,
            "created": when,
            "history": [{"created": when, "created_by": "", "comment": comment or f"Imported from {archive.label}"}],
            "os": system.os,
            "rootfs": {"type": "layers", "diff_ids": [str(diff_id)]},
        }
        tags = () if name is None else (str(name),)
        image = Image(json.dumps(config, sort_keys=True).encode(), (Layer(diff_id, ""),), tags=tags)
        return _Load(store, archive, image, progress).run()


def _opened(store: Store, source: Path | BinaryIO, progress: Progress) -> AbstractContextManager[Archive]:
    if isinstance(source, Path):
        return open_archive(source, scratch=store.tmp, progress=progress)
    return open_stream(source, store.tmp, "standard input", progress)


class _Load:
    """One image on its way into the store."""

    def __init__(self, store: Store, archive: Archive, image: Image, progress: Progress) -> None:
        self._store = store
        self._archive = archive
        self._image = image
        self._progress = progress
        self._names = tuple(dict.fromkeys(map(ImageName.parse, image.tags)))
        self._left_out: Counter[str] = Counter()
        # Unpacked layers. They are removed with this load, because the next image may have the same layers.
        self._place = store.tmp / "unpacked"

    def run(self) -> Loaded:
        """Load the image. Raises ImageError or OSError, and leaves nothing behind in that case."""
        self._place.mkdir(0o700)
        try:
            return self._run()
        finally:
            tmp = os.open(self._store.tmp, os.O_RDONLY | os.O_DIRECTORY)
            try:
                remove_tree(tmp, os.fsencode(self._place.name), tmp)
            finally:
                os.close(tmp)

    def _run(self) -> Loaded:
        skipped = []
        # Directories that are complete but not published yet, each with the layer it will be.
        staged: list[tuple[Path, StoredLayer]] = []
        below: list[Path] = []
        total = len(self._image.layers)
        for number, (layer, chain_id) in enumerate(zip(self._image.layers, self._image.chain_ids, strict=True), 1):
            stored = self._store.whole_layer(chain_id)
            title = f"layer {number} of {total} ({layer.diff_id.short})"
            if stored is not None:
                self._progress.step(f"{title} is already stored", 0)
                self._require_usable(stored)
                skipped.append(stored)
                below.append(stored.directory)
                continue
            self._progress.step(title, self._archive.layer_size(layer))
            directory, made = self._unpack(number, layer, chain_id, below)
            staged.append((directory, made))
            below.append(directory)
        # Publish only now, when every layer has passed, and add the image last: its config makes it exist.
        self._store.publish_layers(staged)
        identity = self._store.add_image(self._image.config)
        displaced = self._store.give_names(self._names, identity) if self._names else {}
        image = replace(self._store.image(identity), name=self._names[0] if self._names else None)
        return Loaded(image, self._names, tuple(skipped), displaced, self._left_out)

    def _require_usable(self, stored: StoredLayer) -> None:
        if stored.marks != self._store.marks.prefix:
            raise ImageError(
                f"layer {stored.diff_id.short} was stored by {'root' if stored.owners else 'an ordinary user'}",
                "use a store of your own: --store, or OVERLAYFS_DEMO_STORE",
            )

    def _unpack(self, number: int, layer: Layer, chain_id: Digest, below: list[Path]) -> tuple[Path, StoredLayer]:
        store, owners = self._store, os.geteuid() == 0
        staged = self._place / chain_id.encoded
        staged.mkdir(0o700)
        root_fd = os.open(staged, os.O_RDONLY | os.O_DIRECTORY)
        spare_fd = os.open(self._place, os.O_RDONLY | os.O_DIRECTORY)
        try:
            done = extract_layer(
                self._archive,
                layer,
                str(number),
                root_fd,
                spare_fd,
                below,
                store.marks,
                owners,
                staged.with_suffix(RECIPE),
                self._progress,
            )
        finally:
            os.close(root_fd)
            os.close(spare_fd)
        self._left_out.update(done.left_out)
        made = StoredLayer(chain_id, layer.diff_id, store.place(chain_id), done.size, store.marks.prefix, owners)
        return staged, made
