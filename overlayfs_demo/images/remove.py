"""What may be removed from the store, and what is still in use?

An image goes when its last name goes, as with `docker rmi`; a layer goes when no image has it. `used_by` says
which containers are made of an image: such an image stays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from overlayfs_demo.errors import ImageError
from overlayfs_demo.images.model import Digest, shown
from overlayfs_demo.images.reference import ImageName
from overlayfs_demo.images.store import Store, StoredImage, StoredLayer


@dataclass(frozen=True, slots=True)
class Removed:
    """What went: names, images, layers (from the top to the bottom of their image)."""

    names: tuple[ImageName, ...] = ()
    images: tuple[Digest, ...] = ()
    layers: tuple[StoredLayer, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of the layers' files."""
        return sum(layer.size for layer in self.layers)


def remove_image(store: Store, word: str, used_by: Mapping[Digest, Sequence[str]], *, force: bool = False) -> Removed:
    """`docker rmi`: a name goes; with its last name, or by its ID, the image does. Raises ImageError, nothing done.

    `force`: an ID goes although it has several names. What containers use is not removed in any case.
    """
    with store.writing():
        image = store.find(word)
        if image.name is not None and len(image.names) > 1:
            store.remove_name(image.name)
            return Removed(names=(image.name,))
        if image.name is None and len(image.names) > 1 and not force:
            raise ImageError(
                f"image {image.id.short} has {len(image.names)} names: {', '.join(map(str, image.names))}",
                "remove them one by one, or use --force",
            )
        _require_unused(image, used_by)
        return _remove(store, [image])


def prune(store: Store, used_by: Mapping[Digest, Sequence[str]], *, every: bool = False) -> Removed:
    """Remove images without a name that no container uses (`every`: also those with names), and unused layers."""
    with store.writing():
        images = [
            image for image in store.images() if image.id not in used_by and (every or not image.names)
        ]
        return _remove(store, images)


def tag(store: Store, word: str, name: ImageName) -> Digest | None:
    """Give an image a further name; the image that had the name before, if any. Raises ImageError."""
    with store.writing():
        return store.name_image(name, store.find(word).id)


def _require_unused(image: StoredImage, used_by: Mapping[Digest, Sequence[str]]) -> None:
    if users := used_by.get(image.id):
        raise ImageError(
            f"image {shown(image.title)} is used by {', '.join(f'container {one}' for one in users)}",
            "remove what uses it first, with 'rm'",
        )


def _remove(store: Store, images: Sequence[StoredImage]) -> Removed:
    """The images first: a layer without an image is no harm, an image without a layer is."""
    for image in images:
        store.remove_image(image)
    wanted = {layer.chain_id for image in store.images() for layer in image.layers}
    unused = [layer for layer in store.layers() if layer.chain_id not in wanted]
    order = {layer.chain_id: number for image in images for number, layer in enumerate(reversed(image.layers))}
    unused.sort(key=lambda layer: order.get(layer.chain_id, len(order)))
    for layer in unused:
        store.remove_layer(layer)
    names = tuple(name for image in images for name in image.names)
    return Removed(names, tuple(image.id for image in images), tuple(unused))
