"""Is a file of several names counted once, wherever sizes are told, and do the words around the numbers hold?"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from overlayfs_demo.analysis.waste import analyse
from overlayfs_demo.cli import main
from overlayfs_demo.images.build import build_layers
from overlayfs_demo.images.model import Digest
from overlayfs_demo.mounts.layer_facts import LayerFacts, walked
from overlayfs_demo.store.container import Container
from overlayfs_demo.store.container_state import upper_size
from overlayfs_demo.store.store import Store
from overlayfs_demo.ui.text import human_size, percentage, plural
from tests.images.builders import WHITEOUT, Members, docker_save_many, hard_link, layer, symlink

Demo = Callable[..., str]

SIZE = 4 << 20
LINKED = {"one": b"x" * SIZE, "two": hard_link("one"), "three": hard_link("one")}


@pytest.fixture
def demo(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Demo:
    """`overlayfs-demo` on a store of its own: what it prints."""

    def command(verb: str, *words: str | Path) -> str:
        status = main.main([verb, "--store", str(tmp_path / "store"), *map(str, words)])
        told = capfd.readouterr()
        assert (status, told.err) == (0, "")
        return told.out

    return command


def loaded(demo: Demo, where: Path, images: dict[str, list[bytes]]) -> None:
    (where / "images.tar").write_bytes(docker_save_many(images))
    demo("load", where / "images.tar")


# --- hard links ------------------------------------------------------------------------------------


def container(directory: Path) -> Container:
    (directory / "upper/d").mkdir(parents=True)
    digest = Digest("sha256", "0" * 64)
    return Container("c1", directory, digest, "a:1", (), "", directory / "merged", time_machine=False, options="")


def test_an_upper_counts_a_file_of_several_names_once(tmp_path: Path) -> None:
    one = container(tmp_path)
    (one.upper / "one").write_bytes(b"x" * SIZE)
    (one.upper / "two").hardlink_to(one.upper / "one")
    (one.upper / "d/three").hardlink_to(one.upper / "one")
    (one.upper / "d/other").write_bytes(b"123")
    (one.upper / "link").symlink_to("one")
    assert upper_size(one) == SIZE + 3 + len("one")


def test_a_layer_has_one_size_wherever_one_is_shown(demo: Demo, tmp_path: Path) -> None:
    contents: Members = {**LINKED, "d/link": symlink("../one"), "d/file": "12345"}
    loaded(demo, tmp_path, {"a:1": [layer(contents), layer({"d/link": WHITEOUT, "d/file": "1"})]})
    expected = [SIZE + len("../one") + 5, 1]
    store = Store(tmp_path / "store")
    image = store.find("a:1")
    assert [one.size for one in image.layers] == expected
    counts = [walked(LayerFacts("layer", "", str(one.directory))).count for one in image.layers]
    assert [count.size for count in counts if count is not None] == expected
    analysis = analyse([one.directory for one in image.layers], ["", ""])
    assert [one.shipped for one in analysis.layers] == expected
    # What is hidden is what is wasted, links too; only what has data can be extracted.
    assert sum(file.wasted for file in analysis.hidden) == analysis.wasted == len("../one") + 5
    assert analysis.ghosts == ()
    assert analysis.dive_score == (SIZE + 1) / (SIZE + 6)
    built = build_layers(tmp_path / "images.tar", tmp_path / "built")
    assert [one.size for one in built] == expected


def test_the_size_of_an_upper_that_cannot_be_read_is_not_known(tmp_path: Path) -> None:
    one = container(tmp_path)
    (one.upper / "d").rmdir()
    one.upper.rmdir()
    assert upper_size(one) is None


def test_a_layer_counts_a_file_of_several_names_once(demo: Demo, tmp_path: Path) -> None:
    loaded(demo, tmp_path, {"a:1": [layer(LINKED)]})
    [row, total] = [json.loads(line) for line in demo("df", "--json").splitlines()]
    assert (row["Size"], row["SharedSize"], row["UniqueSize"]) == (SIZE, 0, SIZE)
    assert (total["Listed"], total["Stored"]) == (SIZE, SIZE)
    [layers] = [json.loads(line) for line in demo("layers", "--json").splitlines()]
    assert layers["Size"] == SIZE
    store = Store(tmp_path / "store")
    analysis = analyse([store.layers()[0].directory], [""])
    assert (analysis.shipped, analysis.live, analysis.duplicates) == (SIZE, SIZE, ())


def test_a_file_of_several_names_is_wasted_once(demo: Demo, tmp_path: Path) -> None:
    loaded(demo, tmp_path, {"a:1": [layer(LINKED), layer(dict.fromkeys(LINKED, WHITEOUT))]})
    rows = [json.loads(line) for line in demo("ghosts", "--json", "a:1").splitlines()]
    assert [row["Size"] for row in rows] == [SIZE] * 3
    assert sum(row["Wasted"] for row in rows) == SIZE


# --- what is told ----------------------------------------------------------------------------------


def test_ghosts_are_listed_with_the_largest_first(demo: Demo, tmp_path: Path) -> None:
    files = {"a": "1", "b": "333", "c": "22", "d": "333"}
    loaded(demo, tmp_path, {"a:1": [layer(files), layer(dict.fromkeys(files, WHITEOUT))]})
    rows = [line.split() for line in demo("ghosts", "a:1").splitlines()[1:]]
    assert [(row[0], row[-1]) for row in rows] == [("3B", "/b"), ("3B", "/d"), ("2B", "/c"), ("1B", "/a")]
    listed = [json.loads(line)["Path"] for line in demo("ghosts", "--json", "a:1").splitlines()]
    assert listed == ["/b", "/d", "/c", "/a"]


def test_df_of_images_that_share_nothing_tells_of_no_sharing(demo: Demo, tmp_path: Path) -> None:
    loaded(demo, tmp_path, {"a:1": [layer({"a": "1"})], "b:1": [layer({"b": "2"})]})
    assert len(demo("df").splitlines()) == 3
    demo("tag", "a:1", "c:1")
    assert len(demo("df").splitlines()) == 3


def test_df_tells_of_layers_that_no_image_uses_apart_from_sharing(demo: Demo, tmp_path: Path) -> None:
    loaded(demo, tmp_path, {"a:1": [layer({"a": "1"})], "b:1": [layer({"b": "22"})]})
    store = Store(tmp_path / "store")
    with store.writing():
        store.remove_image(store.find("b:1").id)
    assert demo("df").splitlines()[2:] == ["", "2B is in layers that no image uses: 'prune' removes them."]


# --- words -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "words"),
    [(0, "0 files, 0 entries"), (1, "1 file, 1 entry"), (2, "2 files, 2 entries"), (11, "11 files, 11 entries")],
)
def test_one_thing_is_named_in_the_singular(number: int, words: str) -> None:
    assert f"{plural(number, 'file')}, {plural(number, 'entry', 'entries')}" == words


@pytest.mark.parametrize(
    ("part", "whole", "words"),
    [
        (0, 0, "0%"),
        (0, 5, "0.0%"),
        (5, 5, "100.0%"),
        (1, 8, "12.5%"),
        (1, 10**6, "<0.1%"),
        (10**6 - 1, 10**6, ">99.9%"),
        (999, 1000, "99.9%"),
        (1, 1000, "0.1%"),
        (9994, 10000, "99.9%"),
        (9996, 10000, ">99.9%"),
        (4, 10000, "<0.1%"),
    ],
)
def test_a_percentage_says_all_only_of_all_and_nothing_only_of_nothing(part: int, whole: int, words: str) -> None:
    assert percentage(part, whole) == words


@pytest.mark.parametrize(("part", "words"), [(1.0, "100.00%"), (0.99999, ">99.99%"), (0.00001, "<0.01%")])
def test_a_percentage_has_as_many_digits_as_asked_for(part: float, words: str) -> None:
    assert percentage(part, 1, digits=2) == words


def test_waste_beside_something_that_is_seen_is_not_all(demo: Demo, tmp_path: Path) -> None:
    loaded(demo, tmp_path, {"a:1": [layer({"big": b"x" * SIZE, "small": "1"}), layer({"big": WHITEOUT})]})
    assert f"{human_size(SIZE)} (>99.9%) hidden by later layers" in demo("analyze", "a:1")
    demo("report", "a:1", "-o", tmp_path / "page.html")
    assert "<dt>share</dt><dd>&gt;99.9%</dd>" in (tmp_path / "page.html").read_text()


def test_one_file_is_named_in_the_singular_in_what_is_printed(demo: Demo, tmp_path: Path) -> None:
    body = os.urandom(100)
    loaded(demo, tmp_path, {"a:1": [layer({"a": body, "b": body})]})
    assert "100B in 1 file whose data" in demo("analyze", "a:1")
    assert "1 of 1 layer (200B)" in demo("load", tmp_path / "images.tar")
