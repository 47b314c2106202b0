"""Does one damaged record in the store leave the rest of it usable, and is it named with what to do?"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from overlayfs_demo.cli import main
from overlayfs_demo.errors import ImageError
from overlayfs_demo.images.model import Digest
from overlayfs_demo.store.load import load
from overlayfs_demo.store.remove import prune, remove_image
from overlayfs_demo.store.store import Store
from tests.images.builders import docker_save_many, layer
from tests.places import BIN
from tests.store.test_used_images import record

BASE = layer({"etc/motd": "hello\n"})
BAD = layer({"bad": "x"})
GOOD = layer({"good": "y"})
IMAGES = docker_save_many({"bad:1": [BASE, BAD], "good:1": [BASE, GOOD]})
BAD_LAYER = Digest.of(f"{Digest.of(BASE)} {Digest.of(BAD)}".encode())
Captured = pytest.CaptureFixture[str]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store with bad:1 and good:1, which share a layer."""
    (tmp_path / "image.tar").write_bytes(IMAGES)
    store = Store(tmp_path / "store")
    load(store, tmp_path / "image.tar")
    return store


def config(store: Store) -> Path:
    return store.root / "images" / store.find("bad:1").id.encoded


def cut_config(store: Store) -> str:
    path = config(store)
    path.write_bytes(path.read_bytes()[:-9])
    return f"rmi {path.name[:12]}"


def other_config(store: Store) -> str:
    path = config(store)
    path.write_bytes(path.read_bytes().replace(b"make layer", b"made layer"))
    return f"rmi {path.name[:12]}"


def lose_layer(store: Store) -> str:
    directory = store.root / "layers" / BAD_LAYER.encoded
    directory.rename(store.root.parent / "lost")
    return "load it again"


def cut_record(store: Store) -> str:
    path = store.root / "layers" / f"{BAD_LAYER.encoded}.json"
    path.write_bytes(path.read_bytes()[:-9])
    return "then load them again"


def lose_record(store: Store) -> str:
    (store.root / "layers" / f"{BAD_LAYER.encoded}.json").unlink()
    return "then load them again"


def fifo(store: Store, name: str) -> Path:
    """Put a FIFO in the place of a file of the store."""
    path = store.root / name
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    return path


def config_is_fifo(store: Store) -> str:
    return f"rmi {fifo(store, f'images/{config(store).name}').name[:12]}"


def record_is_fifo(store: Store) -> str:
    fifo(store, f"layers/{BAD_LAYER.encoded}.json")
    return "then load them again"


DAMAGE: dict[str, Callable[[Store], str]] = {
    "config-cut": cut_config,
    "config-of-another": other_config,
    "layer-lost": lose_layer,
    "record-cut": cut_record,
    "record-lost": lose_record,
    "config-is-fifo": config_is_fifo,
    "record-is-fifo": record_is_fifo,
}


def said(store: Store, capsys: Captured, *words: str) -> tuple[str, str]:
    """What a verb that succeeds prints, on stdout and stderr."""
    assert main.main([words[0], "--store", str(store.root), *words[1:]]) == 0
    told = capsys.readouterr()
    return told.out, told.err


