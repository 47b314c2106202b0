"""The values that a store holds: layers, images, and the inventory of both."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from overlayfs_demo.errors import ImageError
from overlayfs_demo.images.model import Config, Digest, Image, Layer
from overlayfs_demo.images.reference import ImageName

# The suffix of the file beside a layer's directory that holds the rest of its tar.
RECIPE = ".recipe"
# The suffix of the layer's record.
RECORD = ".json"


@dataclass(frozen=True, slots=True)
class StoredLayer:
    """A layer's directory and what it holds: `size` bytes of file data and link targets.

    `marks` is the prefix of the attributes that mark its opaque directories; `owners` says whether owners were kept.
    """

    chain_id: Digest
    diff_id: Digest
    directory: Path
    size: int
    marks: str
    owners: bool

    @property
    def recipe(self) -> Path:
        """The file that, together with the directory, is enough to put the layer's tar together again."""
        return self.directory.with_suffix(RECIPE)

    @property
    def record(self) -> bytes:
        """The contents of its record."""
        fields = {
            "chain_id": str(self.chain_id),
            "diff_id": str(self.diff_id),
            "size": self.size,
            "marks": self.marks,
            "owners": self.owners,
        }
        return json.dumps(fields).encode()


@dataclass(frozen=True, slots=True)
class StoredImage:
    """An image: its config, its layers from the bottom to the top, its names (sorted).

    `name` is the name by which it was requested, or the first one in a list; None if it was requested by ID or has
    none.
    """

    id: Digest
    config: bytes
    parsed: Config
    layers: tuple[StoredLayer, ...]
    names: tuple[ImageName, ...]
    name: ImageName | None = None

    @property
    def size(self) -> int:
        """The bytes of all its layers, as `docker images` counts them, including shared layers and hidden files."""
        return sum(layer.size for layer in self.layers)

    @property
    def title(self) -> str:
        """Its title in messages: `name`, or the beginning of its ID."""
        return str(self.name) if self.name is not None else self.id.short

    @property
    def layer_titles(self) -> tuple[str, ...]:
        """The title of each layer: the step that made it, or the beginning of its diff ID."""
        return tuple(title or layer.diff_id.short for title, layer in zip(self.value.titles, self.layers, strict=True))

    @property
    def value(self) -> Image:
        """The image as a value, independent of where it is kept."""
        return Image(
            self.config,
            tuple(Layer(layer.diff_id, "") for layer in self.layers),
            self.parsed.history,
            tuple(map(str, self.names)),
        )


@dataclass(frozen=True, slots=True)
class Inventory:
    """Everything in a store: images by ID, layers by chain ID, and for each damaged object what to do about it.

    `needed` are the chain IDs of all images' layers, including images that have lost a layer; None if not known.
    """

    images: tuple[StoredImage, ...]
    layers: tuple[StoredLayer, ...]
    problems: tuple[ImageError, ...]
    needed: frozenset[Digest] | None

    def may_need(self, layer: StoredLayer) -> bool:
        """Return False only if certainly no image has this layer, not even a damaged one."""
        return self.needed is None or layer.chain_id in self.needed
