"""Is a layer's tar, put together again from its directory, the same to the last byte?"""

from __future__ import annotations

import hashlib
import io
import os
import random
import secrets
import subprocess
import tarfile
from pathlib import Path

import pytest

from overlayfs_demo.errors import ImageError
from overlayfs_demo.images.archive import open_archive
from overlayfs_demo.images.select import select_image
from tests.images.builders import (
    OPAQUE,
    WHITEOUT,
    Content,
    Entry,
    Members,
    directory,
    hard_link,
    layer,
    needs_root,
    symlink,
)
from tests.images.splitting import SplitTar, split_stream, unlike
from tests.images.test_real_archives import ARCHIVES, EXPORTED, real_archive

ORDINARY: dict[str, Members] = {
    "kinds": {
        "d": directory(0o750),
        "d/f": "text",
        "l": symlink("d/f"),
        "p": Entry(tarfile.FIFOTYPE),
        "empty": "",
        "set-id": Entry(mode=0o6755, data=b"#!"),
    },
    "names": {"n" * 99: "1", "n" * 100: "2", "long/" * 60 + "name": "3", "caf\xe9 \udcff\n": "4", "./dot//s": "5"},
    "root": {"./": directory(0o711), "./x": "1"},
    "attributes": {"f": Entry(data=b"1", pax={"SCHILY.xattr.user.x": "1" * 3000, "mtime": "1.123456789"})},
    "hard links": [("a", "1"), ("b", hard_link("a")), ("a", "2"), ("c", hard_link("b")), ("b", "3"), ("d", "4")],
    "file over file": [("a", "first"), ("b", "between"), ("a", "second"), ("a", "third")],
    "empty file over file": [("a", "first"), ("a", ""), ("b", "1")],
    "equal files": [("a", "same"), ("a", "same")],
    "other names of one path": [("a/b", "1"), ("./a//b", "2"), ("a/./b", "3")],
    "directory over file": [("a", "first"), ("a", directory()), ("a/x", "2")],
    "file over directory": [("d/e/x", "1"), ("d/y", "2"), ("de", "3"), ("d", "file")],
    "link over directory": [("d/e/x", "1"), ("d", symlink("de")), ("de/x", "2")],
    "hard link over file": [("a", "first"), ("b", "second"), ("a", hard_link("b")), ("b", "third")],
    "whiteout after its name": [("x", "new"), ("x", WHITEOUT)],
    "whiteout before its name": [("x", WHITEOUT), ("x", "new")],
    "opaque after its names": [("d/x", "1"), ("d", OPAQUE)],
    "whiteouts with data": [(".wh.x", "nobody reads this"), ("d/.wh..wh..opq", "nor this"), ("f", "1")],
    "books of AUFS": {".wh..wh.plnk": directory(), ".wh..wh.plnk/1.2": "x", ".wh..wh.aufs": "y", "f": "z"},
    "closed directory": {"d": directory(0o311), "d/f": "1"},
}


@pytest.mark.parametrize("members", ORDINARY.values(), ids=ORDINARY.keys())
def test_assembled_tar_is_the_same(split: SplitTar, members: Members) -> None:
    split({"x": "below", "d/x": "below"})
    assert split(members).assembled() == layer(members)


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_format_of_tar_is_kept(split: SplitTar, kind: int) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=kind) as tar:
        for number, name in enumerate(["d/" * 45 + "f", "short"] + ["g" * 180] * (kind != tarfile.USTAR_FORMAT)):
            info = tarfile.TarInfo(name)
            info.size, info.mtime = 700 * number, 1_600_000_000
            tar.addfile(info, io.BytesIO(unlike(info.size)))
    assert split(out.getvalue()).assembled() == out.getvalue()


@pytest.mark.parametrize(
    "how",
    [
        ["--format=gnu"],
        ["--format=v7"],
        ["--format=posix", "--sparse-version=0.0"],
        ["--format=posix", "--sparse-version=0.1"],
        ["--format=posix", "--sparse-version=1.0"],
    ],
    ids=lambda how: how[-1].partition("=")[2],
)
def test_what_gnu_tar_writes_is_kept(split: SplitTar, tmp_path: Path, how: list[str]) -> None:
    source = tmp_path / "source"
    (source / "d").mkdir(parents=True)
    with (source / "sparse").open("wb") as file:
        for place in (0, 1 << 20, 3 << 20):
            file.seek(place)
            file.write(b"data at %d" % place)
        file.truncate(5 << 20)
    (source / "after").write_bytes(unlike(10_000))
    (source / "d/link").hardlink_to(source / "after")
    sparse = ["-S"] if how != ["--format=v7"] else []
    made = subprocess.run(["tar", "-C", source, "-c", *sparse, *how, "."], stdout=subprocess.PIPE, check=True)
    done = split(made.stdout)
    assert (done.top / "sparse").read_bytes() == (source / "sparse").read_bytes()
    assert done.assembled() == made.stdout


