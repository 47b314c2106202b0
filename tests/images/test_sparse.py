"""Are zeros written as holes, and read as the zeros that they were?"""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from pathlib import Path

import pytest

from overlayfs_demo.images.archive import open_archive
from overlayfs_demo.images.build import build_layers
from overlayfs_demo.images.sparse import write_sparse
from overlayfs_demo.images.tarsplit import Recorder
from tests.images.builders import docker_save, layer
from tests.images.splitting import SplitTar, unlike

BLOCK = 4096
ZEROS = bytes(BLOCK)
BIG = 16 << 20

PIECES: dict[str, list[bytes]] = {
    "nothing": [b""],
    "less than a block": [b"\0" * 100],
    "one hole": [ZEROS * 10],
    "hole at the start": [ZEROS * 3, b"data"],
    "hole in the middle": [b"x" * BLOCK + ZEROS * 3 + b"y"],
    "hole at the end": [b"x" * BLOCK + ZEROS],
    "rest of zeros": [b"x" * BLOCK + ZEROS + b"\0" * 100],
    "zeros beside the blocks": [b"x" + b"\0" * (2 * BLOCK) + b"x"],
    "several pieces": [ZEROS * 2, b"x" * BLOCK + ZEROS, ZEROS + b"y" * BLOCK, ZEROS],
    "no whole blocks": [b"x" * 100, ZEROS * 2, b"y" * 100, ZEROS],
    "nearly zeros": [b"\0" * (BLOCK - 1) + b"x"],
}


@pytest.mark.parametrize("pieces", PIECES.values(), ids=PIECES.keys())
def test_what_is_written_is_what_is_read(tmp_path: Path, pieces: list[bytes]) -> None:
    with (tmp_path / "file").open("wb", buffering=0) as file:
        for piece in pieces:
            write_sparse(file.fileno(), piece)
        assert file.tell() == sum(map(len, pieces))
    assert (tmp_path / "file").read_bytes() == b"".join(pieces)


def taken(path: Path) -> int:
    """The bytes that a file takes on the disk."""
    return path.stat().st_blocks * 512


def test_members_zeros_take_no_room_and_count_in_full(tmp_path: Path) -> None:
    members = {"zeros": bytes(BIG), "mixed": b"x" * BLOCK + bytes(BIG) + b"y" * 100, "full": b"\1" * 8 * BLOCK}
    (tmp_path / "image.tar").write_bytes(docker_save([layer(members)]))
    (built,) = build_layers(tmp_path / "image.tar", tmp_path / "out")
    assert taken(built.directory / "zeros") <= 2 * BLOCK
    assert taken(built.directory / "mixed") <= 8 * BLOCK
    assert taken(built.directory / "full") >= 8 * BLOCK
    assert built.size == sum(map(len, members.values()))
    assert [(built.directory / name).stat().st_size for name in members] == [len(data) for data in members.values()]
    assert (built.directory / "mixed").read_bytes() == members["mixed"]


def test_tar_of_zeros_is_put_together_again(split: SplitTar) -> None:
    members = [("a", bytes(3 << 20)), ("b", b"x" * 5000 + bytes(3 << 20) + b"y"), ("a", "short"), ("c", unlike(5000))]
    done = split(members)
    assert done.assembled() == layer(members)
    assert len(done.recipe) < 2000


def test_replaced_zeros_take_no_room_while_they_are_kept(tmp_path: Path) -> None:
    """They go to a scratch file, until the recipe is written."""
    root_fd = os.open(tmp_path, os.O_RDONLY)
    with (tmp_path / "kept").open("w+b", buffering=0) as kept:
        recorder = Recorder(io.BytesIO(bytes(BIG)), root_fd, io.BytesIO(), kept.fileno(), "layer")
        recorder.refer(b"zeros", BIG)
        while recorder.tar.read(1 << 20):
            pass
        with (tmp_path / "zeros").open("wb") as file:
            file.truncate(BIG)
        recorder.keep([b"zeros"])
        assert kept.tell() == BIG
    os.close(root_fd)
    assert taken(tmp_path / "kept") <= 8 * BLOCK


def test_zeros_of_a_compressed_archive_take_no_room(tmp_path: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        info = tarfile.TarInfo("zeros")
        info.size = BIG
        tar.addfile(info, io.BytesIO(bytes(BIG)))
    (tmp_path / "image.tar.gz").write_bytes(gzip.compress(out.getvalue(), 1))
    with open_archive(tmp_path / "image.tar.gz", scratch=tmp_path) as archive:
        assert archive.stored_size("zeros") == BIG
        status = os.stat(next(fd for fd in Path("/proc/self/fd").iterdir() if is_scratch(fd, tmp_path)))
    assert status.st_size == len(out.getvalue())
    assert status.st_blocks * 512 < 1 << 20


def is_scratch(fd: Path, where: Path) -> bool:
    """Whether this descriptor of ours is that of an unnamed file in `where`."""
    target = os.readlink(fd) if fd.is_symlink() else ""
    return target.startswith(str(where)) and target.endswith("(deleted)")
