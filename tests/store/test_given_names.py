"""Does an image get the names that its archive gives it, and is it called by the one that was asked for?"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from overlayfs_demo.cli import main
from overlayfs_demo.errors import ImageError
from overlayfs_demo.images.archive import open_archive
from overlayfs_demo.images.select import select_image
from overlayfs_demo.store.load import load
from overlayfs_demo.store.save import save
from overlayfs_demo.store.store import Store
from tests.conftest import why_no_mounts
from tests.images.builders import Blobs, annotated, docker_save, docker_save_many, layer, named

BASE, APP = layer({"etc/motd": "hello\n"}), layer({"app/run": "#!"})
FULL, REF = "io.containerd.image.name", "org.opencontainers.image.ref.name"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def names(store: Store, data: bytes) -> list[list[str]]:
    """The names that each image of the archive is told to have."""
    return [list(map(str, one.names)) for one in load(store, io.BytesIO(data))]


# --- in an archive ---------------------------------------------------------------------------------


# podman save of a Docker Hub image writes its full name, docker save the familiar one.
@pytest.mark.parametrize("given", ["alp:1", "library/alp:1", "docker.io/library/alp:1", "index.docker.io/alp:1"])
def test_every_spelling_in_an_archive_is_one_name(store: Store, given: str) -> None:
    assert names(store, docker_save([BASE], tag=given)) == [["alp:1"]]
    for word in ("alp:1", "docker.io/library/alp:1"):
        assert [str(name) for name in store.find(word).names] == ["alp:1"]


def test_spellings_of_one_name_are_told_once(store: Store) -> None:
    blobs = Blobs()
    image = blobs.image([BASE])
    data = blobs.layout([annotated(image, {REF: name}) for name in ("alp:1", "docker.io/library/alp:1")])
    assert names(store, data) == [["alp:1"]]


@pytest.mark.parametrize(
    ("annotations", "expected"),
    [
        ({FULL: "docker.io/library/app:1.0", REF: "1.0"}, ["app:1.0"]),  # buildx, nerdctl, ctr
        ({FULL: f"docker.io/library/app:1.0@sha256:{'0' * 64}", REF: "1.0"}, ["app:1.0"]),
        ({FULL: f"docker.io/library/app@sha256:{'0' * 64}"}, []),
        ({REF: "app:1.0"}, ["app:1.0"]),  # skopeo, buildah
        ({REF: "localhost/app:1.0"}, ["localhost/app:1.0"]),  # podman
        ({REF: "localhost/app"}, ["localhost/app:latest"]),
        ({REF: "1.0"}, []),
        ({REF: "latest"}, []),
        ({REF: ""}, []),
        ({}, []),  # umoci: the tag, of what is not said
        ({REF: "Some/thing:that+is=no.name"}, []),
    ],
)
def test_oci_annotations_give_a_name_or_only_a_tag(
    store: Store, annotations: dict[str, str], expected: list[str]
) -> None:
    blobs = Blobs()
    assert names(store, blobs.layout([annotated(blobs.image([BASE]), annotations)])) == [expected]
    assert [str(name) for image in store.images() for name in image.names] == expected


def test_tag_of_one_image_takes_no_name_from_another(store: Store) -> None:
    load(store, io.BytesIO(docker_save([APP], tag="1.0:latest")))
    blobs = Blobs()
    names(store, blobs.layout([annotated(blobs.image([BASE]), {FULL: "docker.io/library/app:1.0", REF: "1.0"})]))
    assert store.find("1.0:latest").id != store.find("app:1.0").id


def test_tag_chooses_an_image_within_its_archive(tmp_path: Path) -> None:
    blobs = Blobs()
    entries = [named(blobs.image([BASE]), "1.0"), named(blobs.image([BASE, APP]), "2.0")]
    (tmp_path / "two.tar").write_bytes(blobs.layout(entries))
    with open_archive(tmp_path / "two.tar") as archive:
        assert len(select_image(archive, "2.0").layers) == 2
        with pytest.raises(ImageError, match=r"no image 3.0:latest in .*two.tar: it contains: 1.0, 2.0"):
            select_image(archive, "3.0")


@pytest.mark.parametrize("tag", ["App:1", "two words", "a:b:c", "x" * 256])
def test_bad_name_in_an_archive_is_refused_with_its_member(store: Store, tag: str) -> None:
    blobs = Blobs()
    entry = annotated(blobs.image([BASE]), {FULL: tag})
    for data, member in ((docker_save([BASE], tag=tag), "manifest.json"), (blobs.layout([entry]), "index.json")):
        with pytest.raises(ImageError, match=f"{member}.*'{tag}' is not a valid image name"):
            load(store, io.BytesIO(data))
    assert (store.images(), store.layers()) == ([], [])


# --- written ---------------------------------------------------------------------------------------


def saved(store: Store, *words: str) -> list[list[str]]:
    """RepoTags of each image in the archive; its OCI index says the same."""
    out = io.BytesIO()
    save([store.find(word) for word in words], out)
    out.seek(0)
    with tarfile.open(fileobj=out) as tar:

        def read(name: str) -> object:
            member = tar.extractfile(name)
            assert member is not None
            return json.loads(member.read())

        rows, index = read("manifest.json"), read("index.json")
    assert isinstance(rows, list) and isinstance(index, dict)
    full = [entry["annotations"][FULL] for entry in index["manifests"] if "annotations" in entry]
    assert full == [f"docker.io/library/{tag}" for row in rows for tag in row["RepoTags"]]
    return [row["RepoTags"] for row in rows]


def test_saved_image_has_the_names_that_were_asked_for_and_no_other(store: Store) -> None:
    load(store, io.BytesIO(docker_save_many({"multi:1": [BASE], "other:1": [BASE, APP]})))
    image = store.find("multi:1")
    for name in ("multi:2", "private:1", "multi:latest"):
        main.main(["tag", "--store", str(store.root), "multi:1", name])
    assert saved(store, "multi:1") == [["multi:1"]]
    assert saved(store, "docker.io/library/multi") == [["multi:latest"]]
    assert saved(store, "multi:2", "other:1", "multi:1", "multi:2") == [["multi:2", "multi:1"], ["other:1"]]
    assert saved(store, image.id.short) == [[]]
    assert saved(store, image.id.short, "multi:1") == [["multi:1"]]


# --- shown -----------------------------------------------------------------------------------------


@pytest.fixture
def told(store: Store, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command on a store whose image has three names: `b:1`, and `a:1` and `c:1` around it."""
    load(store, io.BytesIO(docker_save([layer({"f": "old"}), layer({"f": "new"})], tag="b:1")))
    for name in ("a:1", "c:1"):
        main.main(["tag", "--store", str(store.root), "b:1", name])

    def command(verb: str, *words: str) -> str:
        capfd.readouterr()
        assert main.main([verb, "--store", str(store.root), *words]) == 0
        return capfd.readouterr().out

    return command


