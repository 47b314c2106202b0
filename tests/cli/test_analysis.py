"""What is printed about the bytes of an image?"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import why_no_mounts
from tests.places import fails, run, teaching_image

Run = Callable[..., str]


@pytest.fixture
def demo(tmp_path: Path) -> Run:
    """`overlayfs-demo` on a store with the teaching image, whose fourth layer deletes what the third made."""
    if problem := why_no_mounts():
        pytest.skip(problem)

    def command(*words: str | Path, status: int = 0) -> str:
        done = run("overlayfs-demo", words[0], "--store", tmp_path / "store", *words[1:])
        assert done.returncode == status, done.stderr
        return done.stdout

    command("load", teaching_image(tmp_path / "image.tar"))
    return command


def image(demo: Run) -> str:
    return str(json.loads(demo("images", "--json").splitlines()[0])["ID"])


def test_the_deleted_cache_ships_and_is_dead(demo: Run) -> None:
    found = json.loads(demo("analyze", "--json", image(demo)))
    third, fourth = found["Layers"][2], found["Layers"][3]
    assert third["Shipped"] - third["Live"] == third["Wasted"] == found["Wasted"] >= 3_000_000
    assert (fourth["Shipped"], fourth["Whiteouts"]) == (0, 1)
    assert {(one["ShippedBy"], one["HiddenBy"]) for one in found["Hidden"]} == {(3, 4)}
    text = demo("analyze", image(demo))
    assert "hidden by later layers" in text and "dive's efficiency score" in text


@pytest.mark.parametrize(("limit", "status"), [("10%", 1), ("100%", 0), ("1000", 1), ("4000000", 0)])
def test_a_gate_fails_above_its_limit(demo: Run, limit: str, status: int) -> None:
    demo("analyze", image(demo), "--max-wasted", limit, status=status)


@pytest.mark.parametrize("limit", ["much", "-1", "%", ""])
def test_a_limit_is_a_share_or_bytes(demo: Run, limit: str) -> None:
    demo("analyze", image(demo), f"--max-wasted={limit}", status=2)


def test_ghosts_are_listed_and_taken_out(demo: Run, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in demo("ghosts", "--json", image(demo)).splitlines()]
    assert rows and all((row["ShippedBy"], row["HiddenBy"]) == (3, 4) for row in rows)
    demo("ghosts", image(demo), "--extract", tmp_path / "out")
    taken = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert sorted(path.stat().st_size for path in taken) == sorted(row["Size"] for row in rows)
    demo("ghosts", image(demo), "--extract", tmp_path / "out", status=1)


def test_which_tells_what_became_of_a_ghost(demo: Run) -> None:
    path = json.loads(demo("ghosts", "--json", image(demo)).splitlines()[0])["Path"]
    text = demo("which", "--image", image(demo), path, status=1)
    assert "hidden by layer 4 (RUN rm -r $HOME/.cache), at /root/.cache\n" in text


def test_images_are_compared_by_name_and_by_number_of_layers(demo: Run) -> None:
    one = image(demo)
    rows = [json.loads(line) for line in demo("diff", "--json", f"{one}@3", one).splitlines()]
    assert rows and all(row["Kind"] == "D" for row in rows)
    assert demo("diff", one, one) == ""
    assert "+" in demo("diff", "--content", f"{one}@1", f"{one}@2")


def test_wrong_words_are_one_line(demo: Run, tmp_path: Path) -> None:
    one = image(demo)
    store = ("--store", tmp_path / "store")
    fails(run("overlayfs-demo", "diff", *store, f"{one}@9", one), "no layer 9")
    fails(run("overlayfs-demo", "diff", *store, "--content", one), "two images", status=2)
    fails(run("overlayfs-demo", "which", *store, "--image", "none:1", "/x"), "no image", "none:1")


def test_history_counts_what_each_layer_changes(demo: Run) -> None:
    lines = demo("history", "--layers", image(demo)).splitlines()
    assert "WHITEOUTS" in lines[0]
    assert any("metadata only" in line for line in lines)


def test_history_as_json_has_the_layers_if_they_are_asked_for(demo: Run) -> None:
    plain = [json.loads(line) for line in demo("history", "--json", image(demo)).splitlines()]
    rows = [json.loads(line) for line in demo("history", "--json", "--layers", image(demo)).splitlines()]
    extra = ("DiffID", "ChainID", "Added", "Changed", "Deleted", "Whiteouts")
    assert [{key: row[key] for key in row if key not in extra} for row in rows] == plain
    assert all(set(extra) <= set(row) for row in rows)
    assert any(row["Added"].isdigit() for row in rows) and any(row["DiffID"] == "" for row in rows)
