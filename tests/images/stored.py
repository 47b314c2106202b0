"""A store below tmp_path and images in it, for the folders of tests whose conftest imports these fixtures."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest

from overlayfs_demo.store.load import load
from overlayfs_demo.store.store import Store
from overlayfs_demo.store.stored import StoredImage
from tests.images.builders import Members, docker_save, layer

# Loads an image of these layers, from the bottom to the top, into the store below tmp_path.
MakeImage = Callable[..., StoredImage]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def image(store: Store) -> MakeImage:
    """`image({"a": "1"}, {"a": WHITEOUT})`: an image called test:1."""

    def make(*contents: Members) -> StoredImage:
        [loaded] = load(store, io.BytesIO(docker_save([layer(content) for content in contents])))
        return loaded.image

    return make
