"""What does the recipe of a layer's tar hold, and is what is not as it was refused?"""

from __future__ import annotations

import io
import os
import subprocess
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from overlayfs_demo.errors import ImageError
from overlayfs_demo.images.tarsplit import tar_size
from tests.images.builders import WHITEOUT, Entry, Members, directory, hard_link, layer, needs_root
from tests.images.splitting import LABEL, Split, SplitTar, split_stream, unlike


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


@pytest.mark.parametrize(
    "members",
    [
        {"d/f": Entry(data=b"secret", mode=0)},
        {"d/f": Entry(data=b"secret", mode=0o077)},
        {"d/f": "1", "d": directory(0)},
        {"d": directory(0o600), "d/f": "1", "d/e": directory(), "d/e/f": "2"},
        {"d": directory(), "d/e": directory(0), "d/e/f": "2"},
    ],
    ids=["mode 0", "unreadable", "closed later", "no search", "deeper"],
)
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
        "d": directory(0),
        "d/f": "1",
        "e": directory(0o600),
        "e/e": directory(),
        "e/e/f": "2",
        "r": directory(0o500),
        "r/f": "3",
        "none": Entry(data=b"4", mode=0),
        "twice": "5",
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


@pytest.mark.parametrize(
    ("records", "what"),
    [
        (b"I\0\0\0\4textE", None),
        (b"F\0\1" + b"\4".rjust(8, b"\0") + CHECKED + b"aE", None),
        (b"F\0\4" + b"\4".rjust(8, b"\0") + CHECKED + b"../aE", "'../a', which is part of its tar, cannot be opened"),
        (b"F\0\2" + b"\4".rjust(8, b"\0") + CHECKED + b"/aE", "'/a', which is part of its tar, cannot be opened"),
        (b"F\0\0" + b"\4".rjust(8, b"\0") + CHECKED + b"E", "'', which is part of its tar, cannot be opened"),
        (b"I\0\0\0\3texE", "it produces a tar of 3 bytes, not 4"),
        (b"I\0\0\0\4text", "it ends too early"),
        (b"I\xff\xff\xff\xfftextE", "it ends too early"),
        (b"", "it ends too early"),
        (b"I\0\0\0\4text\x1bE", r"a record of unknown kind '\x1b'"),
        (b"I\0\0\0\4textEE", "it has data after its end"),
    ],
)
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
