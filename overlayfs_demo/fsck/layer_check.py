"""Layers of a store: record, recipe and contents."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from overlayfs_demo.errors import ImageError, OverlayError
from overlayfs_demo.fsck.finding import Finding
from overlayfs_demo.fsck.store_parts import Parts, shown
from overlayfs_demo.images.model import Digest
from overlayfs_demo.images.progress import Progress
from overlayfs_demo.images.record_file import open_file
from overlayfs_demo.images.tarsplit import tar_size
from overlayfs_demo.store import durable
from overlayfs_demo.store.layer_tar import verify
from overlayfs_demo.store.stored import RECIPE, RECORD, StoredLayer


def layers(parts: Parts, progress: Progress, sound: set[Digest], *, quick: bool) -> Iterator[Finding]:
    """Find damaged layers; unless `quick`, read those that are not in `sound`, to compare each with its diff ID.

    A layer that is not damaged is added to `sound`.
    """
    diff_ids = parts.diff_ids()
    for path in parts.files("layers"):
        if path.suffix in (RECORD, RECIPE):
            if not os.path.lexists(path.with_suffix("")):
                yield Finding(
                    "record-without-layer",
                    shown(path),
                    "its layer does not exist, so that it only takes space; the repair removes it",
                    partial(durable.remove_file, path),
                )
        elif not path.suffix:
            yield from _Check(parts, path, diff_ids, progress, sound, quick).findings()


class _Check:
    """The check of one layer."""

    def __init__(
        self,
        parts: Parts,
        directory: Path,
        diff_ids: Mapping[Digest, Digest],
        progress: Progress,
        sound: set[Digest],
        quick: bool,
    ) -> None:
        self._parts = parts
        self._directory = directory
        self._chain_id = Digest("sha256", directory.name)
        self._diff_id = diff_ids.get(self._chain_id)
        self._progress = progress
        self._sound = sound
        self._quick = quick

    def findings(self) -> Iterator[Finding]:
        layer = self._recorded()
        if isinstance(layer, Finding):
            yield layer
            return
        problem = self._recipe_problem(layer) or self._content_problem(layer)
        if problem:
            yield Finding(
                "damaged-layer",
                shown(self._directory),
                f"{problem}, so that images and containers that have it show wrong files or cannot be saved; the "
                f"repair moves it to {shown(self._parts.lost)}, and loading an image that has it brings it back",
                self._set_aside,
            )

    def _recorded(self) -> StoredLayer | Finding:
        """Return the layer as its record describes it, or what is wrong with that."""
        try:
            layer = self._parts.store.layer(self._chain_id)
        except ImageError:
            layer = None
        if layer is None or layer.chain_id != self._chain_id or self._diff_id not in (None, layer.diff_id):
            return self._without_record()
        return layer

    def _without_record(self) -> Finding:
        found = self._restored()
        if found is None:
            then = f"moves it to {shown(self._parts.lost)}, and loading an image that has it brings it back"
            repair = self._set_aside
        else:
            then = "writes the record again, because the layer's contents match what an image says about it"
            repair = partial(self._write, found)
        return Finding(
            "layer-without-record",
            shown(self._directory),
            "its record is missing or damaged, as after a power failure, so that it is not known to be whole and no "
            f"image that has it can be used; the repair {then}",
            repair,
        )

    def _restored(self) -> StoredLayer | None:
        """Return the layer as its record would describe it; None if its contents are not what an image expects."""
        if self._diff_id is None or not stat.S_ISDIR(self._directory.lstat().st_mode):
            return None
        owners = os.geteuid() == 0
        marks, size = self._parts.store.marks.prefix, _size(self._directory)
        layer = StoredLayer(self._chain_id, self._diff_id, self._directory, size, marks, owners)
        return None if self._recipe_problem(layer) or self._verified(layer) else layer

    def _write(self, layer: StoredLayer) -> None:
        path = self._directory.with_suffix(RECORD)
        if path.exists() or path.is_symlink():
            path.unlink()
        durable.write_file(path, layer.record, self._parts.store.tmp / f"{path.name}.new")

    def _recipe_problem(self, layer: StoredLayer) -> str:
        try:
            with open_file(layer.recipe) as recipe:
                tar_size(recipe)
        except FileNotFoundError:
            return f"its file {layer.recipe.name} is missing"
        except (ImageError, OSError):
            return f"its file {layer.recipe.name} is damaged"
        return ""

    def _content_problem(self, layer: StoredLayer) -> str:
        return "" if self._quick or self._chain_id in self._sound else self._verified(layer)

    def _verified(self, layer: StoredLayer) -> str:
        self._progress.step(f"layer {layer.diff_id.short}", layer.size)
        try:
            verify(layer, self._progress)
        except OverlayError as error:
            return f"it is not what was loaded ({error.problem})"
        except OSError as error:
            return f"it cannot be read ({error.strerror})"
        self._sound.add(self._chain_id)
        return ""

    def _set_aside(self) -> None:
        # The directory goes first: without it, the others do no harm.
        self._parts.set_aside(*(self._directory.with_suffix(suffix) for suffix in ("", RECORD, RECIPE)))


def _size(directory: Path) -> int:
    """Return the bytes of a layer's files, each once, and of its link targets."""
    sizes: dict[int, int] = {}
    for above, directories, files in os.walk(directory):
        for name in (*directories, *files):
            status = os.lstat(os.path.join(above, name))
            if stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode):
                sizes[status.st_ino] = status.st_size
    return sum(sizes.values())