@pytest.mark.parametrize("verb", ["images", "df", "layers", "prune"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_the_rest_is_listed_and_the_damage_is_named_with_a_remedy(
    store: Store, damage: str, verb: str, capsys: Captured
) -> None:
    bad = store.find("bad:1").id
    remedy = DAMAGE[damage](store)
    out, err = said(store, capsys, verb)
    assert remedy in err
    assert bad.short in err or BAD_LAYER.short in err
    if verb != "prune":
        assert "good" in out
    assert "bad" not in out


@pytest.mark.parametrize("damage", DAMAGE)
def test_the_other_image_is_found_and_kept(store: Store, damage: str) -> None:
    DAMAGE[damage](store)
    with pytest.raises(ImageError):
        store.find("bad:1")
    assert prune(store).images == ()
    assert len(store.find("good:1").layers) == 2


@pytest.mark.parametrize("by_id", [True, False])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_image_can_be_removed_and_loaded_again(store: Store, damage: str, by_id: bool) -> None:
    bad = store.find("bad:1").id
    DAMAGE[damage](store)
    gone = remove_image(store, bad.short if by_id else "bad:1")
    assert (list(map(str, gone.names)), gone.images) == (["bad:1"], (bad,))
    assert store.inventory().problems == ()
    load(store, store.root.parent / "image.tar")
    assert len(store.find("bad:1").layers) == 2


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_image_is_whole_once_it_is_loaded_again(store: Store, damage: str) -> None:
    DAMAGE[damage](store)
    load(store, store.root.parent / "image.tar")
    assert store.inventory().problems == ()
    assert len(store.find("bad:1").layers) == 2


def test_a_damaged_image_that_a_container_uses_stays(store: Store) -> None:
    bad = store.find("bad:1").id
    record(store, bad)
    cut_config(store)
    with pytest.raises(ImageError, match="used by container c1"):
        remove_image(store, bad.short, force=True)


@pytest.mark.parametrize("damage", [cut_config, other_config])
def test_no_layer_goes_while_an_image_cannot_say_which_it_has(store: Store, damage: Callable[[Store], str]) -> None:
    damage(store)
    gone = remove_image(store, "good:1")
    assert (len(gone.images), gone.layers) == (1, ())
    assert len(store.layers()) == 3


def test_an_image_that_has_lost_a_layer_keeps_the_others(store: Store) -> None:
    lose_layer(store)
    gone = remove_image(store, "good:1")
    assert len(gone.layers) == 1
    load(store, store.root.parent / "image.tar")
    assert len(store.find("bad:1").layers) == 2


def names(store: Store, change: Callable[[dict[str, object]], None]) -> None:
    path = store.root / "names.json"
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))


def test_a_name_that_stands_for_nothing_is_named_and_can_be_removed(store: Store, capsys: Captured) -> None:
    names(store, lambda found: found.update({"lost:1": f"sha256:{'0' * 64}"}))
    out, err = said(store, capsys, "images")
    assert "good" in out
    assert "the name lost:1 refers to" in err
    assert "rmi lost:1" in err
    assert list(map(str, remove_image(store, "lost:1").names)) == ["lost:1"]
    assert said(store, capsys, "images") == (out, "")


@pytest.mark.parametrize("text", ["[", '{"good:1": 5}', '"x"'])
def test_images_are_found_by_id_while_the_names_are_damaged(store: Store, text: str, capsys: Captured) -> None:
    good = store.find("good:1").id
    (store.root / "names.json").write_text(text)
    assert store.find(good.short).id == good
    with pytest.raises(ImageError, match=r"list of image names is damaged .*remove (that file|the row 'good:1')"):
        store.find("good:1")
    out, err = said(store, capsys, "images")
    assert out.count("<none>") == 4
    assert "remove th" in err


def test_a_file_that_is_no_record_is_nobodys_image(store: Store, capsys: Captured) -> None:
    (store.root / "images/notes.txt").write_text("mine")
    (store.root / "layers/mine").mkdir()
    assert said(store, capsys, "images")[1] == ""
    prune(store, every=True)
    assert (store.root / "layers/mine").exists()


@pytest.mark.parametrize(
    ("name", "words", "status"),
    [
        ("names.json", ["images"], 0),
        ("names.json", ["tag", "good:1", "better:1"], 1),
        ("version", ["images"], 1),
        ("images/{config}", ["images"], 0),
        ("layers/{layer}.json", ["layers"], 0),
        ("layers/{layer}.recipe", ["save", "bad:1"], 1),
        ("containers/c1/container.json", ["ps"], 1),
    ],
)
def test_fifo_in_the_place_of_a_file_is_named_and_keeps_nobody_waiting(
    store: Store, name: str, words: list[str], status: int
) -> None:
    (store.root / "containers/c1").mkdir(parents=True)
    path = fifo(store, name.format(config=config(store).name, layer=BAD_LAYER.encoded))
    done = subprocess.run(
        [BIN / "overlayfs-demo", words[0], "--store", store.root, *words[1:]],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    assert (done.returncode, f"{path} is not a regular file" in done.stderr) == (status, True), done.stderr


@pytest.mark.parametrize("text", ["[", "{}", '{"image": "x"}'])
def test_a_container_whose_record_is_damaged_is_named_and_nothing_is_removed(
    store: Store, text: str, capsys: Captured
) -> None:
    directory = store.root / "containers/broken"
    directory.mkdir(parents=True)
    (directory / "container.json").write_text(text)
    assert main.main(["prune", "--all", "--force", "--store", str(store.root)]) == 1
    assert "record of container 'broken' is damaged" in capsys.readouterr().err
    assert len(store.images()) == 2
