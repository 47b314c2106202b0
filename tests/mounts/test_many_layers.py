"""May there be very many layers, with any names, and options of any length?"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from overlayfs_demo.mounts.option_paths import escape_path, lowerdir_option
from tests.conftest import unmount_all, why_no_mounts
from tests.contract.conftest import why_unavailable
from tests.places import BIN, MINUTE, Place, run

ODD_NAMES = [
    b"colon:comma,back\\slash",
    b" blank ",
    b"new\nline",
    "ünïcödé ☃".encode(),
    b"byte\xff",
    b"quote'\"",
    b"a=b",
    b"\\",
    b"trailing\\",
    b"tab\t",
    b"-o",
    b"%20",
    b"#1",
]
fronts = pytest.mark.parametrize("front", ["kernel", "fusepy"])


def require(front: str) -> None:
    if problem := why_unavailable(f"{front}-front"):
        pytest.skip(problem)


def many(place: Place, count: int, name: str = "l") -> list[bytes]:
    """So many layers, topmost first; each has a file of its own and its part of a directory."""
    made = []
    for number in range(count):
        directory = place / f"{name}{number}"
        (directory / "shared").mkdir(parents=True)
        (directory / "shared" / f"f{number}").write_text(str(number))
        (directory / "who").write_text(str(number))
        made.append(os.fsencode(directory))
    return made


@fronts
def test_more_than_500_lowers(place: Place, front: str) -> None:
    require(front)
    lowers = many(place, 600)
    options = f"{lowerdir_option(lowers)},upperdir={place / 'upper'},workdir={place / 'work'}"
    assert len(options) > 4096
    done = place.mount("--front", front, options=options)
    assert (done.returncode, done.stderr) == (0, "")
    assert (place.view / "who").read_text() == "0"
    assert len(os.listdir(place.view / "shared")) == 600
    assert (place.view / "shared/f599").read_text() == "599"
    (place.view / "shared/f599").unlink()
    (place.view / "shared/f0").write_text("changed")
    assert len(os.listdir(place.view / "shared")) == 599
    assert place.umount().returncode == 0


@fronts
def test_layers_upper_and_mount_point_have_any_names(tmp_path: Path, front: str) -> None:
    if problem := why_no_mounts():
        pytest.skip(problem)
    require(front)
    base = os.fsencode(tmp_path)
    lowers = []
    for number, name in enumerate(ODD_NAMES):
        path = os.path.join(base, b"lowers", name)
        os.makedirs(path)
        Path(os.fsdecode(path), f"from{number}").write_text("1")
        lowers.append(path)
    others = [os.path.join(base, kind, name) for kind in (b"upper", b"work", b"view") for name in ODD_NAMES[:1]]
    for path in others:
        os.makedirs(path)
    upper, work, view = others
    options = f"{lowerdir_option(lowers)},upperdir={escape_path(upper)},workdir={escape_path(work)}"
    words = [os.fsencode(BIN / "overlayfs-demo"), b"mount", b"--front", front.encode(), b"-o", os.fsencode(options)]
    try:
        done = subprocess.run([*words, view], capture_output=True, timeout=MINUTE, check=False)
        assert (done.returncode, done.stderr) == (0, b"")
        assert sorted(os.listdir(view)) == sorted(b"from%d" % number for number in range(len(ODD_NAMES)))
        Path(os.fsdecode(view), "new").write_text("1")
        assert os.path.exists(os.path.join(upper, b"new"))
        done = subprocess.run([words[0], b"umount", view], capture_output=True, timeout=MINUTE, check=False)
        assert (done.returncode, done.stderr) == (0, b"")
    finally:
        unmount_all(str(tmp_path))


def test_long_options_reach_the_helper(helper: Place) -> None:
    place = helper
    lowers = many(place, 100, "a-rather-long-name-for-a-layer-")
    options = f"{lowerdir_option(lowers)},upperdir={place / 'upper'},workdir={place / 'work'}"
    assert len(options) > 2 * 4096
    done = run("mount", "-t", "fuse.overlayfs-demo", "name", place.view, "-o", options)
    assert done.returncode == 0, done.stderr
    assert len(os.listdir(place.view / "shared")) == 100


def test_fstab_takes_odd_names(helper: Place) -> None:
    place = helper
    odd = place / "a layer, with: all"
    odd.mkdir()
    (odd / "odd").write_text("1")
    escaped = lowerdir_option([os.fsencode(odd)]).replace("\\", "\\134").replace(" ", "\\040")
    (place / "fstab").write_text(f"demo {place.view} fuse.overlayfs-demo {escaped},noauto 0 0\n")
    done = run("mount", "--fstab", place / "fstab", place.view)
    assert done.returncode == 0, done.stderr
    assert (place.view / "odd").read_text() == "1"
