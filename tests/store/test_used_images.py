"""Does an image stay that a container is made from, even one made or removed at the same moment?"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from overlayfs_demo.errors import ImageError, MountError
from overlayfs_demo.images.model import Digest
from overlayfs_demo.linux import mounting
from overlayfs_demo.store.container import Container, directory_of
from overlayfs_demo.store.containers import Containers
from overlayfs_demo.store.load import load
from overlayfs_demo.store.remove import Removed, prune, remove_image
from overlayfs_demo.store.store import Store
from tests.images.builders import docker_save, layer, needs_root

pytestmark = needs_root


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store with the image test:1."""
    (tmp_path / "image.tar").write_bytes(docker_save([layer({"file": "x"})]))
    store = Store(tmp_path / "store")
    load(store, tmp_path / "image.tar")
    return store


def record(store: Store, image: Digest, name: str = "c1") -> None:
    """The record of a container of this image, which was never mounted."""
    directory = directory_of(store) / name
    directory.mkdir(parents=True)
    chain_ids = store.chain_ids_of(image)
    Container(name, directory, image, "test:1", chain_ids, "2026-01-01T00:00:00Z", directory, False, "").write(
        directory
    )


def before_the_lock(store: Store, monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Let another process do this just before the store is locked, but only the first time."""
    writing, acts = Store.writing, [act]

    @contextmanager
    def after_another(self: Store) -> Iterator[None]:
        while acts:
            acts.pop()()
        with writing(self):
            yield

    monkeypatch.setattr(Store, "writing", after_another)


REMOVALS: tuple[Callable[[Store], Removed], ...] = (
    lambda store: prune(store, every=True),
    lambda store: remove_image(store, "test:1", force=True),
)


def test_an_image_that_a_container_uses_stays(store: Store) -> None:
    image = store.find("test:1").id
    record(store, image)
    with pytest.raises(ImageError, match="used by container c1"):
        remove_image(store, "test:1", force=True)
    assert prune(store, every=True).images == ()
    assert store.find("test:1").id == image


@pytest.mark.parametrize("remove", REMOVALS)
def test_a_container_made_just_before_the_removal_keeps_its_image(
    store: Store, monkeypatch: pytest.MonkeyPatch, remove: Callable[[Store], Removed]
) -> None:
    image = store.find("test:1").id
    before_the_lock(store, monkeypatch, lambda: record(store, image))
    try:
        assert remove(store).images == ()
    except ImageError as error:
        assert "used by container c1" in str(error)
    assert len(store.image(image).layers) == 1


def test_no_container_is_made_of_an_image_that_was_removed_meanwhile(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = store.find("test:1")
    before_the_lock(store, monkeypatch, lambda: prune(store, every=True))
    with pytest.raises(ImageError, match="no image"):
        Containers(store).create(image, "c1")
    assert not os.path.lexists(directory_of(store) / "c1")


def test_a_container_in_which_something_is_mounted_stays_whole(store: Store, tmp_path: Path) -> None:
    record(store, store.find("test:1").id)
    inside = directory_of(store) / "c1" / "upper"
    inside.mkdir()
    mounting.mount(b"tmpfs", os.fsencode(inside), b"tmpfs", 0, b"")
    try:
        with pytest.raises(MountError, match="unmount it first"):
            Containers(store).remove(Containers(store).find("c1"))
    finally:
        mounting.unmount(os.fsencode(inside))
    Containers(store).remove(Containers(store).find("c1"))
    assert os.listdir(directory_of(store)) == []
