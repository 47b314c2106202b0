"""What does `fsck` say, with which exit status, and what does it refuse?"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import unmount_all, why_no_mounts
from tests.images.builders import docker_save, layer
from tests.places import Place, fails, run

Run = Callable[..., subprocess.CompletedProcess[str]]
IMPURE, LOWERS = "trusted.overlay.impure", "trusted.overlay.demo-lowers"


@pytest.fixture
def fsck(tmp_path: Path) -> Iterator[Run]:
    """`overlayfs-demo fsck` on a store with an image and its container c1, which is mounted."""
    if problem := why_no_mounts():
        pytest.skip(problem)
    store = tmp_path / "store"
    (tmp_path / "image.tar").write_bytes(docker_save([layer({"etc/motd": "hello\n"})]))
    assert run("overlayfs-demo", "load", "--store", store, tmp_path / "image.tar").returncode == 0
    assert run("overlayfs-demo", "create", "--store", store, "--name", "c1", "test:1").returncode == 0
    yield lambda *words: run("overlayfs-demo", "fsck", "--store", store, *words)
    unmount_all(str(tmp_path))


def damage_record(tmp_path: Path) -> None:
    (record,) = (tmp_path / "store/layers").glob("*.json")
    record.write_text("")


def test_status_says_whether_there_was_damage_and_whether_any_is_left(fsck: Run, tmp_path: Path) -> None:
    done = fsck()
    assert (done.returncode, done.stdout, done.stderr) == (0, "no damage\n", "")
    damage_record(tmp_path)
    done = fsck("-n")
    assert (done.returncode, done.stderr) == (4, "")
    assert done.stdout.splitlines()[-1] == "1 problem; --repair mends 1"
    done = fsck("--repair")
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.startswith("repaired: ")
    assert done.stdout.splitlines()[-1] == "1 problem repaired, 0 left"
    assert fsck().returncode == 0


def test_json_has_one_object_for_each_finding(fsck: Run, tmp_path: Path) -> None:
    damage_record(tmp_path)
    for words, state in (((), "found"), (("-y",), "repaired")):
        (line,) = fsck("--json", *words).stdout.splitlines()
        row = json.loads(line)
        assert (row["Kind"], row["State"], row["Repairable"]) == ("layer-without-record", state, True)
        assert row["Path"].startswith(str(tmp_path / "store/layers"))
    assert fsck("--json").stdout == ""


def test_a_mounted_container_is_refused_and_a_stopped_one_checked(fsck: Run, tmp_path: Path) -> None:
    upper = tmp_path / "store/containers/c1/upper"
    (upper.parent / "merged/etc/motd").write_text("changed\n")
    for words in (["c1"], ["--repair", "c1"]):
        fails(fsck(*words), "upper is mounted", "merged", "unmount it first", status=8)
    assert run("overlayfs-demo", "stop", "--store", tmp_path / "store", "c1").returncode == 0
    assert (fsck("c1").returncode, fsck("c1").stdout) == (0, "no damage\n")
    os.removexattr(upper / "etc", IMPURE)
    assert fsck("c1").returncode == 4
    assert fsck("--repair", "c1").returncode == 1
    assert os.getxattr(upper / "etc", IMPURE) == b"y"


def test_the_store_is_refused_while_it_is_changed(fsck: Run, tmp_path: Path) -> None:
    with subprocess.Popen(["flock", tmp_path / "store/lock", "cat"], stdin=subprocess.PIPE) as holder:
        while (done := fsck()).returncode == 0:
            pass
        fails(done, "is being changed by another process", status=8)
        assert holder.stdin
        holder.stdin.close()


def test_a_store_without_its_version_is_mended_and_used_again(fsck: Run, tmp_path: Path) -> None:
    (tmp_path / "store/version").write_bytes(b"")
    fails(run("overlayfs-demo", "images", "--store", tmp_path / "store"), "cut off", "fsck --repair")
    assert fsck("-y").returncode == 1
    assert "test" in run("overlayfs-demo", "images", "--store", tmp_path / "store").stdout


def test_what_is_no_store_stays_as_it_is(tmp_path: Path) -> None:
    for where in (tmp_path, tmp_path / "none"):
        fails(run("overlayfs-demo", "fsck", "--repair", "--store", where), "is not a store", status=8)
    assert list(tmp_path.iterdir()) == []


def check(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return run("overlayfs-demo", "fsck", *words)


@pytest.fixture
def used(place: Place) -> Place:
    """An upper that was mounted."""
    assert place.mount().returncode == 0
    (place.view / "d/deep").write_text("changed\n")
    assert place.umount().returncode == 0
    return place


def test_an_upper_is_checked_over_the_layers_that_its_record_names(used: Place) -> None:
    done = check(used / "upper")
    assert (done.returncode, done.stdout) == (0, "no damage\n")
    assert "only the upper itself is checked" in done.stderr
    (used / "work/work/#1").write_text("half")
    assert check(used / "upper").returncode == 0
    done = check("-o", used.options)
    assert (done.returncode, done.stderr) == (4, "")
    assert done.stdout.startswith(f"{used / 'work/work/#1'}: it is what an interrupted change left")
    assert (
        check("-o", f"lowerdir={used / 'top'}:{used / 'bottom'},workdir={used / 'work'}", used / "upper").returncode
        == 4
    )


def test_an_upper_is_not_checked_over_other_layers(used: Place) -> None:
    other = f"lowerdir={used / 'bottom'},upperdir={used / 'upper'},workdir={used / 'work'}"
    fails(check("--repair", "-o", other), "was last mounted over other lower layers", "-o lowerdir=", status=8)
    os.removexattr(used / "upper", LOWERS)
    fails(check(used / "upper"), "does not say which layers are below it", "-o lowerdir=", status=8)


def test_an_upper_of_the_kernels_overlay_is_refused_while_it_is_mounted(used: Place) -> None:
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", used.options, used.view], check=True)
    fails(check("-o", used.options), "is mounted", str(used.view), status=8)
    subprocess.run(["umount", used.view], check=True)
    assert check("-o", used.options).returncode == 0


@pytest.mark.parametrize("words", [("-n", "-y"), ("--quick", "x"), ("-o", "lowerdir=a"), ("-o", "no=such"), ("a", "b")])
def test_wrong_usage_is_status_2(words: tuple[str, ...], tmp_path: Path) -> None:
    assert check("--store", tmp_path, *words).returncode == 2


def test_an_unknown_word_is_named(tmp_path: Path) -> None:
    fails(check("--store", tmp_path, "none"), "no upper directory or container 'none'", status=8)
