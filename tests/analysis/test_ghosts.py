"""Do deleted files come out of their layers, and nothing else, and nothing out of place?"""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from overlayfs_demo.analysis.accounts import Hidden
from overlayfs_demo.analysis.ghosts import extract_ghosts
from overlayfs_demo.analysis.stacked_view import Why
from overlayfs_demo.analysis.waste import analyse
from overlayfs_demo.errors import ImageError
from tests.builders import WHITEOUT, Content, file, layers, symlink, tree
from tests.images.builders import needs_root

pytestmark = needs_root


def extracted(where: Path, target: Path, *contents: Content) -> list[str]:
    made = layers(where / "layers", *contents)
    ghosts = analyse(made, [""] * len(made)).ghosts
    return [str(path.relative_to(target)) for path in extract_ghosts(ghosts, made, target)]


def test_every_version_comes_out_under_its_layers_number_and_name(tmp_path: Path) -> None:
    target = tmp_path / "out"
    assert extracted(tmp_path, target, {"root/key": "old"}, {"root/key": "new"}, {"root": WHITEOUT}) == [
        "02-layer1/root/key",
        "01-layer0/root/key",
    ]
    assert (target / "01-layer0/root/key").read_text() == "old"
    assert (target / "02-layer1/root/key").read_text() == "new"


def test_a_number_that_the_directory_has_already_is_not_written_twice(tmp_path: Path) -> None:
    [made] = layers(tmp_path, {"a": "1"})
    directory = made.rename(tmp_path / "01-0123456789abcdef")
    ghost = Hidden(b"a", 1, 2, Why.DELETED, 1, 1)
    [copy] = extract_ghosts([ghost], [directory], tmp_path / "out")
    assert copy == tmp_path / "out" / "01-0123456789ab" / "a"


def test_a_copy_has_the_mode_but_no_set_id_bits_and_its_place_is_private(tmp_path: Path) -> None:
    target = tmp_path / "out"
    extracted(
        tmp_path, target, {"d": {"su": file("1", mode=0o4755, uid=5), "k": file("1", mode=0o640)}}, {"d": WHITEOUT}
    )
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in [target, *target.rglob("*")]}
    assert modes == {"out": 0o700, "01-layer0": 0o700, "d": 0o700, "su": 0o755, "k": 0o640}
    assert (target / "01-layer0/d/su").stat().st_uid == os.geteuid()


def test_an_empty_target_is_used(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert extracted(tmp_path, tmp_path / "out", {"a": "1"}, {"a": WHITEOUT}) == ["01-layer0/a"]


def test_a_target_that_is_not_empty_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(ImageError, match="out is not an empty directory"):
        extracted(tmp_path, tmp_path / "out", {"a": "1"}, {"a": WHITEOUT})
    assert os.listdir(tmp_path / "out") == ["mine"]


def test_a_target_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "out").symlink_to("real")
    with pytest.raises(ImageError, match="out is not an empty directory"):
        extracted(tmp_path, tmp_path / "out", {"a": "1"}, {"a": WHITEOUT})
    assert os.listdir(tmp_path / "real") == []


def test_a_target_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="cannot be created: No such file"):
        extracted(tmp_path, tmp_path / "no" / "where", {"a": "1"}, {"a": WHITEOUT})


@pytest.mark.parametrize("path", [b"d/secret", b"l", b"../outside"])
def test_no_link_of_a_layer_leads_out_of_it_and_a_failure_leaves_nothing(tmp_path: Path, path: bytes) -> None:
    (tmp_path / "outside").write_text("not a layer's")
    (tmp_path / "secret").write_text("not a layer's")
    made = layers(tmp_path, {"a": "1", "d": symlink(str(tmp_path)), "l": symlink(str(tmp_path / "outside"))})
    ghosts = [Hidden(name, 1, 2, Why.DELETED, 1, 1) for name in (b"a", path)]
    before = tree(tmp_path)
    with pytest.raises(ImageError, match=r"layer0: .* cannot be read"):
        extract_ghosts(ghosts, made, tmp_path / "out")
    assert tree(tmp_path, times=False).keys() == before.keys()


def test_holes_stay_holes(tmp_path: Path) -> None:
    [made] = layers(tmp_path, {"a": "1"})
    os.truncate(made / "a", 50_000_000)
    [copy] = extract_ghosts([Hidden(b"a", 1, 2, Why.DELETED, 1, 1)], [made], tmp_path / "out")
    assert copy.stat().st_size == 50_000_000
    assert copy.stat().st_blocks < 100
