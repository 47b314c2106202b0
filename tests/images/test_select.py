"""Which image of several of one name, and which platform of an index, is loaded?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from overlayfs_demo.cli import main
from overlayfs_demo.errors import ImageError
from overlayfs_demo.images import select
from overlayfs_demo.images.model import Digest, Platform
from overlayfs_demo.store.load import Outcome, load
from overlayfs_demo.store.store import Store
from tests.images.builders import Blobs, archive, config, docker_save, for_platform, layer, named

LAYERS = {word: layer({word: "x"}) for word in ("one", "two", "three", "four")}
ONE, TWO = [LAYERS["one"]], [LAYERS["two"]]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select, "running_platform", lambda: Platform("linux", "amd64"))


def write(store: Store, data: bytes) -> Path:
    path = store.root.parent / "image.tar"
    path.write_bytes(data)
    return path


def what(outcome: Outcome) -> list[tuple[str, tuple[str, ...]]]:
    """The name of the file in each image that was loaded, and the image's names."""
    words = {Digest.of(data): word for word, data in LAYERS.items()}
    return [(words[one.image.layers[0].diff_id], one.image.value.tags) for one in outcome]


# --- two of one name -------------------------------------------------------------------------------


def two_rows(tag: str = "app:1", **second: object) -> bytes:
    rows = [{"Config": name, "RepoTags": [tag], "Layers": [layer]} for name, layer in (("c1", "one"), ("c2", "two"))]
    members = [("c1", config(ONE)), ("c2", config(TWO, **second)), *LAYERS.items()]
    return archive([*members, ("manifest.json", json.dumps(rows).encode())])


def two_descriptors(**more: object) -> bytes:
    blobs = Blobs()
    return blobs.layout([named({**blobs.image(layers), **more}, "app:1") for layers in (ONE, TWO)])


SAME_NAME = {
    "docker": two_rows(),
    "oci": two_descriptors(),
    "oci-platform": two_descriptors(platform={"os": "linux", "architecture": "amd64"}),
}


@pytest.mark.parametrize("flavour", SAME_NAME)
def test_of_two_images_with_one_name_both_load_and_the_last_has_it(store: Store, flavour: str) -> None:
    assert what(load(store, write(store, SAME_NAME[flavour]))) == [("one", ()), ("two", ("app:1",))]
    assert len(store.images()) == 2


def test_load_says_which_of_the_two_has_the_name(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["load", "--store", str(store.root), str(write(store, two_rows()))]) == 0
    first, taken, second = capsys.readouterr().out.splitlines()
    identity = Digest.of(config(ONE))
    assert first == f"Loaded image ID: {identity}"
    assert taken.startswith(f"Moved the name app:1 from image {identity.short} to")
    assert second == "Loaded image: app:1"


def test_configs_that_say_no_platform_are_two_images(store: Store) -> None:
    rows = [{"Config": name, "RepoTags": ["app:1"], "Layers": [name]} for name in ("one", "two")]
    rows = [{**row, "Config": f"c-{row['Config']}"} for row in rows]
    members = [(f"c-{word}", config([LAYERS[word]], os=None, architecture=None)) for word in ("one", "two")]
    data = archive([*members, *LAYERS.items(), ("manifest.json", json.dumps(rows).encode())])
    assert what(load(store, write(store, data))) == [("one", ()), ("two", ("app:1",))]


# --- platforms -------------------------------------------------------------------------------------


def index(name: str = "app:1", **platforms: str) -> bytes:
    """An index of images by their file's name, each for an os/architecture/variant."""
    blobs = Blobs()
    entries = []
    for word, text in platforms.items():
        one = Platform.parse(text)
        place = {"os": one.os, "architecture": one.architecture, **({"variant": one.variant} if one.variant else {})}
        entries.append({**blobs.image([LAYERS[word]], **place), "platform": place})
    entry = blobs.index(entries)
    return blobs.layout([named(entry, name) if name else entry])


ARM = {"one": "linux/arm/v5", "two": "linux/arm", "three": "linux/arm/v7", "four": "linux/arm/v6"}


@pytest.mark.parametrize(
    ("wanted", "word"),
    [("linux/arm/v7", "three"), ("linux/arm/v6", "four"), ("linux/arm/v5", "one"), ("linux/arm/v8", "two")],
)
def test_the_exact_platform_is_taken_before_one_without_a_variant(store: Store, wanted: str, word: str) -> None:
    platforms = {key: ARM[key] for key in ("one", "two", "four", "three")}
    if wanted == "linux/arm/v7":
        platforms["two"] = "linux/arm64"
    assert what(load(store, write(store, index(**platforms)), Platform.parse(wanted))) == [(word, ("app:1",))]


