"""Does a power failure at any moment leave a store in which everything works, and keep what a verb has reported?"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from overlayfs_demo.images.reference import ImageName
from overlayfs_demo.store.container import all_containers
from overlayfs_demo.store.containers import Containers
from overlayfs_demo.store.layer_tar import verify
from overlayfs_demo.store.load import import_tree, load
from overlayfs_demo.store.remove import prune, remove_image, tag
from overlayfs_demo.store.store import Store
from tests.conftest import why_no_mounts
from tests.images.builders import docker_save_many, layer, needs_root
from tests.store.power import Disk, cuts

pytestmark = [
    needs_root,
    pytest.mark.skipif(shutil.which("mkfs.ext4") is None, reason="needs mkfs.ext4"),
    pytest.mark.skipif(not os.path.exists("/dev/loop-control"), reason="needs loop devices"),
    pytest.mark.skipif(bool(why_no_mounts()), reason=why_no_mounts()),
]

BASE, APP = layer({"etc/motd": "hello\n" * 1000}), layer({"app/run": "#!" * 1000, "etc/motd": "changed"})
# Names, images by ID, and containers.
State = tuple[frozenset[str], frozenset[str], frozenset[str]]
NOTHING: State = (frozenset(), frozenset(), frozenset())


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("archives")
    (base / "first.tar").write_bytes(docker_save_many({"first:1": [BASE]}))
    (base / "second.tar").write_bytes(docker_save_many({"second:1": [BASE, APP]}))
    (base / "tree.tar").write_bytes(APP)
    return base


@pytest.fixture
def containers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Containers are made, but not mounted."""
    monkeypatch.setattr(Containers, "start", lambda self, container: None)


def listed(root: Path) -> State:
    """What is listed in a store."""
    store = Store(root)
    images = store.images()
    return (
        frozenset(str(name) for image in images for name in image.names),
        frozenset(image.id.short for image in images),
        frozenset(container.name for container in all_containers(store)),
    )


def sound(store: Store, archives: Path) -> State:
    """Everything listed is whole, and verbs that change the store succeed. What was there before these."""
    inventory = store.inventory()
    assert inventory.problems == ()
    for image in inventory.images:
        for stored in image.layers:
            verify(stored)
    for container in all_containers(store):
        assert container.upper.is_dir() and container.work.is_dir()
        assert store.find(str(container.image)).id == container.image
    state = listed(store.root)
    load(store, archives / "second.tar")
    remove_image(store, "second:1")
    prune(store)
    for container in all_containers(store):
        Containers(store).remove(container)
    assert store.inventory().problems == ()
    return state


def nothing(store: Store, archives: Path) -> None:
    shutil.rmtree(store.root)


def first(store: Store, archives: Path) -> None:
    load(store, archives / "first.tar")


def both(store: Store, archives: Path) -> None:
    first(store, archives)
    load(store, archives / "second.tar")


def create(store: Store, archives: Path) -> None:
    Containers(store).create(store.find("first:1"), "c1")


def with_container(store: Store, archives: Path) -> None:
    first(store, archives)
    create(store, archives)
    (Containers(store).find("c1").upper / "new").write_text("new\n" * 1000)


def commit(store: Store, archives: Path) -> None:
    containers = Containers(store)
    containers.commit(containers.find("c1"), ImageName.parse("made:1"))


Act = Callable[[Store, Path], object]
# What is there before, and what is done then.
VERBS: dict[str, tuple[Act, Act]] = {
    "load": (nothing, both),
    "create": (first, create),
    "commit": (with_container, commit),
    "rm": (with_container, lambda store, _: Containers(store).remove(Containers(store).find("c1"))),
    "rename": (with_container, lambda store, _: Containers(store).rename(Containers(store).find("c1"), "c2")),
    "import": (nothing, lambda store, archives: import_tree(store, archives / "tree.tar", ImageName.parse("tree:1"))),
    "tag": (first, lambda store, _: tag(store, "first:1", ImageName.parse("other:1"))),
    "rmi": (both, lambda store, _: remove_image(store, "second:1")),
    "prune": (both, lambda store, _: prune(store, every=True)),
}


@pytest.mark.usefixtures("containers")
@pytest.mark.parametrize("names_are_kept", [False, True])
@pytest.mark.parametrize("verb", VERBS)
def test_the_power_may_fail_at_any_moment(tmp_path: Path, archives: Path, verb: str, names_are_kept: bool) -> None:
    before, act = VERBS[verb]
    disk = Disk(tmp_path)
    states: list[State] = []

    def run() -> None:
        act(Store(disk.root / "store"), archives)
        states.append(listed(disk.root / "store"))

    with disk.powered() as root:
        before(Store(root / "store"), archives)
        states.append(listed(root / "store") if (root / "store").exists() else NOTHING)
    number = 0
    for root, finished in cuts(disk, run, names_are_kept=names_are_kept):
        old, new = states
        found = sound(Store(root / "store"), archives)
        assert all(a & b <= c <= a | b for a, b, c in zip(old, new, found, strict=True))
        assert not finished or found == new
        number += 1
    assert number > 1
