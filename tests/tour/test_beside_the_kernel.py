"""Does what the tour tells about views also hold on the kernel's overlayfs?

The kernel mounts the experiments' own layers, runs their own commands, and is held to their own checks. What it does
otherwise is listed here with the reason, and must be told by the experiment.
"""

from __future__ import annotations

import mmap
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from overlayfs_demo.tour.experiment import Experiment, Refused
from overlayfs_demo.tour.experiments import ALL
from overlayfs_demo.tour.stage import Stage
from tests.contract.conftest import why_unavailable
from tests.places import MINUTE

# On a view: the kernel knows neither images nor containers.
VIEWS = [experiment for experiment in ALL if experiment.layers and experiment.name != "kernel-overlayfs"]
# The sentences that do not hold with the kernel's defaults, by experiment. Docker's are the same.
OTHERWISE = {
    "hard-link": {'the last command printed "before\nafter"', "merged/one and merged/far/off/two are one file"},
    "rename-directory": {'upper/papers has the mark redirect="docs"', "upper contains docs, papers and nothing else"},
}
WITH_OPTIONS = {"hard-link": "index=on", "rename-directory": "redirect_dir=on"}

_PROGRAM = """#!/bin/sh
# mount and umount, by the kernel; what only overlayfs-demo can say is said by it.
case $1 in
mount) shift 2; exec mount -t overlay overlay -o "$(echo "$1" | sed 's/userxattr,//')"{more} "$2";;
umount) exec umount "$2";;
*) exit 0;;
esac
"""


# Only root mounts it with the marks that are its own.
_WHY_NOT = why_unavailable("kernel") if os.geteuid() == 0 else "needs root"
pytestmark = pytest.mark.skipif(bool(_WHY_NOT), reason=_WHY_NOT)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    (tmp_path / "stage").mkdir()
    made = Stage(tmp_path / "stage")
    yield made
    if os.path.ismount(made.path("merged")):
        subprocess.run(["umount", "--lazy", made.path("merged")], check=True, timeout=MINUTE)


def perform(experiment: Experiment, stage: Stage, option: str = "") -> set[str]:
    """Do it on the kernel's overlayfs; the sentences that do not hold."""
    program = stage.root / ".bin/overlayfs-demo"
    program.write_text(_PROGRAM.replace("{more}", f",{option}" if option else ""))
    experiment.prepare(stage)
    stage.layers(experiment.layers)
    if experiment.mounted:
        stage.mount(experiment.redirects)
    for command in experiment.do:
        typed = command.command if isinstance(command, Refused) else command
        done = stage.run(typed)
        assert (done.status != 0) == isinstance(command, Refused), done
    return {
        check.says
        for check in experiment.checks
        if not check.holds(stage) and not _said_by_our_program(check.says, experiment)
    }


def _said_by_our_program(says: str, experiment: Experiment) -> bool:
    """Whether the sentence is about words that only overlayfs-demo prints."""
    found = re.match(r"(?:the last command|command (\d+)) printed", says)
    if not found:
        return False
    command = experiment.do[int(found[1]) - 1 if found[1] else -1]
    return isinstance(command, str) and command.startswith("overlayfs-demo")


@pytest.mark.parametrize("experiment", VIEWS, ids=lambda experiment: experiment.name)
def test_the_kernel_does_the_same_or_the_experiment_says_so(experiment: Experiment, stage: Stage) -> None:
    otherwise = OTHERWISE.get(experiment.name, set())
    assert perform(experiment, stage) == otherwise
    assert not otherwise or "In Docker:" in experiment.explained


@pytest.mark.parametrize("name", WITH_OPTIONS)
def test_with_the_option_the_kernel_does_the_same(name: str, stage: Stage) -> None:
    [experiment] = [experiment for experiment in VIEWS if experiment.name == name]
    assert perform(experiment, stage, WITH_OPTIONS[name]) == set()


def view(stage: Stage, options: str = "", **content: str) -> Path:
    """A view that the kernel mounts, with these files in the lower; where it is mounted."""
    stage.layers({"lower": content})
    _mount(stage, "lower", options)
    return stage.path("merged")


def _mount(stage: Stage, lower: str, options: str = "") -> None:
    done = stage.run(f"mount -t overlay o -o {options}lowerdir={lower},upperdir=upper,workdir=work merged")
    assert done.status == 0, done.output


def test_a_reader_sees_the_copy_and_only_a_mapping_does_not(stage: Stage) -> None:
    merged = view(stage, log="old line\n")
    with (merged / "log").open("rb") as reader, mmap.mmap(reader.fileno(), 0, prot=mmap.PROT_READ) as mapping:
        assert mapping[:3] == b"old"
        with (merged / "log").open("r+b") as writer:
            writer.write(b"new")
        assert os.pread(reader.fileno(), 3, 0) == b"new"
        assert mapping[:3] == b"old"
    assert stage.path("upper/log").read_text() == "new line\n"


def test_writing_with_truncation_copies_no_data(stage: Stage) -> None:
    """`echo > file` empties the file first: it succeeds where there is no room for a copy."""
    stage.layers({"lower": {"first": "x" * 1_000_000, "second": "x" * 1_000_000}})
    made = stage.run("mkdir small && mount -t tmpfs -o size=256k small small && mkdir small/upper small/work")
    assert made.status == 0, made.output
    try:
        done = stage.run("mount -t overlay o -o lowerdir=lower,upperdir=small/upper,workdir=small/work merged")
        assert done.status == 0, done.output
        assert stage.run("echo new > merged/first").status == 0
        assert "No space left on device" in stage.run("echo more >> merged/second").output
        assert stage.path("small/upper/first").read_text() == "new\n"
    finally:
        stage.run("umount merged; umount small")


def test_the_price_of_a_copy_up_is_paid_at_the_first_write(stage: Stage) -> None:
    merged = view(stage, big="x" * 100_000)
    copies = set()
    for _ in range(2):
        with (merged / "big").open("ab") as file:
            file.write(b"y")
        copies.add(stage.path("upper/big").stat().st_ino)
    assert len(copies) == 1


def test_metacopy_copies_no_data_and_is_off_by_default(stage: Stage) -> None:
    merged = view(stage, big="x" * 100_000)
    (merged / "big").chmod(0o755)
    assert _on_disk(stage.path("upper/big")) >= 100_000
    stage.run("umount merged; rm -r upper work; mkdir upper work")
    _mount(stage, "lower", "metacopy=on,")
    (merged / "big").chmod(0o755)
    assert _on_disk(stage.path("upper/big")) < 100_000


def _on_disk(path: Path) -> int:
    """The bytes of the blocks of a file; ext4 may use one for its extended attributes."""
    return path.stat().st_blocks * 512


def test_the_kernel_mounts_an_upper_over_another_lower(stage: Stage) -> None:
    merged = view(stage, notes="old\n")
    (merged / "notes").unlink()
    stage.run("umount merged; mkdir other; echo new > other/notes")
    _mount(stage, "other")
    assert stage.done[-1].output == ""
    assert list(merged.iterdir()) == []
