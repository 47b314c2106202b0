"""What removes much asks first, as with docker."""

from __future__ import annotations

import os
import pty
import subprocess
from pathlib import Path

import pytest

from overlayfs_demo.store.store import Store
from tests.places import BIN, MINUTE, run, teaching_image

QUESTION = "Are you sure you want to continue? [y/N] "


@pytest.fixture
def store(tmp_path: Path) -> Path:
    where = tmp_path / "store"
    assert run("overlayfs-demo", "load", "--store", where, teaching_image(tmp_path / "image.tar")).returncode == 0
    return where


def prune(store: Path, answer: str, *words: str) -> subprocess.CompletedProcess[str]:
    command: list[str | Path] = [BIN / "overlayfs-demo", "prune", "--store", store, *words]
    return subprocess.run(command, input=answer, capture_output=True, text=True, timeout=MINUTE)


@pytest.mark.parametrize("answer", ["", "n\n", "\n", "yes please\n"])
def test_without_a_yes_in_the_pipe_nothing_is_removed(store: Path, answer: str) -> None:
    done = prune(store, answer, "--all")
    assert (done.returncode, done.stdout) == (0, "Total reclaimed space: 0B\n")
    assert QUESTION in done.stderr
    assert len(Store(store).images()) == 1


@pytest.mark.parametrize("answer", ["y\n", "Y\n", "y"])
def test_a_yes_in_the_pipe_removes(store: Path, answer: str) -> None:
    done = prune(store, answer, "-a")
    assert done.stdout.endswith("\nTotal reclaimed space: 3MB\n")
    assert len(Store(store).images()) == 0


def test_force_does_not_ask(store: Path) -> None:
    done = prune(store, "n\n", "-a", "-f")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(Store(store).images()) == 0


def test_what_only_removes_unused_layers_does_not_ask(store: Path) -> None:
    done = prune(store, "")
    assert (done.stdout, done.stderr) == ("Total reclaimed space: 0B\n", "")


def test_the_question_is_not_in_output_for_machines(store: Path) -> None:
    assert '"DeletedImages": []' in prune(store, "n\n", "-a", "--json").stdout


@pytest.mark.parametrize(("typed", "left"), [("n\n", 1), ("\x04", 1), ("y\n", 0)])
def test_a_person_at_a_terminal_is_asked(store: Path, typed: str, left: int) -> None:
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [BIN / "overlayfs-demo", "prune", "--all", "--store", store],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=theirs,
    ) as process:
        os.close(theirs)
        seen = b""
        while QUESTION.encode() not in seen:
            seen += os.read(ours, 1 << 10)
        os.write(ours, typed.encode())
        process.communicate(timeout=MINUTE)
    os.close(ours)
    assert process.returncode == 0
    assert len(Store(store).images()) == left
