"""The layers that the browser shows, from the top down, and what made each of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from overlayfs_demo.analysis.waste import analyse
from overlayfs_demo.errors import printable
from overlayfs_demo.mounts.layer_facts import UPPER, LayerFacts, walked
from overlayfs_demo.mounts.options import parse
from overlayfs_demo.mounts.registry import MountRecord
from overlayfs_demo.overlay.stack import Stack
from overlayfs_demo.store.image_view import image_stack
from overlayfs_demo.store.store import Store
from overlayfs_demo.store.stored import StoredImage
from overlayfs_demo.ui.text import human_size, percentage


@dataclass(frozen=True, slots=True)
class LayerStep:
    """A layer, or a step of an image's history that made none.

    `place` is the layer's position, counted from 0 at the top; None for a step that changed only metadata. `number` is
    its name in messages without the word "layer". `size` is Docker's SIZE in bytes, None if it was not counted yet.
    """

    place: int | None
    number: str
    title: str
    size: int | None

    @property
    def name(self) -> str:
        """The layer's name in a sentence."""
        return "the upper" if self.number == UPPER else f"layer {self.number}"


@dataclass(frozen=True, slots=True)
class Subject:
    """What is browsed: its layers as a stack that is only read, and the steps, topmost first.

    `directories` are those of the layers, in the order of their places.
    """

    title: str
    stack: Stack
    steps: tuple[LayerStep, ...]
    directories: tuple[Path, ...]
    is_image: bool


def image_subject(store: Store, image: StoredImage) -> Subject:
    """Return an image as it is browsed. If its history does not fit its layers, only these are shown."""
    total = len(image.layers)
    sized = list(zip(image.layer_titles, (layer.size for layer in image.layers), strict=True))
    layers = [LayerStep(total - index, str(index), title, size) for index, (title, size) in enumerate(sized, start=1)]
    history = image.value.history
    if total != sum(not step.empty_layer for step in history):
        steps = layers
    else:
        made = iter(layers)
        steps = [
            LayerStep(None, "", step.instruction or step.comment, 0) if step.empty_layer else next(made)
            for step in history
        ]
    directories = tuple(layer.directory for layer in reversed(image.layers))
    return Subject(image.title, image_stack(store, image), tuple(reversed(steps)), directories, is_image=True)


def view_subject(record: MountRecord) -> Subject:
    """Return a mounted view as it is browsed: the upper, then the lowers. Their sizes are not counted yet.

    Raises UsageError if the record's options are not valid.
    """
    titles = record.titles or [""] * len(record.lowers)
    stack = parse([record.options]).stack._replace(titles=tuple(titles), time_machine=False, read_only=True)
    upper = [LayerStep(0, UPPER, "changes made in this view", None)] if record.upper is not None else []
    total = len(record.lowers) + len(record.data_only)
    below = [
        LayerStep(len(upper) + index, str(total - index), title or os.path.basename(path), None)
        for index, (title, path) in enumerate(zip(titles, record.lowers, strict=False))
    ]
    paths = [*([record.upper] if record.upper is not None else []), *record.lowers]
    return Subject(record.mountpoint, stack, (*upper, *below), tuple(map(Path, paths)), is_image=False)


def counted(step: LayerStep, directory: Path) -> LayerStep:
    """Walk a layer, and return its step with the size; None stays if it cannot be read."""
    count = walked(LayerFacts(step.number, step.title, str(directory))).count
    return step if count is None else replace(step, size=count.size)


def waste_of(directories: Sequence[Path]) -> str:
    """Return in a few words what an image's layers, topmost first, ship for nothing. Raises ImageError."""
    found = analyse(list(reversed(directories)), [""] * len(directories), duplicates=False)
    share = percentage(found.wasted, found.shipped)
    return f"wasted {human_size(found.wasted)} ({share}), dive's score {percentage(found.dive_score, 1, digits=2)}"


def layer_name(label: str) -> str:
    """Return a label such as `layer 3 (RUN make)` without what made the layer."""
    return printable(label.partition(" (")[0])
