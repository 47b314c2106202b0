"""Removal of names, images and layers that nothing uses any longer.

An image goes when its last name goes, as with `docker rmi`; a layer goes when no image has it. An image that is used by
a container stays. The containers are read under the store's lock, so that none can be made meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from overlayfs_demo.errors import ImageError
from overlayfs_demo.images.model import Digest
from overlayfs_demo.images.reference import ImageName
from overlayfs_demo.store.container import users
from overlayfs_demo.store.store import Store


@dataclass(frozen=True, slots=True)
class Removed:
    """What was removed: names, images, and chain IDs of layers (from the top of their image down).

    `size` is the bytes of the layers' files.
    """

    names: tuple[ImageName, ...] = ()
    images: tuple[Digest, ...] = ()
    layers: tuple[Digest, ...] = ()
    size: int = 0


def remove_image(store: Store, word: str, *, force: bool = False, keep_layers: bool = False) -> Removed:
    """Remove a name as `docker rmi` does; an image goes with its last name, or by its ID.

    With `force`, an image given by its ID goes although it has several names. An image that a container uses is never
    removed. With `keep_layers`, its layers stay until `prune`. Raises ImageError, or MountError if a container's record
    is damaged, before anything is removed.
    """
    with store.writing():
        # Not `find`: a damaged image must be removable too.
        found = store.identify(word)
        names = store.names_of(found.id)
        if found.name is not None and len(names) > 1:
            store.remove_name(found.name)
            return Removed(names=(found.name,))
        if found.name is None and len(names) > 1 and not force:
            raise ImageError(
                f"image {found.id.short} has {len(names)} names: {', '.join(map(str, names))}",
                "remove them one by one, or use --force",
            )
        if made := users(store).get(found.id):
            raise ImageError(
                f"image {found.name or found.id.short} is used by {', '.join(f'container {user}' for user in made)}",
                "remove the containers first, with 'rm'",
            )
        return _remove(store, [found.id], keep_layers=keep_layers)


def prune(store: Store, *, every: bool = False) -> Removed:
    """Remove unused layers, and images without a name (with `every`, also named ones) that no container uses.

    Damaged images stay, and all layers stay while it is not known which of them a damaged image has. Raises MountError
    if a container's record is damaged.
    """
    with store.writing():
        used = users(store)
        return _remove(
            store, [image.id for image in store.images() if image.id not in used and (every or not image.names)]
        )


def tag(store: Store, word: str, name: ImageName) -> Digest | None:
    """Give an image one more name; return the image that lost the name, if any. Raises ImageError."""
    with store.writing():
        return store.name_image(name, store.find(word).id)


def _remove(store: Store, images: Sequence[Digest], *, keep_layers: bool = False) -> Removed:
    """Remove images and, unless `keep_layers`, all unused layers.

    The images go first: a layer without an image does no harm, but an image without its layer is damaged.
    """
    names: list[ImageName] = []
    order: dict[Digest, int] = {}
    for identity in images:
        names += store.names_of(identity)
        order |= {chain_id: number for number, chain_id in enumerate(reversed(_layers_of(store, identity)))}
        store.remove_image(identity)
    if keep_layers:
        return Removed(tuple(names), tuple(images))
    left = store.inventory()
    unused = [] if left.needed is None else [chain_id for chain_id in store.layer_ids() if chain_id not in left.needed]
    unused.sort(key=lambda chain_id: order.get(chain_id, len(order)))
    if unused:
        store.remove_layers(unused)
    size = sum(layer.size for layer in left.layers if layer.chain_id in set(unused))
    return Removed(tuple(names), tuple(images), tuple(unused), size)


def _layers_of(store: Store, identity: Digest) -> tuple[Digest, ...]:
    try:
        return store.chain_ids_of(identity)
    except ImageError:
        return ()
