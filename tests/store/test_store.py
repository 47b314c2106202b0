"""What does the store keep, once, and what is left of what failed?"""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
from pathlib import Path

import pytest

from overlayfs_demo.errors import ImageError
from overlayfs_demo.images.model import Digest, Platform
from overlayfs_demo.images.progress import Progress
from overlayfs_demo.images.reference import ImageName
from overlayfs_demo.store import load as loading
from overlayfs_demo.store.load import import_tree, load
from overlayfs_demo.store.remove import prune, remove_image, tag
from overlayfs_demo.store.save import save
from overlayfs_demo.store.store import Store
from overlayfs_demo.store.stored import StoredImage
from tests.images.builders import (
    WHITEOUT,
    archive,
    directory,
    docker_25_save,
    docker_save,
    docker_save_many,
    layer,
    needs_root,
    oci_archive,
    podman_save,
    symlink,
)

BASE = layer({"etc/motd": "hello\n", "old": "1234567"})
APP = layer({"app/run": "#!", "old": WHITEOUT, "link": symlink("etc/motd")})
OTHER = layer({"other": "x"})
pytestmark = needs_root


class Told(Progress):
    """Each step, its size, and how many bytes of it were done."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, int | None, int]] = []

    def step(self, what: str, size: int | None = None) -> None:
        self.steps.append((what, size, 0))

    def advance(self, count: int) -> None:
        what, size, done = self.steps.pop()
        self.steps.append((what, size, done + count))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def write(where: Path, data: bytes) -> Path:
    path = where.parent / "image.tar"
    path.write_bytes(data)
    return path


def loaded(store: Store, data: bytes) -> loading.Outcome:
    return load(store, write(store.root, data))


def names(image: StoredImage) -> list[str]:
    return [str(name) for name in image.names]


def leftovers(store: Store) -> list[str]:
    return os.listdir(store.tmp)


FLAVOURS = {
    "docker": docker_save([BASE, APP]),
    "podman": podman_save([BASE, APP]),
    "oci": oci_archive([BASE, APP]),
    "oci-zstd": oci_archive([BASE, APP], "zstd"),
    "docker-25": docker_25_save([BASE, APP]),
}


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_every_flavour_becomes_the_same_layers(store: Store, flavour: str) -> None:
    [one] = loaded(store, FLAVOURS[flavour])
    chain_ids = [one.chain_id for one in one.image.layers]
    assert chain_ids[0] == Digest.of(BASE)
    assert chain_ids[1] == Digest.of(f"{Digest.of(BASE)} {Digest.of(APP)}".encode())
    top = one.image.layers[1]
    assert (top.directory / "app/run").read_text() == "#!"
    assert (top.directory / "old").is_char_device()
    assert top.size == len("#!") + len("etc/motd")
    assert leftovers(store) == []


def test_the_id_is_the_digest_of_the_config_kept_byte_for_byte(store: Store) -> None:
    [one] = loaded(store, docker_save([BASE]))
    assert one.image.id == Digest.of(one.image.config)
    assert store.image(one.image.id).config == one.image.config


def test_a_layer_of_two_images_is_stored_once(store: Store) -> None:
    first, second = loaded(store, docker_save_many({"a:1": [BASE, APP], "b:1": [BASE, OTHER]}))
    assert first.skipped == ()
    assert second.skipped == (first.image.layers[0],)
    assert len(store.layers()) == 3


def test_the_same_tar_on_other_layers_is_another_layer(store: Store) -> None:
    loaded(store, docker_save_many({"a:1": [BASE, OTHER], "b:1": [APP, OTHER]}))
    assert len(store.layers()) == 4


def test_loading_again_unpacks_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded(store, docker_save([BASE, APP]))
    monkeypatch.setattr(loading, "extract_layer", None)
    [again] = loaded(store, docker_save([BASE, APP]))
    assert len(again.skipped) == 2


def test_progress_tells_of_each_layer(store: Store) -> None:
    loaded(store, docker_save([BASE]))
    told = Told()
    [one] = load(store, write(store.root, docker_save([BASE, APP])), progress=told)
    here, new = (layer.diff_id.short for layer in one.image.layers)
    assert told.steps == [
        (f"layer 1 of 2 ({here}) is already stored", 0, 0),
        (f"layer 2 of 2 ({new})", len(APP), len(APP)),
    ]


def test_progress_tells_of_what_a_stream_and_a_compressed_archive_need_first(store: Store) -> None:
    whole = docker_save([BASE])
    told = Told()
    load(store, io.BytesIO(gzip.compress(whole)), progress=told)
    assert [what.split()[0] for what, _, _ in told.steps] == ["reading", "decompressing", "layer"]
    assert [done for _, _, done in told.steps] == [len(gzip.compress(whole)), len(whole), len(BASE)]


def test_progress_tells_of_each_layer_that_is_saved(store: Store) -> None:
    [one] = loaded(store, docker_save([BASE, APP]))
    told = Told()
    save([one.image], io.BytesIO(), told)
    assert [(size, done) for _, size, done in told.steps] == [(len(BASE), len(BASE)), (len(APP), len(APP))]


def test_a_stream_is_loaded(store: Store) -> None:
    [one] = load(store, io.BytesIO(docker_save([BASE, APP])))
    assert names(one.image) == ["test:1"]
    assert leftovers(store) == []


def test_a_layout_directory_is_loaded(store: Store, tmp_path: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(oci_archive([BASE, APP]))) as tar:
        tar.extractall(tmp_path / "layout", filter="data")
    [one] = load(store, tmp_path / "layout")
    assert len(one.image.layers) == 2


def test_a_directory_without_a_layout_is_refused(store: Store, tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    with pytest.raises(ImageError, match="not an unpacked image"):
        load(store, tmp_path / "dir")


def test_a_damaged_second_layer_leaves_nothing_of_the_image(store: Store) -> None:
    whole = docker_save([BASE, APP])
    damaged = whole.replace(b"#!", b"#?", 1)
    assert damaged != whole
    with pytest.raises(ImageError, match="diff ID"):
        loaded(store, damaged)
    assert (store.images(), store.layers(), leftovers(store)) == ([], [], [])
    loaded(store, whole)
    assert len(store.layers()) == 2


def test_what_a_killed_load_left_is_swept_by_the_next(store: Store) -> None:
    (store.tmp / "half" / "deep").mkdir(parents=True)
    (store.tmp / "half" / "deep").chmod(0)
    (store.tmp / "names.json.new").write_text("{")
    (store.root / "layers" / ("a" * 64 + ".json")).write_text("{}")
    loaded(store, docker_save([BASE]))
    assert leftovers(store) == []
    assert len(store.layers()) == 1


def test_a_bad_name_in_the_archive_is_refused_before_anything_is_stored(store: Store) -> None:
    with pytest.raises(ImageError, match=r"manifest\.json.*not a valid image name"):
        loaded(store, docker_save([BASE], tag="two words"))
    assert store.layers() == []


def test_a_name_moves_to_the_image_loaded_last(store: Store) -> None:
    [first] = loaded(store, docker_save([BASE]))
    [second] = loaded(store, docker_save([APP]))
    assert second.displaced == {ImageName.parse("test:1"): first.image.id}
    assert names(store.image(first.image.id)) == []
    assert store.find("test:1").id == second.image.id


def test_an_image_is_found_by_name_and_by_the_start_of_its_id(store: Store) -> None:
    [one] = loaded(store, docker_save([BASE], tag="app:latest"))
    for word in ("app", "app:latest", str(one.image.id), one.image.id.short, one.image.id.encoded[:1]):
        assert store.find(word).id == one.image.id
    for word in ("nothing", "0000"):
        with pytest.raises(ImageError, match="no image"):
            store.find(word)
    with pytest.raises(ImageError, match="not a valid image name"):
        store.find("../names.json")


def test_the_tree_of_a_container_is_imported_not_loaded(store: Store) -> None:
    tree = archive([("etc/", directory()), ("etc/motd", b"hi")])
    with pytest.raises(ImageError, match="import"):
        loaded(store, tree)
    one = import_tree(store, write(store.root, tree), ImageName.parse("flat"))
    assert names(one.image) == ["flat:latest"]
    assert one.image.layers[0].diff_id == Digest.of(tree)
    assert json.loads(one.image.config)["history"][0]["comment"].startswith("Imported from")


def test_the_platform_is_chosen(store: Store) -> None:
    with pytest.raises(ImageError, match="--platform"):
        load(store, write(store.root, oci_archive([BASE])), Platform("linux", "pdp11"))


def test_another_directory_is_not_taken_for_a_store(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ImageError, match="not empty and not a store"):
        Store(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["file"]


# --- removal --------------------------------------------------------------------------------------


def two(store: Store) -> tuple[Digest, Digest]:
    first, second = loaded(store, docker_save_many({"a:1": [BASE, APP], "b:1": [BASE, OTHER]}))
    return first.image.id, second.image.id


def test_removing_an_image_keeps_what_another_one_has(store: Store) -> None:
    first, _ = two(store)
    first_layers = store.chain_ids_of(first)
    gone = remove_image(store, "a:1")
    assert (list(map(str, gone.names)), gone.images) == (["a:1"], (first,))
    assert gone.layers == (first_layers[1],)
    assert {layer.diff_id for layer in store.layers()} == {Digest.of(BASE), Digest.of(OTHER)}
    assert leftovers(store) == []


def test_one_of_two_names_goes_alone(store: Store) -> None:
    first, _ = two(store)
    tag(store, "a:1", ImageName.parse("again"))
    assert remove_image(store, "a:1").images == ()
    assert names(store.image(first)) == ["again:latest"]


def test_an_id_with_two_names_wants_force(store: Store) -> None:
    first, _ = two(store)
    tag(store, "a:1", ImageName.parse("again"))
    with pytest.raises(ImageError, match="2 names: a:1, again:latest"):
        remove_image(store, first.short)
    assert remove_image(store, first.short, force=True).images == (first,)


def test_prune_takes_what_has_no_name_and_nothing_else(store: Store) -> None:
    [nameless] = loaded(store, docker_save([BASE]))
    loaded(store, docker_save([APP]))
    gone = prune(store)
    assert gone.images == (nameless.image.id,)
    assert gone.size == len("hello\n1234567")
    assert [names(image) for image in store.images()] == [["test:1"]]
