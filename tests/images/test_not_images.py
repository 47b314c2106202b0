"""What becomes of an archive that also holds what is no image, or an image that is bad?"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from overlayfs_demo.cli import main
from overlayfs_demo.errors import ImageError
from overlayfs_demo.store.load import load
from overlayfs_demo.store.store import Store
from tests.images.builders import Blobs, archive, config, docker_save_many, for_platform, hexdigest, layer, named

BASE = layer({"etc/motd": "hello\n"})
OTHER = layer({"other": "x"})
IMAGE_CONFIG = "application/vnd.oci.image.config.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
COSIGN = "application/vnd.dev.cosign.simplesigning.v1+json"
Captured = pytest.CaptureFixture[str]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def write(store: Store, data: bytes) -> Path:
    path = store.root.parent / "image.tar"
    path.write_bytes(data)
    return path


def artifact(
    blobs: Blobs, layer_type: str = COSIGN, config_type: str = IMAGE_CONFIG, **more: object
) -> dict[str, object]:
    """A manifest of something else; its descriptor."""
    payload = blobs.add(b'{"critical": {}}', layer_type)
    described = blobs.add(config([b"{}"]), config_type)
    manifest = {"schemaVersion": 2, "config": described, "layers": [payload], **more}
    return blobs.add(json.dumps(manifest).encode(), MANIFEST)


def subject_only(blobs: Blobs) -> dict[str, object]:
    described = blobs.add(config([]), IMAGE_CONFIG)
    manifest = {"schemaVersion": 2, "config": described, "layers": [], "subject": blobs.add(b"{}", MANIFEST)}
    return blobs.add(json.dumps(manifest).encode(), MANIFEST)


# How each looks in an index, and the kind that is told of it.
OTHERS: dict[str, tuple[Callable[[Blobs], dict[str, object]], str]] = {
    "cosign-signature": (artifact, COSIGN),
    "cosign-attestation": (lambda blobs: artifact(blobs, "application/vnd.dsse.envelope.v1+json"), "vnd.dsse"),
    "sbom": (lambda blobs: artifact(blobs, "text/spdx+json"), "text/spdx+json"),
    "artifact-type": (
        lambda blobs: artifact(blobs, config_type="application/vnd.oci.empty.v1+json", artifactType="application/x.y"),
        "application/x.y",
    ),
    "helm-chart": (
        lambda blobs: artifact(blobs, config_type="application/vnd.cncf.helm.config.v1+json"),
        "vnd.cncf.helm",
    ),
    "subject-without-layers": (subject_only, "refers to another manifest"),
    "buildkit-platform": (lambda blobs: for_platform(artifact(blobs), "unknown", "unknown"), "unknown/unknown"),
    "buildkit-annotation": (
        lambda blobs: {**artifact(blobs), "annotations": {"vnd.docker.reference.type": "attestation-manifest"}},
        "attestation-manifest",
    ),
    "artifact-manifest": (
        lambda blobs: {**artifact(blobs), "mediaType": "application/vnd.oci.artifact.manifest.v1+json"},
        "vnd.oci.artifact",
    ),
}


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("first", [True, False])
def test_a_manifest_of_something_else_is_left_out_and_told(store: Store, kind: str, first: bool) -> None:
    make, told = OTHERS[kind]
    blobs = Blobs()
    entries = [named(blobs.image([BASE]), "app:1"), make(blobs)]
    outcome = load(store, write(store, blobs.layout(entries[::-1] if first else entries)))
    assert [one.image.value.tags for one in outcome] == [("app:1",)]
    assert outcome.failed == []
    [other] = outcome.others
    assert told in str(other)


def test_an_image_that_refers_to_another_manifest_is_an_image(store: Store) -> None:
    blobs = Blobs()
    rows = [blobs.add(BASE, "application/vnd.oci.image.layer.v1.tar")]
    manifest = {
        "schemaVersion": 2,
        "config": blobs.add(config([BASE]), IMAGE_CONFIG),
        "layers": rows,
        "subject": blobs.add(b"{}", MANIFEST),
    }
    data = blobs.layout([named(blobs.add(json.dumps(manifest).encode(), MANIFEST), "app:1")])
    assert [one.image.value.tags for one in load(store, write(store, data))] == [("app:1",)]


def test_an_archive_of_other_things_alone_is_refused_and_they_are_named(store: Store) -> None:
    blobs = Blobs()
    with pytest.raises(ImageError, match=r"contains no image, only 2 manifests of other kinds: .*cosign.*text/spdx"):
        load(store, write(store, blobs.layout([artifact(blobs), artifact(blobs, "text/spdx+json")])))


def test_one_note_tells_of_all_that_was_left_out(store: Store, capsys: Captured) -> None:
    blobs = Blobs()
    data = blobs.layout([named(blobs.image([BASE]), "app:1"), artifact(blobs), artifact(blobs, "text/spdx+json")])
    assert main.main(["load", "--store", str(store.root), str(write(store, data))]) == 0
    told = capsys.readouterr()
    assert told.out == "Loaded image: app:1\n"
    [note] = told.err.splitlines()
    assert "note: skipped 2 manifests that are not images: " in note


# --- one bad image of several ----------------------------------------------------------------------


def three() -> bytes:
    """a:1, b:1 and c:1, of which b:1 has a damaged layer on one that it shares with a:1."""
    whole = docker_save_many({"a:1": [OTHER], "b:1": [OTHER, BASE], "c:1": [layer({"c": "1"})]})
    return whole.replace(b"hello", b"hallo")


def test_the_others_of_a_bad_image_are_loaded_and_it_leaves_nothing(store: Store) -> None:
    outcome = load(store, write(store, three()))
    assert [one.image.value.tags for one in outcome] == [("a:1",), ("c:1",)]
    [failed] = outcome.failed
    assert failed.title == "b:1"
    assert len(store.layers()) == 2
    assert sorted(image.value.tags for image in store.images()) == [("a:1",), ("c:1",)]
    assert os.listdir(store.tmp) == []


def test_a_layer_that_two_bad_images_share_is_told_of_each(store: Store) -> None:
    data = docker_save_many({"a:1": [BASE], "b:1": [BASE], "c:1": [OTHER]}).replace(b"hello", b"hallo")
    outcome = load(store, write(store, data))
    assert [one.title for one in outcome.failed] == ["a:1", "b:1"]
    assert all("does not match" in str(one.error) for one in outcome.failed)
    assert [one.image.value.tags for one in outcome] == [("c:1",)]


def test_the_only_image_of_an_archive_raises_its_error(store: Store) -> None:
    with pytest.raises(ImageError, match="does not match"):
        load(store, write(store, docker_save_many({"a:1": [BASE]}).replace(b"hello", b"hallo")))


def test_load_says_what_was_loaded_and_names_the_bad_image(store: Store, capsys: Captured) -> None:
    assert main.main(["load", "--store", str(store.root), str(write(store, three()))]) == 1
    told = capsys.readouterr()
    assert told.out == "Loaded image: a:1\nLoaded image: c:1\n"
    [error] = told.err.splitlines()
    assert error.startswith("overlayfs-demo: image b:1 was not loaded: ")
    assert hexdigest(BASE) in error


def test_json_has_the_bad_image_too(store: Store, capsys: Captured) -> None:
    assert main.main(["load", "--json", "--store", str(store.root), str(write(store, three()))]) == 1
    first, second, bad = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["Names"], second["Names"]) == (["a:1"], ["c:1"])
    assert bad["Image"] == "b:1"
    assert "does not match" in bad["Error"]


@pytest.mark.parametrize(
    "row",
    [
        1,
        {},
        {"Config": 5, "RepoTags": ["bad:1"]},
        {"Config": "nowhere", "RepoTags": ["bad:1"], "Layers": []},
        {"Config": "c", "RepoTags": ["bad:1"], "Layers": []},
    ],
)
def test_a_bad_row_of_the_manifest_keeps_no_other_out(store: Store, row: object) -> None:
    settings = config([BASE])
    good = {"Config": "good", "RepoTags": ["app:1"], "Layers": ["l"]}
    members = [("good", settings), ("l", BASE), ("c", b"["), ("manifest.json", json.dumps([row, good]).encode())]
    outcome = load(store, write(store, archive(members)))
    assert [one.image.value.tags for one in outcome] == [("app:1",)]
    assert len(outcome.failed) == 1


def test_a_manifest_that_is_missing_or_damaged_keeps_no_other_out(store: Store) -> None:
    blobs = Blobs()
    good = named(blobs.image([BASE]), "app:1")
    lost = named(dict(blobs.image([OTHER])), "lost:1")
    broken = named(blobs.add(b"[", MANIFEST), "broken:1")
    del blobs.members[f"blobs/sha256/{str(lost['digest'])[7:]}"]
    outcome = load(store, write(store, blobs.layout([lost, broken, good])))
    assert [one.image.value.tags for one in outcome] == [("app:1",)]
    assert [one.title for one in outcome.failed] == ["lost:1", "broken:1"]


def test_a_manifest_of_schema_1_is_named(store: Store) -> None:
    blobs = Blobs()
    entry = blobs.add(b"{}", "application/vnd.docker.distribution.manifest.v1+prettyjws")
    with pytest.raises(ImageError, match=r"schema 1.* skopeo copy --format v2s2"):
        load(store, write(store, blobs.layout([entry])))
