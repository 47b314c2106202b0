"""The layers that a page shows, and how to ask what they say about a path.

An image's layers are asked in this process. Those of a mounted view are asked through its daemon, because only that
knows how they were mounted. Both give the same answers, see `overlay.provenance`.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote_from_bytes

from overlayfs_demo.errors import UsageError, printable
from overlayfs_demo.images.member_names import MemberError, clean_path
from overlayfs_demo.images.view_compare import opened
from overlayfs_demo.linux import syscalls
from overlayfs_demo.mounts.control.client import Connection
from overlayfs_demo.mounts.layer_facts import UPPER
from overlayfs_demo.mounts.registry import MountRecord
from overlayfs_demo.overlay.engine import Overlay
from overlayfs_demo.overlay.layer_statements import Statement
from overlayfs_demo.overlay.provenance import Provenance
from overlayfs_demo.store.image_view import image_stack
from overlayfs_demo.store.store import Store
from overlayfs_demo.store.stored import StoredImage

# Returns what every layer says about an absolute path of the view, topmost first. Raises OverlayError or OSError.
Ask = Callable[[bytes], Provenance]

_NUMBER = re.compile(r"layer (\d+) ")


@dataclass(frozen=True, slots=True)
class LayerRoot:
    """One layer: `key` is its number counted from the bottom, or "upper"; `label` is how answers and events name it."""

    key: str
    label: str
    title: str
    directory: Path

    @property
    def name(self) -> str:
        """Its name for a person."""
        return "Upper" if self.key == UPPER else f"Layer {self.key}"

    def open(self, path: bytes, flags: int) -> int:
        """Open a path of this layer without following links or leaving it; the caller closes it. Raises OSError."""
        root = os.open(self.directory, os.O_PATH | os.O_DIRECTORY)
        try:
            return syscalls.open_beneath(root, path or b".", flags | os.O_NOFOLLOW | os.O_NONBLOCK)
        finally:
            os.close(root)


@dataclass(frozen=True, slots=True)
class Subject:
    """The layers, topmost first, and a way to ask them: `with subject.asking() as ask: ask(b"/etc")`."""

    layers: tuple[LayerRoot, ...]
    asking: Callable[[], AbstractContextManager[Ask]]

    def layer_of(self, label: str) -> LayerRoot | None:
        """Return the layer with this label; None for a layer that only holds data."""
        return next((layer for layer in self.layers if layer.label == label), None)


@contextmanager
def image_subject(store: Store, image: StoredImage) -> Iterator[Subject]:
    """Give the layers of an image, which stay open until the end of the block. Raises OSError."""
    stack = image_stack(store, image)
    layers = image.layers[::-1]
    # An image without layers is shown as an empty directory, which is not a layer.
    roots = tuple(
        LayerRoot(str(len(layers) - depth), label, title, layer.directory)
        for depth, (layer, label, title) in enumerate(zip(layers, stack.labels(), stack.titles, strict=False))
    )
    with opened(stack) as overlay:
        yield Subject(roots, lambda: nullcontext(_asker(overlay)))


def _asker(overlay: Overlay) -> Ask:
    """Return a way to ask an image's layers, which do not change: a directory is looked up once for all its names."""
    inside = lru_cache(maxsize=1)(overlay.which_inside)

    def ask(path: bytes) -> Provenance:
        directory, name = os.path.split(path)
        return inside(directory)(name) if name else overlay.which(path)

    return ask


def mount_subject(record: MountRecord, socket: str) -> Subject:
    """Return the layers of a mounted view, whose daemon is asked at `socket`. Raises MountError."""

    @contextmanager
    def asking() -> Iterator[Ask]:
        with Connection(socket, record.mountpoint) as connection:
            yield connection.which

    with asking() as ask:
        labels = [statement.layer for statement in ask(b"/").statements]
    upper = [(UPPER, "changes made in this view", record.upper)] if record.upper is not None else []
    titles = record.titles or [""] * len(record.lowers)
    below = [
        (_number(label), title or Path(path).name, path)
        for label, title, path in zip(labels[len(upper) :], titles, record.lowers, strict=False)
    ]
    return Subject(
        tuple(
            LayerRoot(key, label, title, Path(path))
            for label, (key, title, path) in zip(labels, [*upper, *below], strict=False)
        ),
        asking,
    )


def _number(label: str) -> str:
    found = _NUMBER.match(label)
    return found[1] if found else label


# --- paths -----------------------------------------------------------------------------------------


def checked_path(path: bytes) -> bytes:
    """Return an absolute path of the view without `.`; b"/" is the root.

    Raises UsageError if the path leads out of the view or is not valid.
    """
    try:
        return b"/" + clean_path(os.fsdecode(path.lstrip(b"/")))
    except MemberError as error:
        raise UsageError(f"'{printable(path)}' {error.rule}", "use a path as it appears in the view") from None


def key_of(path: bytes) -> str:
    """Return a path as part of a URL, whatever bytes it holds."""
    return quote_from_bytes(path, safe="/")


def is_directory(statement: Statement) -> bool:
    """Return whether a layer has a directory there."""
    return statement.mode is not None and stat.S_ISDIR(statement.mode)
