"""Is a layer's tar, put together again from its directory, the same to the last byte?"""

from __future__ import annotations

import contextlib
import io
import os
import random
import secrets
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import pytest
import zstandard

from overlayfs_demo.errors import ImageError
from overlayfs_demo.images.archive import open_archive
from overlayfs_demo.images.flavours import select_image
from overlayfs_demo.images.lowers import Lowers
from overlayfs_demo.images.tarsplit import assemble, assembled_digest, recording, tar_size
from overlayfs_demo.images.tarstream import TarStream
from overlayfs_demo.images.unpack import unpack_layer
from overlayfs_demo.overlay.whiteout import TRUSTED, USER
from tests.images.builders import (
    OPAQUE,
    WHITEOUT,
    Content,
    Entry,
    Members,
    digest,
    directory,
    hard_link,
    layer,
    needs_root,
    symlink,
)
from tests.images.test_real_archives import ARCHIVES, EXPORTED, real_archive

LABEL = "image.tar: layer 01"


@dataclass(frozen=True)
class Split:
    """An unpacked layer and its recipe."""

    top: Path
    recipe: bytes

    def assembled(self) -> bytes:
        out = bytearray()
        fd = os.open(self.top, os.O_RDONLY)
        try:
            assemble(io.BytesIO(self.recipe), fd, out.extend, LABEL)
        finally:
            os.close(fd)
        return bytes(out)


def split_stream(
    source: BinaryIO, top: Path, below: Sequence[Path] = (), finish: Callable[[], None] = lambda: None
) -> Split:
    """Unpack a layer into the new directory `top`, and record it."""
    root = os.geteuid() == 0
    marks = TRUSTED if root else USER
    top.mkdir()
    recipe = io.BytesIO()
    with contextlib.ExitStack() as stack:
        fd, spare_fd = os.open(top, os.O_RDONLY), os.open(top.parent, os.O_RDONLY)
        stack.callback(os.close, fd)
        stack.callback(os.close, spare_fd)
        lowers = stack.enter_context(Lowers(below, marks))
        recorder = stack.enter_context(recording(source, fd, top.parent, LABEL))
        tar = TarStream(recorder.tar, LABEL, marked_end=False)
        unpack_layer(tar, LABEL, fd, spare_fd, lowers, marks, root, recorder)
        recorder.finish(recipe)
        finish()
    return Split(top, recipe.getvalue())


SplitTar = Callable[..., Split]


@pytest.fixture
def split(tmp_path: Path) -> SplitTar:
    """Unpack and record this layer (members, or a tar's bytes) on the one unpacked before it, if any."""
    done: list[Path] = []

    def run(content: Members | bytes) -> Split:
        data = content if isinstance(content, bytes) else layer(content)
        made = split_stream(io.BytesIO(data), tmp_path / f"layer-{len(done)}", done)
        done.append(made.top)
        return made

    return run


def unlike(size: int, seed: int = 0) -> bytes:
    """Data that no compression makes smaller."""
    return random.Random(seed).randbytes(size)


# --- the same to the last byte ---------------------------------------------------------------------


