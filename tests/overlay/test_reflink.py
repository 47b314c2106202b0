"""Does a copy-up share the blocks of the lower file, where the filesystem can?"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import unmount_all, why_no_mounts
from tests.contract.conftest import why_unavailable
from tests.places import Place, run, set_up

MIB = 1 << 20
BIG = 64 * MIB


@pytest.fixture(params=["xfs", "btrfs"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """Directories to mount, on a filesystem that can share blocks, with a large lower file."""
    if problem := why_no_mounts():
        pytest.skip(problem)
    if not shutil.which(f"mkfs.{request.param}"):
        pytest.skip(f"needs mkfs.{request.param}")
    image, mounted = tmp_path / "image", tmp_path / "disk"
    with image.open("wb") as file:
        file.truncate(512 * MIB)
    mounted.mkdir()
    made = run(f"mkfs.{request.param}", "-q", image)
    done = run("mount", "-o", "loop", image, mounted)
    if made.returncode or done.returncode:
        pytest.skip(f"no {request.param} here: {made.stderr}{done.stderr}")
    place = set_up(mounted)
    with (place / "bottom/big").open("wb") as file:
        for _ in range(BIG // MIB):
            file.write(os.urandom(MIB))
    os.sync()
    yield place
    unmount_all(str(tmp_path))


def used(place: Place) -> int:
    os.sync()
    status = os.statvfs(place.base)
    return (status.f_blocks - status.f_bfree) * status.f_frsize


@pytest.mark.parametrize("front", ["kernel", "fusepy"])
def test_copy_up_shares_the_blocks(disk: Place, front: str) -> None:
    if problem := why_unavailable(f"{front}-front"):
        pytest.skip(problem)
    assert disk.mount("--front", front).returncode == 0
    before = used(disk)
    with (disk.view / "big").open("ab") as file:
        file.write(b"end")
    assert (disk / "upper/big").stat().st_size == BIG + 3
    assert used(disk) - before < BIG // 8
    assert run("cmp", "--bytes", str(BIG), disk / "upper/big", disk / "bottom/big").returncode == 0


def test_a_copy_within_the_view_shares_them_too(disk: Place) -> None:
    assert disk.mount("--front", "kernel").returncode == 0
    before = used(disk)
    assert run("cp", "--reflink=auto", disk.view / "big", disk.view / "second").returncode == 0
    assert run("cmp", disk / "upper/second", disk / "bottom/big").returncode == 0
    assert used(disk) - before < BIG // 8
