"""Does every verb that prints a table print JSON, too?"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.places import run

IMAGE = "overlayfs-demo/teaching:1.0"
TABLES = (
    ("images",), ("history", IMAGE), ("history", "--layers", IMAGE), ("layers",), ("df",), ("analyze", IMAGE),
    ("ghosts", IMAGE), ("diff", f"{IMAGE}@1", f"{IMAGE}@3"), ("which", "--image", IMAGE, "/etc/motd"),
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("json")
    made = run(sys.executable, "-m", "overlayfs_demo.images.teaching", where / "image.tar")
    assert made.returncode == 0, made.stderr
    loaded = run("overlayfs-demo", "load", "--store", where / "store", where / "image.tar")
    assert loaded.returncode == 0, loaded.stderr
    return where / "store"


@pytest.mark.parametrize("words", TABLES, ids=" ".join)
def test_each_line_is_an_object(store: Path, words: tuple[str, ...]) -> None:
    done = run("overlayfs-demo", words[0], "--store", store, "--json", *words[1:])
    assert (done.returncode, done.stderr) == (0, "")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert rows and all(isinstance(row, dict) and row for row in rows)


def test_ps_without_containers_prints_nothing(store: Path) -> None:
    done = run("overlayfs-demo", "ps", "--store", store, "--json")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_inspect_is_json_anyway(store: Path) -> None:
    done = run("overlayfs-demo", "inspect", "--store", store, IMAGE)
    assert [row["RepoTags"] for row in json.loads(done.stdout)] == [[IMAGE]]