ORDINARY: dict[str, Members] = {
    "kinds": {
        "d": directory(0o750), "d/f": "text", "l": symlink("d/f"), "p": Entry(tarfile.FIFOTYPE), "empty": "",
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


@pytest.mark.parametrize("how", [
    ["--format=gnu"], ["--format=v7"], ["--format=posix", "--sparse-version=0.0"],
    ["--format=posix", "--sparse-version=0.1"], ["--format=posix", "--sparse-version=1.0"],
], ids=lambda how: how[-1].partition("=")[2])
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
    "end", [b"", b"\0" * 512, b"\0" * 1024, b"\0" * 3_000_000, b"\0" * 1024 + unlike(2_000_000)],
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
            fd = os.open(done.top, os.O_RDONLY)
            try:
                assert assembled_digest(io.BytesIO(done.recipe), fd, layer_.diff_id.algorithm) == layer_.diff_id
            finally:
                os.close(fd)


# --- what the recipe holds, and what not -----------------------------------------------------------


def test_recipe_holds_no_data_of_files(split: SplitTar) -> None:
    data = layer({"big": unlike(5_000_000), "d/bigger": unlike(9_000_000, 1), "l": hard_link("big")})
    done = split(data)
    assert done.assembled() == data
    assert len(done.recipe) < 1000


def test_recipe_of_many_small_files_is_small(split: SplitTar) -> None:
    done = split({f"usr/share/doc/package-{number}/copyright": unlike(4000, number) for number in range(500)})
    assert len(done.recipe) < 500 * 40


def test_recipe_tells_the_size_of_the_tar(split: SplitTar) -> None:
    data = layer({"a": "1" * 2000, "x": WHITEOUT}) + b"more"
    assert tar_size(io.BytesIO(split(data).recipe)) == len(data)


def test_only_the_replaced_file_is_in_the_recipe(split: SplitTar) -> None:
    members = [("a", unlike(3_000_000)), ("b", unlike(3_000_000, 1)), ("a", unlike(3_000_000, 2))]
    done = split(members)
    assert done.assembled() == layer(members)
    assert 3_000_000 < len(done.recipe) < 3_002_000


def test_neighbours_of_a_replaced_directory_stay_references(split: SplitTar) -> None:
    members = [("d/x", "1"), ("de", unlike(50_000)), ("d.d/x", unlike(50_000, 1)), ("d", "file")]
    done = split(members)
    assert done.assembled() == layer(members)
    assert len(done.recipe) < 1000


@pytest.mark.parametrize("members", [
    {"d/f": Entry(data=b"secret", mode=0)},
    {"d/f": Entry(data=b"secret", mode=0o077)},
    {"d/f": "1", "d": directory(0)},
    {"d": directory(0o600), "d/f": "1", "d/e": directory(), "d/e/f": "2"},
    {"d": directory(), "d/e": directory(0), "d/e/f": "2"},
], ids=["mode 0", "unreadable", "closed later", "no search", "deeper"])
def test_what_its_owner_may_not_reach_is_in_the_recipe(split: SplitTar, members: Members) -> None:
    done = split(members)
    assert done.assembled() == layer(members)
    subprocess.run(["chmod", "-R", "u+rwx", done.top], check=True)
    subprocess.run(["rm", "-r", done.top / "d"], check=True)
    assert done.assembled() == layer(members)


def test_what_a_closed_root_holds_is_in_the_recipe(split: SplitTar) -> None:
    members = {"./": directory(0), "f": "1", "d/f": "2"}
    done = split(members)
    done.top.chmod(0o700)
    (done.top / "f").unlink()
    (done.top / "d/f").unlink()
    assert done.assembled() == layer(members)


@needs_root
def test_ordinary_user_assembles_what_modes_close_to_him() -> None:
    members = {
        "d": directory(0), "d/f": "1", "e": directory(0o600), "e/e": directory(), "e/e/f": "2", "r": directory(0o500),
        "r/f": "3", "none": Entry(data=b"4", mode=0), "twice": "5",
    }
    data = layer([*members.items(), ("twice", Entry(data=b"6", mode=0o400)), ("twice", "7")])
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o777)  # pytest's own directories are closed to others
        child = os.fork()
        if not child:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            same = False
            try:
                same = split_stream(io.BytesIO(data), Path(name) / "top").assembled() == data
            finally:
                os._exit(0 if same else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_what_a_directory_closed_in_a_layer_below_holds_is_in_the_recipe(split: SplitTar) -> None:
    below = split({"d": directory(0), "d/old": "1"})
    if os.geteuid():
        below.top.joinpath("d").chmod(0o100)
    done = split({"d/f": "2"})
    (done.top / "d").chmod(0o700)
    if not os.geteuid():
        (done.top / "d/f").unlink()
    assert done.assembled() == layer({"d/f": "2"})


def test_modes_times_and_further_names_do_not_matter(split: SplitTar) -> None:
    done = split({"a": "1"})
    (done.top / "a").chmod(0o600)
    (done.top / "b").hardlink_to(done.top / "a")
    assert done.assembled() == layer({"a": "1"})


# --- what is not as it was -------------------------------------------------------------------------


def assert_refused(done: Split, *words: str) -> None:
    with pytest.raises(ImageError) as caught:
        done.assembled()
    for word in (LABEL, *words, "unpack the image again"):
        assert word in str(caught.value)


def test_missing_file_is_named(split: SplitTar) -> None:
    done = split({"d/a\n": "1", "b": "2"})
    (done.top / "d/a\n").unlink()
    assert_refused(done, "'d/a\\n'", "No such file")


@pytest.mark.parametrize("text", ["", "tex", "text and more"])
def test_file_of_another_size_is_named(split: SplitTar, text: str) -> None:
    done = split({"b": "2", "d/a": "text"})
    (done.top / "d/a").write_text(text)
    assert_refused(done, "'d/a'", f"has {len(text)} bytes, not the 4")


def test_changed_file_of_the_same_size_is_named(split: SplitTar) -> None:
    done = split({"d/a": "text"})
    (done.top / "d/a").write_text("tex7")
    assert_refused(done, "'d/a'", "has been changed")


def test_symbolic_link_in_the_place_of_a_file_is_not_followed(split: SplitTar, tmp_path: Path) -> None:
    done = split({"d/a": "text"})
    (tmp_path / "elsewhere").write_text("text")
    (done.top / "d/a").unlink()
    (done.top / "d/a").symlink_to(tmp_path / "elsewhere")
    assert_refused(done, "'d/a'", "cannot be opened")


def test_symbolic_link_in_the_place_of_a_directory_is_not_followed(split: SplitTar) -> None:
    done = split({"d/a": "text"})
    (done.top / "d").rename(done.top / "e")
    (done.top / "d").symlink_to("e")
    assert_refused(done, "'d/a'", "cannot be opened")


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_another_kind_of_file_is_named(split: SplitTar, make: Callable[[Path], None]) -> None:
    done = split({"d/a": "text"})
    (done.top / "d/a").unlink()
    make(done.top / "d/a")
    assert_refused(done, "'d/a'", "not the regular file")


def test_damaged_recipe_is_refused_or_makes_no_difference(split: SplitTar) -> None:
    data = layer({"a": unlike(50), "x": WHITEOUT, "d/long" * 20: "text"})
    done = split(data)
    refused = 0
    damaged = [done.recipe[:length] for length in range(len(done.recipe))]
    for place in range(len(done.recipe)):
        changed = bytearray(done.recipe)
        changed[place] ^= 1 << place % 8
        damaged.append(bytes(changed))
    for recipe in damaged:
        try:
            assert Split(done.top, recipe).assembled() == data
        except ImageError as error:
            assert str(error).startswith(LABEL)
            refused += 1
    # What may go: the frame's checksum at its very end, and bits of its header that ask for one.
    assert refused >= len(damaged) - 20


CHECKED = zlib.crc32(b"text").to_bytes(4, "big")


@pytest.mark.parametrize(("records", "what"), [
    (b"I\0\0\0\4textE", None),
    (b"F\0\1" + b"\4".rjust(8, b"\0") + CHECKED + b"aE", None),
    (b"F\0\4" + b"\4".rjust(8, b"\0") + CHECKED + b"../aE", "'../a', which is a part of its tar, cannot be opened"),
    (b"F\0\2" + b"\4".rjust(8, b"\0") + CHECKED + b"/aE", "'/a', which is a part of its tar, cannot be opened"),
    (b"F\0\0" + b"\4".rjust(8, b"\0") + CHECKED + b"E", "'', which is a part of its tar, cannot be opened"),
    (b"I\0\0\0\3texE", "it makes a tar of 3 bytes, not 4"),
    (b"I\0\0\0\4text", "it ends too early"),
    (b"I\xff\xff\xff\xfftextE", "it ends too early"),
    (b"", "it ends too early"),
    (b"I\0\0\0\4text\x1bE", r"a record of the unknown kind '\x1b'"),
    (b"I\0\0\0\4textEE", "it goes on after its end"),
])
def test_recipe_is_of_the_documented_format(split: SplitTar, records: bytes, what: str | None) -> None:
    head = b"overlayfs-demo tar recipe\n\1" + b"\4".rjust(8, b"\0")
    done = Split(split({"a": "text"}).top, head + zstandard.ZstdCompressor().compress(records))
    if what is None:
        assert done.assembled() == b"text"
    else:
        assert_refused(done, what)


def test_recipe_of_a_later_version_is_refused(split: SplitTar) -> None:
    recipe = bytearray(split({"a": "1"}).recipe)
    recipe[26] = 2
    with pytest.raises(ImageError, match=r"the layer: .* version 2, not 1"):
        tar_size(io.BytesIO(recipe))


def test_digest_of_the_assembled_tar_is_the_diff_id(split: SplitTar) -> None:
    data = layer({"a": "1"})
    done = split(data)
    fd = os.open(done.top, os.O_RDONLY)
    try:
        assert str(assembled_digest(io.BytesIO(done.recipe), fd)) == digest(data)
    finally:
        os.close(fd)


def test_file_changed_while_the_layer_is_unpacked_is_named(tmp_path: Path) -> None:
    top = tmp_path / "top"

    class Meddling(io.BytesIO):
        """Between the first file and the one that replaces it, somebody else writes."""

        def read(self, size: int | None = -1) -> bytes:
            if self.tell() >= 2 * 1024 and (top / "a").exists():
                (top / "a").write_text("2")
            return super().read(size)

    with pytest.raises(ImageError, match="'a' has been changed"):
        split_stream(Meddling(layer([("a", "1"), ("b", "1"), ("a", "3")])), top)
