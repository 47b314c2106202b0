"""Is every damage of a store found and mended, so that all that is listed can be used, and nothing else touched?"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest

from overlayfs_demo.fsck.finding import Result, State, mend
from overlayfs_demo.fsck.store_check import check_store
from overlayfs_demo.images.reference import ImageName
from overlayfs_demo.overlay.factory import open_overlay
from overlayfs_demo.store.container import all_containers, find_container
from overlayfs_demo.store.containers import Containers
from overlayfs_demo.store.layer_tar import verify
from overlayfs_demo.store.load import load
from overlayfs_demo.store.remove import tag
from overlayfs_demo.store.store import Store
from overlayfs_demo.store.stored import StoredLayer
from tests import builders
from tests.images.builders import docker_save_many, layer, needs_root, symlink

pytestmark = needs_root

BASE, APP, FREE = layer({"etc/motd": "hello\n"}), layer({"app/run": "#!" * 99, "l": symlink("x")}), layer({"free": "1"})


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store with the images used:1 and free:1, which share a layer, and a container of used:1 that was mounted."""
    monkeypatch.setattr(Containers, "start", lambda self, container: None)
    (tmp_path / "images.tar").write_bytes(docker_save_many({"used:1": [BASE, APP], "free:1": [BASE, FREE]}))
    store = Store(tmp_path / "store")
    load(store, tmp_path / "images.tar")
    container = Containers(store).create(store.find("used:1"), "c1")
    view = open_overlay(Containers(store).stack(container))
    view.note_stack()
    view.close()
    (container.upper / "mine").write_text("mine\n")
    return store


def top(store: Store, name: str) -> StoredLayer:
    return store.find(name).layers[-1]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def config(store: Store, name: str) -> Path:
    return store.root / "images" / store.find(name).id.encoded


def record(store: Store, name: str) -> Path:
    return top(store, name).directory.with_suffix(".json")


def other_record(store: Store) -> None:
    text = record(store, "used:1").read_text()
    record(store, "used:1").write_text(text.replace(top(store, "used:1").diff_id.encoded, "0" * 64))


def record_and_recipe_missing(store: Store) -> None:
    lost = top(store, "free:1")
    lost.recipe.unlink()
    lost.directory.with_suffix(".json").unlink()


def name_of_nothing(store: Store) -> None:
    names = json.loads(store.names_file.read_text())
    store.names_file.write_text(json.dumps(names | {"docker.io/library/none:1": f"sha256:{'1' * 64}"}))


def bad_row(store: Store) -> None:
    names = json.loads(store.names_file.read_text())
    store.names_file.write_text(json.dumps(names | {"bad:1": "no digest"}))


def container_record(store: Store) -> Path:
    return find_container(store, "c1").directory / "container.json"


def container_never_mounted(store: Store) -> None:
    directory = find_container(store, "c1").directory
    os.removexattr(directory / "upper", "trusted.overlay.demo-lowers")
    empty(directory / "container.json")


def lose_image(store: Store) -> None:
    name = ImageName.parse("used:1")
    config(store, "used:1").unlink()
    store.remove_name(name)


@dataclass(frozen=True)
class Damage:
    """A way to damage a store, the kinds of findings in the order of the repairs, and what the repair costs.

    `lost` are images, or containers, that are no longer there; `left`: what only a person can do.
    """

    act: Callable[[Store], object]
    kinds: tuple[str, ...]
    lost: tuple[str, ...] = ()
    left: tuple[str, ...] = ()


