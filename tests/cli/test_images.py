"""What do the verbs about images take, and what do they print?"""

from __future__ import annotations

import io
import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from overlayfs_demo.cli import main as cli
from overlayfs_demo.images.archive import open_archive
from overlayfs_demo.images.model import Digest
from overlayfs_demo.images.select import select_image
from overlayfs_demo.store.load import load
from overlayfs_demo.store.store import Store
from tests.images.builders import docker_save, docker_save_many, layer, oci_archive

BASE, APP = layer({"etc/motd": "hello\n"}), layer({"app/run": "#!"})

Said = tuple[int, str, str]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def demo(place: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Run a verb: its exit status, and what it printed on stdout and stderr."""

    def run(verb: str, *words: str | Path) -> Said:
        capfd.readouterr()
        try:
            status = cli.main([verb, "--store", str(place), *map(str, words)])
        except SystemExit as error:
            status = int(str(error.code))
        return status, *capfd.readouterr()

    return run


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "image.tar"
    path.write_bytes(docker_save([BASE, APP], tag="app:1"))
    return path


@contextmanager
def fifo(place: Path, data: bytes) -> Iterator[Path]:
    """A FIFO into which somebody writes this data, once."""
    path = place / "fifo"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_bytes, args=(data,))
    writer.start()
    try:
        yield path
    finally:
        writer.join()


@pytest.mark.parametrize("data", [docker_save([BASE], tag="app:1"), oci_archive([BASE], "zstd")])
def test_archive_is_loaded_from_a_fifo(demo: Callable[..., Said], tmp_path: Path, data: bytes) -> None:
    with fifo(tmp_path, data) as path:
        status, out, err = demo("load", path)
    assert (status, err) == (0, "")
    assert out.startswith("Loaded image: ")
    assert os.listdir(tmp_path / "store" / "tmp") == []


def test_tree_is_imported_from_a_fifo_and_only_its_id_printed(demo: Callable[..., Said], tmp_path: Path) -> None:
    with fifo(tmp_path, BASE) as path:
        status, out, err = demo("import", path)
    [image] = Store(tmp_path / "store").images()
    assert (status, out, err) == (0, f"{image.id}\n", "")
    assert (image.names, image.layers[0].diff_id) == ((), Digest.of(BASE))


def test_stream_that_begins_within_a_file_is_read_from_there(tmp_path: Path) -> None:
    path = tmp_path / "both"
    path.write_bytes(b"head\n" + docker_save([BASE]))
    with path.open("rb") as stream:
        stream.readline()
        assert len(list(load(Store(tmp_path / "store"), stream))) == 1


def test_archive_is_named_as_docker_names_it(demo: Callable[..., Said], archive: Path) -> None:
    assert demo("load", "-i", archive) == (0, "Loaded image: app:1\n", "")
    status, _, err = demo("load", "-i", archive, archive)
    assert (status, err) == (2, "overlayfs-demo: two archives were given: name one\n")


def test_empty_name_is_not_the_present_directory(demo: Callable[..., Said]) -> None:
    status, _, err = demo("load", "")
    assert (status, err) == (2, "overlayfs-demo: the archive has an empty name: name a file, or - for standard input\n")


@pytest.mark.parametrize("data", [b"", b"hello\n", b"x" * 600])
def test_file_that_is_no_archive_is_called_that(demo: Callable[..., Said], tmp_path: Path, data: bytes) -> None:
    (tmp_path / "text").write_bytes(data)
    status, _, err = demo("load", tmp_path / "text")
    assert status == 1 and f"{tmp_path / 'text'} is not a tar archive" in err


def test_images_of_one_repository_are_listed(demo: Callable[..., Said], place: Path) -> None:
    load(Store(place), io.BytesIO(docker_save_many({"app:1": [BASE], "app:2": [APP], "other:1": [BASE, APP]})))

    def listed(*words: str) -> list[str]:
        rows = map(json.loads, demo("images", "--json", *words)[1].splitlines())
        return [f"{row['Repository']}:{row['Tag']}" for row in rows]

    assert sorted(listed()) == ["app:1", "app:2", "other:1"]
    assert sorted(listed("docker.io/library/app")) == ["app:1", "app:2"]
    assert listed("app:2") == ["app:2"]
    assert listed("nothing") == []


def test_inspect_prints_what_there_is_and_names_the_rest(demo: Callable[..., Said], archive: Path) -> None:
    demo("load", archive)
    status, out, err = demo("inspect", "nothing", "app:1")
    assert (status, [one["RepoTags"] for one in json.loads(out)]) == (1, [["app:1"]])
    problem = "no container 'nothing', and no image nothing:latest"
    assert err == f"overlayfs-demo: {problem}: 'overlayfs-demo images' lists the images\n"


def test_image_that_is_taken_for_a_container_is_called_that(demo: Callable[..., Said], archive: Path) -> None:
    demo("load", archive)
    for words in (["diff", "app:1"], ["export", "app:1"], ["start", "app:1"]):
        status, _, err = demo(*words)
        assert status == 1 and "no container 'app:1': that is an image" in err


def test_layers_of_a_damaged_image_are_not_offered_to_prune(
    demo: Callable[..., Said], place: Path, archive: Path
) -> None:
    demo("load", archive)
    image = Store(place).find("app:1")
    (place / "images" / image.id.encoded).write_text("{")
    assert "prune" not in demo("df")[1]
    assert demo("layers")[1].count("a damaged image") == 2


def test_hidden_copy_is_not_a_file_that_is_seen_twice(demo: Callable[..., Said], place: Path) -> None:
    load(Store(place), io.BytesIO(docker_save([layer({"a": "same\n"}), layer({"a": "same\n"})], tag="hidden:1")))
    load(Store(place), io.BytesIO(docker_save([layer({"a": "same\n"}), layer({"b": "same\n"})], tag="twice:1")))
    assert "Not counted as waste" not in demo("analyze", "hidden:1")[1]
    assert "Not counted as waste: 5B in 1 file whose data appears" in demo("analyze", "twice:1")[1]


def test_last_image_of_a_name_is_the_one_that_is_built(tmp_path: Path) -> None:
    from tests.images.builders import archive as tar
    from tests.images.builders import config, hexdigest

    first, second = config([BASE]), config([APP])
    rows = [
        {"Config": f"{hexdigest(one)}.json", "RepoTags": ["twice:1"], "Layers": [path]}
        for one, path in ((first, "a.tar"), (second, "b.tar"))
    ]
    (tmp_path / "twice.tar").write_bytes(
        tar(
            [
                (f"{hexdigest(first)}.json", first),
                (f"{hexdigest(second)}.json", second),
                ("a.tar", BASE),
                ("b.tar", APP),
                ("manifest.json", json.dumps(rows).encode()),
            ]
        )
    )
    with open_archive(tmp_path / "twice.tar") as opened:
        for name in (None, "twice:1"):
            assert select_image(opened, name).layers[0].diff_id == Digest.of(APP)
        assert select_image(opened, hexdigest(first)[:12]).layers[0].diff_id == Digest.of(BASE)
