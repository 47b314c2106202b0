"""Is every way in which other programs call this one understood, and no other?"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from overlayfs_demo.cli import called_as as ways
from overlayfs_demo.cli.called_as import called_as
from overlayfs_demo.cli.mount_helper import mount_as_program
from overlayfs_demo.mounts.registry import find_record
from tests.places import BIN, Place, fails, run

OURS = "/usr/bin/overlayfs-demo"


@pytest.mark.parametrize(
    ("program", "words", "way"),
    [
        (OURS, ["-o", "lowerdir=a,", "/view"], ways._mount_program),
        (OURS, ["-o", "lowerdir=a", "-f", "view"], ways._mount_program),
        (OURS, ["name", "/view", "-o", "lowerdir=a"], ways._mount_helper),
        (OURS, ["mount", "/view", "-o", "lowerdir=a"], None),
        (OURS, ["mount", "-o", "lowerdir=a", "/view"], None),
        (OURS, ["--version"], None),
        (OURS, ["-o"], None),
        (OURS, [], None),
        ("/sbin/mount.fuse.overlayfs-demo", ["name", "/view"], ways._mount_helper),
        ("/sbin/umount.fuse.overlayfs-demo", ["/view"], ways._umount_helper),
        ("/opt/demo/fuse-overlayfs", ["-o", "lowerdir=a", "/view"], ways._mount_program),
        ("/opt/demo/fuse-overlayfs", ["--version"], ways._mount_program),
        ("fuse-overlayfs", ["/view", "-o", "lowerdir=a"], ways._mount_program),
        ("/opt/demo/fuse-overlayfs", ["mount"], ways._mount_program),
    ],
)
def test_a_call_is_told_by_its_name_and_its_words(program: str, words: list[str], way: ways.Call | None) -> None:
    assert called_as(program, words) is way


def test_a_mount_program_takes_what_containers_storage_writes(place: Place) -> None:
    """An empty option, two commas, and what buildah adds for a container that nobody keeps."""
    done = run(BIN / "overlayfs-demo", "-o", f"{place.options},,volatile,nodev,", place.view)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (place.view / "motd").read_text() == "hello\n"
    record = find_record(str(place.view))
    assert record is not None
    assert {"volatile", "nodev"} <= set(record.options.split(","))
    assert ("userxattr" in record.options) is (os.geteuid() != 0)


def test_a_mount_program_says_in_one_line_what_is_wrong(place: Place) -> None:
    for options, said in (("lowerdir=/nowhere", "/nowhere"), (f"{place.options},noacl", "noacl")):
        fails(run(BIN / "overlayfs-demo", "-o", options, place.view), said, status=1 if "nowhere" in said else 2)
        assert not place.is_mounted()


@pytest.mark.parametrize("word", ["--version", "-V"])
def test_a_mount_program_tells_its_version(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    """podman asks for it in `podman info`."""
    with pytest.raises(SystemExit, match="0"):
        mount_as_program([word])
    assert capsys.readouterr().out.startswith("overlayfs-demo ")
    assert run("overlayfs-demo", word).stdout.startswith("overlayfs-demo ")


def test_the_name_of_a_directory_above_is_not_ours() -> None:
    assert called_as(str(Path("/opt/fuse-overlayfs") / "overlayfs-demo"), ["images"]) is None