def test_the_exact_platform_of_the_machine_is_taken(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select, "running_platform", lambda: Platform("linux", "arm", "v6"))
    assert what(load(store, write(store, index(**ARM)))) == [("four", ("app:1",))]


@pytest.mark.parametrize(
    ("wanted", "there"),
    [
        ("linux/arm64", "linux/arm64/v8"),
        ("linux/arm64/v8", "linux/arm64"),
        ("linux/arm", "linux/arm/v7"),
        ("linux/amd64", "linux/amd64/v1"),
    ],
)
def test_a_variant_that_goes_without_saying_is_the_same_platform(store: Store, wanted: str, there: str) -> None:
    family = there.rpartition("/")[0] if there.count("/") == 2 else there
    data = index(one=f"{family}/v9", two=there)
    assert what(load(store, write(store, data), Platform.parse(wanted))) == [("two", ("app:1",))]


def test_a_platform_that_is_not_there_lists_those_that_are(store: Store) -> None:
    data = index(one="linux/arm64", two="linux/s390x")
    with pytest.raises(ImageError, match=r"no image for linux/amd64: .*--platform: linux/arm64, linux/s390x$"):
        load(store, write(store, data))
    with pytest.raises(ImageError, match=r"no image for linux/riscv64: .*--platform: linux/arm64, linux/s390x$"):
        load(store, write(store, data), Platform.parse("linux/riscv64"))


def test_a_wish_for_another_platform_than_the_only_one_is_refused(store: Store) -> None:
    with pytest.raises(ImageError, match="no image for linux/arm64: choose one with --platform: linux/amd64"):
        load(store, write(store, docker_save(ONE)), Platform.parse("linux/arm64"))


def test_the_only_platform_is_loaded_on_any_machine(store: Store) -> None:
    assert what(load(store, write(store, index(one="linux/s390x")))) == [("one", ("app:1",))]


def test_the_platforms_of_an_index_without_a_name_are_one_image(store: Store) -> None:
    data = index("", one="linux/arm64", two="linux/amd64")
    assert what(load(store, write(store, data))) == [("two", ())]
    assert what(load(store, write(store, data), Platform.parse("linux/arm64"))) == [("one", ())]
    assert len(list(load(store, write(store, data), every_platform=True))) == 2


def test_all_platforms_load_and_the_machines_has_the_name(store: Store) -> None:
    data = index(one="linux/arm64", two="linux/amd64", three="linux/s390x")
    outcome = load(store, write(store, data), every_platform=True)
    assert what(outcome) == [("one", ()), ("two", ("app:1",)), ("three", ())]
    assert [str(one.image.parsed.platform) for one in outcome] == ["linux/arm64", "linux/amd64", "linux/s390x"]


def test_of_all_platforms_the_last_has_the_name_if_none_is_the_machines(store: Store) -> None:
    data = index(one="linux/arm64", two="linux/riscv64", three="linux/s390x")
    assert what(load(store, write(store, data), every_platform=True)) == [
        ("one", ()),
        ("two", ()),
        ("three", ("app:1",)),
    ]


def test_load_prints_ids_with_their_platforms(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(store, index(one="linux/arm64", two="linux/amd64"))
    assert main.main(["load", "--platform", "all", "--store", str(store.root), str(path)]) == 0
    by_name = {image.value.tags: image.id for image in store.images()}
    assert capsys.readouterr().out == (
        f"Loaded image ID: {by_name[()]} (linux/arm64)\nLoaded image: app:1 (linux/amd64)\n"
    )


def test_a_bad_platform_that_is_not_wanted_does_no_harm(store: Store) -> None:
    blobs = Blobs()
    bad, good = blobs.image(ONE), blobs.image(TWO)
    blobs.members[f"blobs/sha256/{str(bad['digest'])[7:]}"] = b"["
    entries = [for_platform(bad, "linux", "arm64"), for_platform(good, "linux", "amd64")]
    data = blobs.layout([named(blobs.index(entries), "app:1")])
    assert what(load(store, write(store, data))) == [("two", ("app:1",))]
    outcome = load(store, write(store, data), every_platform=True)
    assert (what(outcome), len(outcome.failed)) == ([("two", ("app:1",))], 1)