@pytest.mark.parametrize("data", [b"\0" * 1024, b"\0" * 10240, b"", b"\0" * 512], ids=len)
def test_tar_of_an_empty_layer_is_kept(split: SplitTar, data: bytes) -> None:
    done = split(data)
    assert os.listdir(done.top) == []
    assert done.assembled() == data


BARE = layer({"a": "1", "b": "2" * 512}).rstrip(b"\0")


@pytest.mark.parametrize(
    "end",
    [b"", b"\0" * 512, b"\0" * 1024, b"\0" * 3_000_000, b"\0" * 1024 + unlike(2_000_000)],
    ids=["no end mark", "one block", "two blocks", "many blocks", "garbage after the end"],
)
def test_whatever_follows_the_last_member_is_kept(split: SplitTar, end: bytes) -> None:
    assert len(BARE) % 512 == 0
    assert split(BARE + end).assembled() == BARE + end


def test_hard_link_to_a_lower_file_and_a_new_file_of_that_name_are_kept(split: SplitTar) -> None:
    split({"d/a": "below"})
    members = [("b", hard_link("d/a")), ("d/a", "new"), ("d", OPAQUE), ("d/a", WHITEOUT)]
    assert split(members).assembled() == layer(members)


@needs_root
def test_devices_and_owners_are_kept(split: SplitTar) -> None:
    null, gone = Entry(tarfile.CHRTYPE, device=(1, 3)), Entry(tarfile.CHRTYPE)
    members = {"null": null, "gone": gone, "f": Entry(owner=(7, 8), data=b"1")}
    assert split(members).assembled() == layer(members)


def random_members(chooser: random.Random) -> list[tuple[str, Content]]:
    """A tar that keeps treading on its own feet: few names, all kinds, none leads through a file."""
    names = ["a", "b", "c", "a/a", "a/b", "b/a", "b/a/c", "./a//c"]
    members: list[tuple[str, Content]] = []
    files: set[str] = set()
    for _ in range(chooser.randrange(2, 40)):
        name = chooser.choice(names)
        path = os.path.normpath(name)
        if any(path.startswith(one + "/") for one in files):
            continue
        linkable = sorted(one for one in files if f"{one}/".partition(f"{path}/")[0])
        kind = chooser.choices(["file", "directory", "link", "symlink", "fifo", "mark"], [8, 4, 4, 1, 1, 2])[0]
        if kind == "file":
            data = chooser.randbytes(chooser.choice([0, 1, 511, 512, 513, 70_000]))
            members.append((name, Entry(data=data, mode=chooser.choice([0o644, 0o600, 0o4755, 0o044, 0]))))
        elif kind == "directory":
            members.append((name, directory(chooser.choice([0o755, 0o700, 0o555, 0o600, 0]))))
        elif kind == "link" and linkable:
            members.append((name, hard_link(chooser.choice(linkable))))
        elif kind == "mark":
            members.append((name, chooser.choice([WHITEOUT, OPAQUE])))
        else:
            members.append((name, symlink("nowhere") if kind == "symlink" else Entry(tarfile.FIFOTYPE)))
        if kind == "directory":
            files.discard(path)
        elif kind != "mark":
            files = {one for one in files if not one.startswith(path + "/")} | {path}
    return members


def test_random_tars_are_kept(tmp_path: Path) -> None:
    seed = int(os.environ.get("OVERLAYFS_DEMO_SEED", secrets.randbits(32)))
    print(f"OVERLAYFS_DEMO_SEED={seed}")
    chooser = random.Random(seed)
    below = split_stream(io.BytesIO(layer({"a/b": "1", "b/a/c": "2", "c": "3"})), tmp_path / "below").top
    tried = 0
    for number in range(300):
        data = layer(random_members(chooser)) + chooser.choice([b"", chooser.randbytes(100)])
        try:
            done = split_stream(io.BytesIO(data), tmp_path / f"{number}", [below])
        except ImageError as error:
            assert "symbolic link in this layer" in str(error), f"seed {seed}, tar {number}"
            continue  # a mark in a directory that a later member has replaced
        assert done.assembled() == data, f"seed {seed}, tar {number}"
        tried += 1
    assert tried > 100


@pytest.mark.parametrize("name", [*ARCHIVES, EXPORTED])
def test_layers_of_real_images_are_kept(tmp_path: Path, name: str) -> None:
    below: list[Path] = []
    with open_archive(real_archive(name), scratch=tmp_path) as archive:
        for layer_ in select_image(archive, None, None).layers:
            reader = archive.open_layer(layer_)
            done = split_stream(reader.tar, tmp_path / str(len(below)), below, reader.finish)
            below.append(done.top)
            assert hashlib.new(layer_.diff_id.algorithm, done.assembled()).hexdigest() == layer_.diff_id.encoded
