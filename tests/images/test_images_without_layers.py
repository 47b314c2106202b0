"""Is an image without layers, as `FROM scratch` with a LABEL makes one, an image like any other?"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from overlayfs_demo.cli import main
from overlayfs_demo.errors import ImageError
from overlayfs_demo.images.build import build_layers
from overlayfs_demo.images.docker_archive import write_archive
from overlayfs_demo.store.load import load
from overlayfs_demo.store.store import Store
from tests.conftest import unmount_all, why_no_mounts
from tests.images.builders import Blobs, archive
from tests.places import run

CONFIG: dict[str, object] = {
    "architecture": "amd64",
    "os": "linux",
    "config": {"Labels": {"a": "b"}},
    "history": [{"created": "2020-01-01T00:00:00Z", "created_by": "LABEL a=b", "empty_layer": True}],
}
Captured = pytest.CaptureFixture[str]


def docker(diff_ids: object = None, layers: object = None) -> bytes:
    config = json.dumps({**CONFIG, "rootfs": {"type": "layers", "diff_ids": diff_ids}}).encode()
    rows = [{"Config": "c.json", "RepoTags": ["label:1"], "Layers": layers}]
    return archive([("c.json", config), ("manifest.json", json.dumps(rows).encode())])


def oci(layers: object) -> bytes:
    blobs = Blobs()
    config = blobs.add(
        json.dumps({**CONFIG, "rootfs": {"type": "layers", "diff_ids": []}}).encode(),
        "application/vnd.oci.image.config.v1+json",
    )
    manifest = json.dumps({"schemaVersion": 2, "config": config, "layers": layers}).encode()
    entry = blobs.add(manifest, "application/vnd.oci.image.manifest.v1+json")
    return blobs.layout([{**entry, "annotations": {"org.opencontainers.image.ref.name": "label:1"}}])


FLAVOURS = {
    "docker": docker([], []),
    "docker-null": docker(None, None),
    "docker-mixed": docker(None, []),
    "oci": oci([]),
    "oci-null": oci(None),
}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A store that has the image label:1."""
    (tmp_path / "image.tar").write_bytes(docker())
    load(Store(tmp_path / "store"), tmp_path / "image.tar")
    return tmp_path / "store"


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_it_loads_from_every_flavour(tmp_path: Path, flavour: str) -> None:
    (tmp_path / "image.tar").write_bytes(FLAVOURS[flavour])
    [one] = load(Store(tmp_path / "store"), tmp_path / "image.tar")
    assert (one.image.value.tags, one.image.layers, one.image.size) == (("label:1",), (), 0)


@pytest.mark.parametrize(
    "words",
    [
        ["images"],
        ["history", "label:1"],
        ["history", "--layers", "label:1"],
        ["layers"],
        ["df"],
        ["analyze", "label:1"],
        ["analyze", "--json", "label:1"],
        ["analyze", "--max-wasted", "0%", "label:1"],
        ["ghosts", "label:1"],
        ["which", "--image", "label:1", "/"],
        ["diff", "label:1", "label:1"],
        ["prune"],
        ["tag", "label:1", "label:2"],
        ["rmi", "label:1"],
    ],
)
def test_every_verb_about_images_takes_it(place: Path, words: list[str], capsys: Captured) -> None:
    assert main.main([words[0], "--store", str(place), *words[1:]]) == 0
    assert capsys.readouterr().err == ""


def test_inspect_says_what_docker_says_of_it(place: Path, capsys: Captured) -> None:
    assert main.main(["inspect", "--store", str(place), "label:1"]) == 0
    [image] = json.loads(capsys.readouterr().out)
    assert image["RootFS"] == {"Type": "layers"}
    assert image["GraphDriver"]["Data"] is None
    assert (image["Size"], image["Config"]["Labels"]) == (0, {"a": "b"})


def test_it_has_no_first_layer(place: Path, capsys: Captured) -> None:
    assert main.main(["diff", "--store", str(place), "label:1@1", "label:1"]) == 1
    assert "label:1 has none" in capsys.readouterr().err


def test_it_is_the_same_after_save_and_load(place: Path, tmp_path: Path, capsys: Captured) -> None:
    saved = str(tmp_path / "saved.tar")
    assert main.main(["save", "--store", str(place), "-o", saved, "label:1"]) == 0
    assert main.main(["load", "--store", str(tmp_path / "other"), saved]) == 0
    assert Store(tmp_path / "other").find("label:1").id == Store(place).find("label:1").id


def test_it_can_be_written_as_docker_did(place: Path, tmp_path: Path) -> None:
    with (tmp_path / "old.tar").open("wb") as out:
        write_archive(out, Store(place).find("label:1").value, [])
    [one] = load(Store(tmp_path / "other"), tmp_path / "old.tar")
    assert one.image.value.tags == ("label:1",)


def test_there_is_nothing_to_build_of_it(tmp_path: Path) -> None:
    (tmp_path / "image.tar").write_bytes(docker())
    with pytest.raises(ImageError, match="has no layers"):
        build_layers(tmp_path / "image.tar", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_its_report_can_be_written(place: Path, tmp_path: Path) -> None:
    assert main.main(["report", "--store", str(place), "label:1", "-o", str(tmp_path / "report.html")]) == 0
    assert "label:1" in (tmp_path / "report.html").read_text()


@pytest.fixture
def view(place: Path) -> Iterator[Path]:
    """Where its container c1 is mounted."""
    if problem := why_no_mounts():
        pytest.skip(problem)
    done = run("overlayfs-demo", "create", "--store", place, "label:1", "--name", "c1")
    assert (done.returncode, done.stderr) == (0, "")
    yield Path(done.stdout.split()[1])
    unmount_all(str(place))


def test_a_container_of_it_starts_empty_and_commits_what_is_put_in(place: Path, view: Path, capsys: Captured) -> None:
    assert list(view.iterdir()) == []
    assert view.stat().st_mode & 0o7777 == 0o755
    (view / "file").write_text("1")
    assert main.main(["diff", "--store", str(place), "c1"]) == 0
    assert capsys.readouterr().out == "A /file\n"
    assert main.main(["commit", "--store", str(place), "c1", "label:2"]) == 0
    image = Store(place).find("label:2")
    assert [sorted(path.name for path in layer.directory.iterdir()) for layer in image.layers] == [["file"]]
    assert [step.created_by for step in image.parsed.history] == ["LABEL a=b", "overlayfs-demo commit c1"]
    assert main.main(["which", str(view / "file")]) == 0
    assert list((place / "empty").iterdir()) == []
