"""Does every verb whose output is a result print it as JSON, too?"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from overlayfs_demo.cli import main
from overlayfs_demo.cli.groups import GROUPS
from tests.conftest import unmount_all, why_no_mounts
from tests.places import run, teaching_image

IMAGE = "overlayfs-demo/teaching:1.0"
TABLES = (
    ("images",),
    ("history", IMAGE),
    ("history", "--layers", IMAGE),
    ("layers",),
    ("df",),
    ("analyze", IMAGE),
    ("ghosts", IMAGE),
    ("diff", f"{IMAGE}@1", f"{IMAGE}@3"),
    ("which", "--image", IMAGE, "/etc/motd"),
)
# With a container c1, which is mounted and has changed /etc/motd, and c2, which is stopped.
RESULTS = (
    ("load", "{base}/image.tar"),
    ("import", "{base}/image.tar", "flat"),
    ("rmi", "other:1"),
    ("prune", "--all", "--force"),
    ("create", IMAGE, "--name", "c3"),
    ("ps",),
    ("diff", "c1"),
    ("commit", "c1", "made:1"),
    ("stop", "c1"),
    ("start", "c2"),
    ("rm", "c2"),
    ("which", "{base}/view/etc/motd"),
    ("which", "-l", "{base}/view/etc"),
)
# Those print nothing, write an archive or a page, or print what a command says; inspect is JSON in any case.
WITHOUT = {
    "mount",
    "umount",
    "restart",
    "pull",
    "push",
    "login",
    "logout",
    "tag",
    "save",
    "export",
    "shell",
    "inspect",
    "serve",
    "report",
    "help",
    "version",
    "sample",
    "browse",
    "lecture",
    "cp",
    "run",
    "exec",
    "rename",
    "completion",
    "manual",
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("json")
    teaching_image(where / "image.tar")
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


@pytest.fixture
def base(tmp_path: Path) -> Iterator[Path]:
    """A directory with an archive, a store that it is loaded in, and two containers."""
    if problem := why_no_mounts():
        pytest.skip(problem)
    teaching_image(tmp_path / "image.tar")
    for words in (
        ("load", tmp_path / "image.tar"),
        ("tag", IMAGE, "other:1"),
        ("create", IMAGE, "--name", "c1", "--at", tmp_path / "view"),
        ("create", IMAGE, "--name", "c2"),
        ("stop", "c2"),
    ):
        if "--at" in words:
            (tmp_path / "view").mkdir()
        done = run("overlayfs-demo", words[0], "--store", tmp_path / "store", *words[1:])
        assert done.returncode == 0, done.stderr
    (tmp_path / "view/etc/motd").write_text("changed\n")
    yield tmp_path
    unmount_all(str(tmp_path))


@pytest.mark.parametrize("words", RESULTS, ids=" ".join)
def test_each_line_of_a_result_is_an_object(base: Path, words: tuple[str, ...]) -> None:
    more = [word.format(base=base) for word in words[1:]]
    done = run("overlayfs-demo", words[0], "--store", base / "store", "--json", *more)
    assert (done.returncode, done.stderr) == (0, "")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert rows and all(isinstance(row, dict) and row for row in rows)


def test_load_says_what_it_knows(base: Path) -> None:
    [row] = json.loads(
        "[" + run("overlayfs-demo", "load", "--store", base / "store", "--json", base / "image.tar").stdout + "]"
    )
    assert (sorted(row["Names"]), row["Layers"], row["LayersHereBefore"]) == ([IMAGE], 4, 4)
    assert (row["NamesTaken"], row["LeftOut"]) == ({}, {})


def test_only_verbs_without_a_result_have_no_json() -> None:
    [verbs] = [action for action in main.parser_for([])._actions if isinstance(action, argparse._SubParsersAction)]
    without = {name for name, verb in verbs.choices.items() if "--json" not in verb.format_help()}
    assert without == WITHOUT | set(GROUPS)  # Those only have verbs.
    tried = {words[0] for words in TABLES + RESULTS}
    elsewhere = {"watch", "explain", "tour", "lab", "fsck"}
    assert set(verbs.choices) - tried == WITHOUT | elsewhere | set(GROUPS), "tests of their own try those"
