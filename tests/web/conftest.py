"""What every test of the page may ask for: a store, images in it, and their subjects."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from overlayfs_demo.store.store import Store
from overlayfs_demo.store.stored import StoredImage
from overlayfs_demo.web.subject import Ask, Subject, image_subject
from tests.images.stored import MakeImage, image, store

__all__ = ["MakeImage", "asked", "image", "store"]


@contextmanager
def asked(store: Store, made: StoredImage) -> Iterator[tuple[Subject, Ask]]:
    """The layers of an image, and how to ask them."""
    with image_subject(store, made) as subject, subject.asking() as ask:
        yield subject, ask