def test_image_is_called_by_the_name_that_was_typed(told: Callable[..., str], store: Store) -> None:
    for word in ("b:1", "docker.io/library/b:1"):
        assert "b:1 ships" in told("analyze", word)
        assert json.loads(told("analyze", "--json", word))["Image"] == "b:1"
    short = store.find("b:1").id.short
    assert f"{short} ships" in told("analyze", short[:5])
    told("report", "b:1", "-o", str(store.root.parent / "b.html"))
    assert "<h1>b:1</h1>" in (store.root.parent / "b.html").read_text()


def test_container_remembers_the_name_that_was_typed(told: Callable[..., str], store: Store) -> None:
    if problem := why_no_mounts():
        pytest.skip(problem)
    told("create", "c:1", "--name", "one")
    try:
        assert json.loads(told("ps", "--json"))["Image"] == "c:1"
    finally:
        told("rm", "--force", "one")


def test_loading_again_tells_the_names_of_the_archive_alone(told: Callable[..., str], store: Store) -> None:
    path = store.root.parent / "image.tar"
    with path.open("wb") as out:
        save([store.find("c:1")], out)
    assert told("load", str(path)).splitlines()[-1:] == ["Loaded image: c:1"]
    assert json.loads(told("load", "--json", str(path)))["Names"] == ["c:1"]


def test_missing_image_is_one_message_for_every_verb(
    told: Callable[..., str], store: Store, capfd: pytest.CaptureFixture[str]
) -> None:
    for words in (
        ["history"],
        ["inspect", "--type", "image"],  # Without the type, it looks for a container too, and says so.
        ["analyze"],
        ["ghosts"],
        ["rmi"],
        ["create"],
        ["diff", "b:1"],
        ["save", "-o", "x"],
        ["report", "-o", "x"],
        ["which", "--image", "b", "f"],
    ):
        capfd.readouterr()
        verb, *more = words
        wanted = [] if "--image" in more else ["b"]
        assert main.main([verb, "--store", str(store.root), *more, *wanted]) == 1
        assert capfd.readouterr().err == "overlayfs-demo: no image b:latest: similar names: b:1\n"


def test_layer_of_an_image_is_counted_after_its_name(told: Callable[..., str]) -> None:
    assert told("diff", "docker.io/library/b:1@1", "b:1@2") == "C /f\n"
