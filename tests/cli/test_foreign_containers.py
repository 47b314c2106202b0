"""Is what podman and docker say of a container understood, and told if it is not as needed?

A script stands for the engine; tests/test_real_engines.py has the real ones.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from overlayfs_demo.cli import web
from overlayfs_demo.cli.foreign_containers import Engine, titles_of_history, view_of
from overlayfs_demo.errors import MountError
from tests.places import Place, run

IMAGE = {
    "RootFS": {"Layers": ["sha256:a", "sha256:b"]},
    "History": [
        {"created_by": f"/bin/sh -c #(nop) COPY dir:{'0123456789abcdef' * 4} in /"},
        {"created_by": "/bin/sh -c #(nop) ENV a=b", "empty_layer": True},
        {"created_by": "/bin/sh -c make"},
    ],
}


@pytest.fixture
def mounted(place: Place) -> Place:
    """A view."""
    assert place.mount().returncode == 0
    return place


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory: the engines print the file CONTAINER, IMAGE or HISTORY of it, or fail."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for engine in Engine:
        script = f'#!/bin/sh\ncase $1 in history) exec cat {tmp_path}/history;; esac\nexec cat "{tmp_path}/$1"\n'
        (programs / str(engine)).write_text(script)
        (programs / str(engine)).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return tmp_path


def container(where: Path, driver: str = "overlay", **places: object) -> None:
    told = [{"Image": "i", "GraphDriver": {"Name": driver, "Data": places}}]
    (where / "container").write_text(json.dumps(told))
    (where / "image").write_text(json.dumps([IMAGE]))


def refusal(engine: Engine) -> str:
    with pytest.raises(MountError) as refused:
        view_of(engine, "c1")
    return str(refused.value)


def test_podmans_history_gives_a_title_to_each_layer(answers: Path, mounted: Place) -> None:
    container(answers, MergedDir=str(mounted.view), LowerDir="/b/diff:/a/diff")
    assert view_of(Engine.PODMAN, "c1") == (str(mounted.view), ("COPY dir:0123456789ab in /", "RUN make"))


def test_dockers_own_layer_has_a_title_too(answers: Path, mounted: Place) -> None:
    container(answers, "fuse-overlayfs", MergedDir=str(mounted.view), LowerDir="/c-init/diff:/b/diff:/a/diff")
    rows = (
        {"CreatedBy": "RUN make", "Size": "0"},
        {"CreatedBy": "ENV a=b", "Size": "0"},
        {"CreatedBy": "ADD x", "Size": "9"},
    )
    (answers / "history").write_text("".join(json.dumps(row) + "\n" for row in rows))
    titles = ("ADD x", "RUN make", "files that docker adds to a container")
    assert view_of(Engine.DOCKER, "c1") == (str(mounted.view), titles)


def test_which_takes_paths_in_the_container(answers: Path, mounted: Place) -> None:
    container(answers, MergedDir=str(mounted.view))
    for words in (["c1", "/d/deep"], ["c1:/d/deep"], ["c1:d/deep"]):
        told = run("overlayfs-demo", "which", "--podman", *words)
        assert "\nlayer 1 (COPY dir:0123456789ab in /) " in told.stdout, told.stderr
    assert "layer 2 (RUN make)" in run("overlayfs-demo", "which", "--podman", "-l", "c1").stdout


def test_the_page_shows_the_titles(answers: Path, mounted: Place) -> None:
    container(answers, MergedDir=str(mounted.view))
    assert web._foreign(Engine.PODMAN, "c1").record.titles == ["RUN make", "COPY dir:0123456789ab in /"]


def test_a_view_whose_image_is_gone_has_no_titles(answers: Path, mounted: Place) -> None:
    container(answers, MergedDir=str(mounted.view))
    (answers / "image").unlink()
    assert view_of(Engine.PODMAN, "c1") == (str(mounted.view), ())


def test_what_is_not_mounted_or_not_by_us_is_told_with_engine_container_and_remedy(answers: Path) -> None:
    container(answers)
    assert "container c1 of podman is not mounted: " in refusal(Engine.PODMAN)
    container(answers, MergedDir=str(answers))
    assert "container c1 of docker is not mounted: 'docker start c1'" in refusal(Engine.DOCKER)
    container(answers, MergedDir="/proc")
    assert "container c1 of podman is mounted as proc, and not by overlayfs-demo: " in refusal(Engine.PODMAN)
    container(answers, "vfs", Dir="/")
    assert "docker stores it as vfs: start dockerd with" in refusal(Engine.DOCKER)
    (answers / "container").unlink()
    assert "podman: c1: cat: " in refusal(Engine.PODMAN)


@pytest.mark.parametrize("text", ["", "nonsense", "[]", "[1]", "{}", '[{"GraphDriver": 1}]', '[{"GraphDriver": {}}]'])
def test_an_answer_that_makes_no_sense_is_an_error(answers: Path, text: str) -> None:
    (answers / "container").write_text(text)
    assert "container c1 of podman" in refusal(Engine.PODMAN)


def test_an_engine_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert refusal(Engine.DOCKER).startswith("docker cannot be run: ")


def row(created_by: str, size: int = 0) -> Mapping[str, object]:
    return {"CreatedBy": created_by, "Size": str(size)}


@pytest.mark.parametrize(
    ("steps", "count", "titles"),
    [
        ([row("ADD a", 5), row("ENV x=y"), row("RUN true"), row("COPY b", 3)], 3, ("ADD a", "RUN true", "COPY b")),
        ([row("ADD a", 5), row("ENV x=y"), row("RUN true"), row("COPY b", 3)], 2, ("ADD a", "COPY b")),
        ([row("ADD a", 5), row("WORKDIR /x")], 2, ("ADD a", "WORKDIR /x")),
        ([row("ADD a", 5), row("WORKDIR /x")], 1, ("ADD a",)),
        ([row("ADD a", 5), row("WORKDIR /x"), row("RUN true")], 2, ()),
        ([], 1, ()),
        ([], 0, ()),
    ],
)
def test_docker_does_not_say_which_steps_made_layers(
    steps: list[Mapping[str, object]], count: int, titles: tuple[str, ...]
) -> None:
    assert titles_of_history(steps[::-1], count) == titles
