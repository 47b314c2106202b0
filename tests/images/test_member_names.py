"""Is every member's name taken from the layer's root, as Docker takes it?"""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.images.builders import (
    OPAQUE,
    WHITEOUT,
    Build,
    directory,
    hard_link,
    is_opaque,
    is_whiteout,
    layer,
    snapshot,
    symlink,
)
from tests.images.splitting import SplitTar
from tests.places import run


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("/usr/bin/x", "usr/bin/x"),
        ("//usr///x", "usr/x"),
        ("./../g", "g"),
        ("../../../../etc/passwd", "etc/passwd"),
        ("a/../x", "x"),
        ("a/b/../../../../c/./x", "c/x"),
        ("/../x", "x"),
        ("...", "..."),
        ("..x/.y", "..x/.y"),
    ],
)
def test_name_is_folded_and_stays_in_the_layer(build: Build, name: str, place: str) -> None:
    (top,) = build({name: "data"})
    found = {path: text for path, (kind, _, text) in snapshot(top).items() if kind == "file"}
    assert found == {place: "data"}
    # What `..` takes away is not made.
    assert len(snapshot(top)) == len(place.split("/"))


@pytest.mark.parametrize("target", ["/x", "x", "../x", "../../../x", "a/../x", "./x"])
def test_hard_links_target_is_folded_the_same_way(build: Build, target: str) -> None:
    (top,) = build([("x", "1"), ("d/l", hard_link(target))])
    assert (top / "d/l").samefile(top / "x")


def test_hard_links_target_below_is_folded_too(build: Build) -> None:
    _, top = build({"d/x": "1"}, {"l": hard_link("/../d/./x")})
    assert (top / "l").samefile(top / "d/x")


@pytest.mark.parametrize("target", ["/x", "../x", "a/../x", "//"])
def test_target_of_a_symbolic_link_stays_as_it_is(build: Build, target: str) -> None:
    (top,) = build({"/a/../l": symlink(target)})
    assert os.readlink(top / "l") == target


@pytest.mark.parametrize("name", ["./", "/", "..", "a/..", "/../."])
def test_directory_whose_name_folds_to_nothing_is_the_root(build: Build, name: str) -> None:
    (top,) = build([(name, directory(0o711)), ("x", "1")])
    assert top.stat().st_mode & 0o7777 == 0o711
    assert os.listdir(top) == ["x"]


def test_whiteouts_and_opaque_marks_are_folded(build: Build) -> None:
    below = {"x": "1", "b": "2", "d/old": "3", "e/old": "4"}
    _, top = build(
        below,
        [("./../.wh.x", ""), ("a/../.wh.b", ""), ("/d/.wh.old", ""), ("../e/n/../.wh..wh..opq", ""), ("e/new", "5")],
    )
    assert all(is_whiteout(top / name) for name in ("x", "b", "d/old"))
    assert is_opaque(top / "e")
    assert sorted(os.listdir(top)) == ["b", "d", "e", "x"]


def test_names_of_one_file_replace_each_other(build: Build) -> None:
    (top,) = build([("a/x", "1"), ("/a/x", "2"), ("b/../a/x", "3"), ("../a/", directory(0o700))])
    assert snapshot(top) == {"a": ("directory", 0o700, ""), "a/x": ("file", 0o644, "3")}


def test_the_tar_is_put_together_again_with_its_own_names(split: SplitTar) -> None:
    split({"x": "below", "d/x": "below"})
    members = [
        ("/", directory()),
        ("/usr/bin/x", "1" * 5000),
        ("./../g", "2" * 600),
        ("a/../g", "3" * 700),
        ("../l", hard_link("/g")),
        ("b/../.wh.x", ""),
        ("/d", OPAQUE),
        ("/x", WHITEOUT),
    ]
    done = split(members)
    assert done.assembled() == layer(members)
    assert (done.top / "l").read_text() == "3" * 700


def test_tar_with_absolute_names_is_imported(tmp_path: Path) -> None:
    """What `tar -P` writes."""
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (root / "etc/motd").write_text("hello")
    (root / "etc/link").hardlink_to(root / "etc/motd")
    tar, store = tmp_path / "root.tar", tmp_path / "store"
    subprocess.run(["tar", "-P", f"--transform=s,^{root},,", "-cf", tar, root], check=True)
    with tarfile.open(fileobj=io.BytesIO(tar.read_bytes())) as names:
        assert "/etc/motd" in names.getnames()
    done = run("overlayfs-demo", "import", "--store", store, tar, "absolute:1")
    assert (done.returncode, done.stderr) == (0, "")
    (motd,) = store.glob("layers/*/etc/motd")
    assert motd.read_text() == "hello"
    assert motd.stat().st_nlink == 2