USED = ("damaged-layer",), ("used:1",), ("image-without-layer", "container-without-image")
FREED = ("damaged-layer", "image-without-layer"), ("free:1",)
DAMAGES = {
    "version empty": Damage(lambda store: empty(store.root / "version"), ("version",)),
    "version cut off": Damage(lambda store: cut(store.root / "version"), ("version",)),
    "version missing": Damage(lambda store: (store.root / "version").unlink(), ("version",)),
    "no tmp": Damage(lambda store: store.tmp.rmdir(), ("missing-directory",)),
    "leftover file": Damage(lambda store: (store.tmp / "layer.tar").write_text("x"), ("leftover",)),
    "leftover tree": Damage(lambda store: (store.tmp / "unpacked/a").mkdir(parents=True), ("leftover",)),
    "something in empty": Damage(lambda store: (store.empty_directory() / "x").touch(), ("not-empty",)),
    "names empty": Damage(lambda store: empty(store.names_file), ("damaged-names",), ("used:1", "free:1")),
    "names cut off": Damage(lambda store: cut(store.names_file), ("damaged-names",), ("used:1", "free:1")),
    "a row of the names": Damage(bad_row, ("damaged-names",)),
    "a name of a missing image": Damage(name_of_nothing, ("name-of-nothing",)),
    "config empty": Damage(lambda store: empty(config(store, "free:1")), ("damaged-image",), ("free:1",)),
    "config of another": Damage(
        lambda store: config(store, "free:1").write_bytes(config(store, "used:1").read_bytes()),
        ("damaged-image",),
        ("free:1",),
    ),
    "config is gone": Damage(lambda store: config(store, "free:1").unlink(), ("name-of-nothing",), ("free:1",)),
    "record without a layer": Damage(
        lambda store: (store.root / "layers" / ("0" * 64 + ".json")).write_text("{}"), ("record-without-layer",)
    ),
    "recipe without a layer": Damage(
        lambda store: (store.root / "layers" / ("0" * 64 + ".recipe")).touch(), ("record-without-layer",)
    ),
    "record empty": Damage(lambda store: empty(record(store, "used:1")), ("layer-without-record",)),
    "record cut off": Damage(lambda store: cut(record(store, "used:1")), ("layer-without-record",)),
    "record missing": Damage(lambda store: record(store, "used:1").unlink(), ("layer-without-record",)),
    "record of another": Damage(other_record, ("layer-without-record",)),
    "record and recipe missing": Damage(
        record_and_recipe_missing, ("layer-without-record", "image-without-layer"), ("free:1",)
    ),
    "recipe missing": Damage(lambda store: top(store, "free:1").recipe.unlink(), *FREED),
    "recipe empty": Damage(lambda store: empty(top(store, "free:1").recipe), *FREED),
    "recipe cut off": Damage(lambda store: cut(top(store, "free:1").recipe), *FREED),
    "file of a layer empty": Damage(lambda store: empty(top(store, "free:1").directory / "free"), *FREED),
    "file of a layer changed": Damage(lambda store: (top(store, "free:1").directory / "free").write_text("2"), *FREED),
    "file of a layer gone": Damage(lambda store: (top(store, "free:1").directory / "free").unlink(), *FREED),
    "file of a used layer changed": Damage(
        lambda store: (top(store, "used:1").directory / "app/run").write_text("2"), *USED
    ),
    "layer gone": Damage(
        lambda store: shutil.rmtree(top(store, "free:1").directory),
        ("record-without-layer", "record-without-layer", "image-without-layer"),
        ("free:1",),
    ),
    "container's record empty": Damage(lambda store: empty(container_record(store)), ("container-without-record",)),
    "container's record missing": Damage(lambda store: container_record(store).unlink(), ("container-without-record",)),
    "record of a container that was never mounted": Damage(
        container_never_mounted, ("container-without-record",), ("c1",)
    ),
    "container without a mount point": Damage(
        lambda store: (find_container(store, "c1").directory / "merged").rmdir(), ("container-without-directory",)
    ),
    "container's image is gone": Damage(lose_image, (), ("used:1",), ("container-without-image",)),
}


def repaired(store: Store) -> list[Result]:
    return list(mend(lambda: nullcontext(check_store(store.root))))


def found(store: Store, *, quick: bool = False) -> list[str]:
    return [finding.kind for finding in check_store(store.root, quick=quick)]


def on_disk(store: Store) -> dict[bytes, builders.Seen]:
    kept = builders.tree(store.root, times=False)
    return {path: seen for path, seen in kept.items() if not path.startswith(b"lost+found")}


def listed(store: Store) -> set[str]:
    """The images by name, and the containers; all of them can be used."""
    for image in store.images():
        for stored in image.layers:
            verify(stored)
    return {str(name) for image in store.images() for name in image.names} | {
        container.name for container in all_containers(store)
    }


def test_a_sound_store_is_found_sound(store: Store) -> None:
    before = on_disk(store)
    assert found(store) == []
    assert repaired(store) == []
    assert on_disk(store) == before


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_found_and_mended_and_nothing_else_is_touched(store: Store, name: str) -> None:
    damage, before = DAMAGES[name], on_disk(store)
    damage.act(store)
    damaged = on_disk(store)
    assert found(store)[0] == (*damage.kinds, *damage.left)[0]
    assert on_disk(store) == damaged
    results = repaired(store)
    assert [result.finding.kind for result in results if result.state is State.REPAIRED] == list(damage.kinds)
    assert [result.finding.kind for result in results if result.state is State.LEFT] == list(damage.left)
    assert all("the repair " in result.finding.sentence for result in results if result.state is State.REPAIRED)
    assert sorted(found(store)) == sorted(damage.left)
    again = Store(store.root)
    assert listed(again) == {"used:1", "free:1", "c1"} - set(damage.lost)
    assert (store.root / "containers/c1/upper/mine").exists() or (
        store.root / "lost+found/c1/upper/mine"
    ).read_text() == "mine\n"
    load(again, store.root.parent / "images.tar")
    assert found(store) == []
    if "c1" not in damage.lost:
        assert listed(again) == {"used:1", "free:1", "c1"}
        changed = {path for path in before if on_disk(store).get(path) != before[path]}
        assert {path for path in changed if not path.endswith((b".json", b"empty", b"tmp"))} == set()


def test_quick_does_not_read_the_layers_files(store: Store) -> None:
    (top(store, "free:1").directory / "free").write_text("2")
    assert found(store, quick=True) == []
    assert found(store) == ["damaged-layer"]


def test_an_image_whose_layers_another_one_shares_stays(store: Store) -> None:
    tag(store, "used:1", ImageName.parse("other:1"))
    empty(config(store, "free:1"))
    repaired(store)
    assert listed(store) == {"used:1", "other:1", "c1"}
