"""Does copying keep every byte and every hole, whatever the filesystem offers?"""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from overlayfs_demo.linux import syscalls
from overlayfs_demo.overlay import copy_data as copy_data_module
from overlayfs_demo.overlay.copy_data import copy_data

BLOCK = 1 << 16


def copy(source: Path, target: Path, size: int) -> None:
    reading = os.open(source, os.O_RDONLY)
    writing = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    try:
        copy_data(reading, writing, size)
    finally:
        os.close(reading)
        os.close(writing)


def make(path: Path, pieces: str) -> bytes:
    """A file of blocks: `x` is data, `.` a hole."""
    with path.open("wb") as out:
        for piece in pieces:
            if piece == "x":
                out.write(os.urandom(BLOCK))
            else:
                out.seek(BLOCK, os.SEEK_CUR)
        out.truncate(len(pieces) * BLOCK)
    return path.read_bytes()


def refuse(*_: object) -> int:
    raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))


@pytest.mark.parametrize("how", ["in the kernel", "by hand"])
@pytest.mark.parametrize("pieces", ["", "x", "xxx", ".", "...", ".x", "x.", "x..x", ".x.x.", "..xx.."])
def test_data_and_holes_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pieces: str, how: str) -> None:
    monkeypatch.setattr(syscalls, "clone_file", lambda *_: False)
    if how == "by hand":
        monkeypatch.setattr(os, "copy_file_range", refuse)
    data = make(tmp_path / "source", pieces)
    copy(tmp_path / "source", tmp_path / "target", len(data))
    assert (tmp_path / "target").read_bytes() == data
    assert (tmp_path / "target").stat().st_blocks * 512 <= (pieces.count("x") + 1) * BLOCK


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 5, 3 * BLOCK])
def test_only_the_first_bytes_are_copied(tmp_path: Path, size: int) -> None:
    data = make(tmp_path / "source", "x.x")
    copy(tmp_path / "source", tmp_path / "target", size)
    assert (tmp_path / "target").read_bytes() == data[:size]


def test_blocks_are_shared_where_the_filesystem_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared: list[tuple[int, int]] = []

    def clone(source: int, target: int) -> bool:
        shared.append((source, target))
        return True

    monkeypatch.setattr(syscalls, "clone_file", clone)
    monkeypatch.setattr(os, "copy_file_range", lambda *_: pytest.fail("copied"))
    make(tmp_path / "source", "x")
    copy(tmp_path / "source", tmp_path / "target", BLOCK)
    assert shared


def test_full_disk_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(syscalls, "clone_file", lambda *_: False)
    monkeypatch.setattr(os, "copy_file_range", full)
    make(tmp_path / "source", "x")
    with pytest.raises(OSError, match="No space"):
        copy(tmp_path / "source", tmp_path / "target", BLOCK)


def test_long_copy_is_made_in_steps_and_can_be_ended_before_each(tmp_path: Path) -> None:
    size = 5 * copy_data_module._CHUNK // 2
    (tmp_path / "source").write_bytes(b"x" * size)
    steps: list[int] = []

    def before_step() -> None:
        steps.append(os.fstat(target.fileno()).st_size)
        if len(steps) == 3:
            raise InterruptedError

    with (
        (tmp_path / "source").open("rb") as source,
        (tmp_path / "target").open("wb") as target,
        pytest.raises(InterruptedError),
    ):
        # One byte less than all, so that the filesystem cannot share its blocks.
        copy_data(source.fileno(), target.fileno(), size - 1, before_step)
    assert steps == [0, copy_data_module._CHUNK, 2 * copy_data_module._CHUNK]
