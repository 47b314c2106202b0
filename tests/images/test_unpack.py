"""Does a layer's directory say what the layer's tar says?"""

from __future__ import annotations

import io
import os
import struct
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.images.builders import (
    OPAQUE,
    WHITEOUT,
    Build,
    Entry,
    Members,
    directory,
    hard_link,
    is_opaque,
    is_whiteout,
    kernel_mount,
    layer,
    lowerdir,
    needs_root,
    snapshot,
    symlink,
)


def test_members_become_files_with_mode_and_time(build: Build) -> None:
    (top,) = build({"d": directory(0o750), "d/f": Entry(data=b"text", mode=0o640, mtime=1_000_000_001)})
    assert snapshot(top) == {"d": ("directory", 0o750, ""), "d/f": ("file", 0o640, "text")}
    assert (top / "d/f").stat().st_mtime == 1_000_000_001
    assert (top / "d").stat().st_mtime == 1_600_000_000


def test_set_id_and_sticky_bits_survive_the_change_of_owner(build: Build) -> None:
    owner = (12, 34) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
    (top,) = build(
        {
            "su": Entry(mode=0o6755, owner=owner),
            "tmp": directory(0o1777, owner=owner),
            "sg": directory(0o2775, owner=owner),
        }
    )
    assert {name: mode for name, (_, mode, _) in snapshot(top).items()} == {"su": 0o6755, "tmp": 0o1777, "sg": 0o2775}


@needs_root
def test_owners_are_the_numbers_of_the_tar(build: Build) -> None:
    owners = {"f": (1000, 2000), "d": (7, 8), "big": (3_000_000, 4_000_000_000)}
    (top,) = build({name: Entry(owner=owner) for name, owner in owners.items()} | {"d": directory(owner=(7, 8))})
    assert {path.name: (path.stat().st_uid, path.stat().st_gid) for path in top.iterdir()} == owners


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("1795477077.123456789", 1795477077_123456789),
        ("1795477077.000000001", 1795477077_000000001),
        ("1.5", 1_500000000),
        ("-1.5", -1_500000000),
        ("12", 12_000000000),
        ("1.1234567899", 1_123456789),
    ],
)
def test_times_are_exact_to_the_nanosecond(build: Build, text: str, nanoseconds: int) -> None:
    (top,) = build({"f": Entry(pax={"mtime": text}), "d": directory(pax={"mtime": text}), "d/x": "1"})
    assert (top / "f").stat().st_mtime_ns == nanoseconds
    assert (top / "d").stat().st_mtime_ns == nanoseconds


@needs_root
def test_capabilities_survive_the_change_of_owner(build: Build) -> None:
    capability = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)
    text = capability.decode("utf-8", "surrogateescape")
    (top,) = build({"ping": Entry(mode=0o755, owner=(1, 1), pax={"SCHILY.xattr.security.capability": text})})
    assert os.getxattr(top / "ping", "security.capability") == capability


def test_attributes_are_kept_byte_for_byte(build: Build) -> None:
    value = bytes(range(256))
    text = value.decode("utf-8", "surrogateescape")
    (top,) = build(
        {
            "f": Entry(mode=0o444, pax={"SCHILY.xattr.user.x": text}),
            "d": directory(0o555, pax={"SCHILY.xattr.user.x": "1"}),
        }
    )
    assert os.getxattr(top / "f", "user.x") == value
    assert os.getxattr(top / "d", "user.x") == b"1"


@pytest.mark.parametrize(
    "name",
    [
        "trusted.overlay.opaque",
        "trusted.overlay.redirect",
        "user.overlay.opaque",
        "user.fuseoverlayfs.opaque",
        "user.containers.override_stat",
    ],
)
def test_attributes_of_the_overlay_itself_cannot_be_forged(build: Build, name: str) -> None:
    (top,) = build({"d": directory(pax={f"SCHILY.xattr.{name}": "y"}), "f": Entry(pax={f"SCHILY.xattr.{name}": "y"})})
    assert os.listxattr(top / "d") == os.listxattr(top / "f") == []


def test_names_may_hold_any_bytes(build: Build) -> None:
    name = os.fsdecode(b"caf\xe9 \n\x1b[1m")
    (top,) = build({name: "x", "l": symlink(name)})
    assert sorted(os.listdir(os.fsencode(top))) == [os.fsencode(name), b"l"]
    assert os.readlink(os.fsencode(top / "l")) == os.fsencode(name)


def test_parents_that_the_tar_does_not_list_are_made(build: Build) -> None:
    (top,) = build({"a/b/c": "x"})
    made = ("directory", 0o755, "")
    assert snapshot(top) == {"a": made, "a/b": made, "a/b/c": ("file", 0o644, "x")}


def test_unlisted_parents_look_as_in_the_layers_below(build: Build) -> None:
    _, top = build({"a": directory(0o700, mtime=1_000_000_000)}, {"a/x": "1"})
    assert (top / "a").stat().st_mode & 0o7777 == 0o700
    assert (top / "a").stat().st_mtime == 1_000_000_000


def test_root_member_sets_the_metadata_of_the_layers_root(build: Build) -> None:
    bottom, top = build({"./": directory(0o711), "./x": "1"}, {"y": "2"})
    assert bottom.stat().st_mode & 0o7777 == 0o711
    assert top.stat().st_mode & 0o7777 == 0o711


def test_read_only_directories_are_no_obstacle(build: Build) -> None:
    (top,) = build({"d": directory(0o555), "d/x": "1", "d/e": directory(0o500), "d/e/y": "2"})
    assert (top / "d/e").stat().st_mode & 0o7777 == 0o500


def test_later_member_replaces_an_earlier_one(build: Build) -> None:
    (top,) = build([("a", "1"), ("a", "2"), ("b", "x"), ("b", symlink("a")), ("c", symlink("nowhere")), ("c", "file")])
    assert snapshot(top) == {"a": ("file", 0o644, "2"), "b": ("symlink", 0o777, "a"), "c": ("file", 0o644, "file")}


def test_file_replaces_a_directory_and_all_below_it(build: Build) -> None:
    (top,) = build([("d", directory()), ("d/e", directory(0)), ("d/e/x", "1"), ("d", "file")])
    assert snapshot(top) == {"d": ("file", 0o644, "file")}


def test_directory_replaces_a_file_and_a_symbolic_link(build: Build) -> None:
    (top,) = build([("a", "1"), ("b", symlink("/etc")), ("a", directory()), ("b", directory()), ("b/x", "2")])
    assert snapshot(top) == {"a": ("directory", 0o755, ""), "b": ("directory", 0o755, ""), "b/x": ("file", 0o644, "2")}


def test_directory_over_a_directory_keeps_its_contents(build: Build) -> None:
    (top,) = build([("d", directory(0o700)), ("d/x", "1"), ("d", directory(0o755))])
    assert snapshot(top) == {"d": ("directory", 0o755, ""), "d/x": ("file", 0o644, "1")}


def test_symbolic_links_are_kept_wherever_they_lead(build: Build) -> None:
    (top,) = build({"l": symlink("/etc/passwd"), "m": symlink("../../x"), "n": symlink("nowhere")})
    assert [text for _, _, text in snapshot(top).values()] == ["/etc/passwd", "../../x", "nowhere"]


def test_hard_links_are_one_file(build: Build) -> None:
    (top,) = build({"a": "1", "d/b": hard_link("a"), "s": symlink("a"), "t": hard_link("./s")})
    assert (top / "a").stat().st_ino == (top / "d/b").stat().st_ino
    assert (top / "s").lstat().st_ino == (top / "t").lstat().st_ino


def test_hard_link_to_a_lower_layer_brings_the_file_along(build: Build) -> None:
    _, top = build({"d": directory(0o700), "d/a": Entry(data=b"1", mode=0o4711)}, {"b": hard_link("d/a")})
    assert snapshot(top) == {"b": ("file", 0o4711, "1"), "d": ("directory", 0o700, ""), "d/a": ("file", 0o4711, "1")}
    assert (top / "b").stat().st_ino == (top / "d/a").stat().st_ino


def test_hard_link_to_a_lower_file_that_this_layer_deletes_is_a_rename(build: Build) -> None:
    _, top = build({"a": "1"}, [("b", hard_link("a")), ("a", WHITEOUT)])
    assert is_whiteout(top / "a")
    assert (top / "b").read_text() == "1"


@pytest.mark.parametrize("mark", ["d", "d/a"])
def test_a_file_of_its_own_in_a_borrowed_ones_place_stays(build: Build, mark: str) -> None:
    """The mark speaks of the layers below only, wherever it stands."""
    members: list[tuple[str, object]] = [("b", hard_link("d/a")), ("d/a", "new")]
    members.append(("d", OPAQUE) if mark == "d" else ("d/a", WHITEOUT))
    _, top = build({"d/a": "1"}, members)
    assert ((top / "b").read_text(), (top / "d/a").read_text()) == ("1", "new")


def test_hard_link_to_a_lower_file_of_an_emptied_directory_leaves_the_directory_empty(build: Build) -> None:
    _, top = build({"d/a": "1"}, [("b", hard_link("d/a")), ("d", OPAQUE)])
    assert is_opaque(top / "d")
    assert list(snapshot(top)) == ["b", "d"]


def test_borrowed_file_keeps_its_holes(build: Build) -> None:
    hole = b"\0" * (1 << 20)
    bottom, top = build({"a": hole + b"end"}, {"b": hard_link("a")})
    assert (top / "b").read_bytes() == (bottom / "a").read_bytes()


def test_fifo_is_kept(build: Build) -> None:
    (top,) = build({"p": Entry(tarfile.FIFOTYPE, mode=0o622)})
    assert snapshot(top) == {"p": ("fifo", 0o622, "")}


@needs_root
def test_devices_are_kept(build: Build) -> None:
    null = Entry(tarfile.CHRTYPE, device=(1, 3), mode=0o666)
    (top,) = build({"null": null, "sda": Entry(tarfile.BLKTYPE, device=(8, 0))})
    assert snapshot(top) == {"null": ("character device", 0o666, "1:3"), "sda": ("block device", 0o644, "8:0")}


@pytest.mark.parametrize("version", ["0.0", "0.1", "1.0", "gnu"])
def test_sparse_files_of_every_gnu_format_are_kept(build: Build, tmp_path: Path, version: str) -> None:
    sparse = tmp_path / "s"
    with sparse.open("wb") as file:
        for place in (0, 1 << 20, 3 << 20):
            file.seek(place)
            file.write(b"data at %d" % place)
        file.truncate(5 << 20)
    how = ["--format=gnu"] if version == "gnu" else ["--format=posix", f"--sparse-version={version}"]
    (tmp_path / "after").write_text("next")
    made = subprocess.run(["tar", "-C", tmp_path, "-cS", *how, "s", "after"], stdout=subprocess.PIPE, check=True)
    (top,) = build(made.stdout)
    assert (top / "s").read_bytes() == sparse.read_bytes()
    assert (top / "s").stat().st_blocks * 512 < 1 << 20
    assert (top / "after").read_text() == "next"


# --- whiteouts and opaque directories --------------------------------------------------------------


def test_whiteout_becomes_a_character_device_0_0(build: Build) -> None:
    _, top = build({"d/x": "1", "d/y": "2"}, {"d/x": WHITEOUT})
    assert is_whiteout(top / "d/x")
    assert os.listdir(top / "d") == ["x"]


@pytest.mark.parametrize("members", [[("x", WHITEOUT), ("x", "new")], [("x", "new"), ("x", WHITEOUT)]])
def test_whiteout_beside_a_real_file_leaves_the_file(build: Build, members: Members) -> None:
    _, top = build({"x": "old"}, members)
    assert snapshot(top) == {"x": ("file", 0o644, "new")}


@pytest.mark.parametrize("first", [True, False])
def test_whiteout_beside_a_real_directory_makes_it_opaque(build: Build, first: bool) -> None:
    real = [("x", directory()), ("x/new", "2")]
    _, top = build({"x/old": "1"}, [("x", WHITEOUT), *real] if first else [*real, ("x", WHITEOUT)])
    assert is_opaque(top / "x")
    assert os.listdir(top / "x") == ["new"]


@pytest.mark.parametrize("first", [True, False])
def test_opaque_mark_applies_wherever_it_stands(build: Build, first: bool) -> None:
    _, top = build({"d/old": "1"}, [("d", OPAQUE), ("d/new", "2")] if first else [("d/new", "2"), ("d", OPAQUE)])
    assert is_opaque(top / "d")
    assert os.listdir(top / "d") == ["new"]


def test_opaque_mark_alone_makes_its_directory(build: Build) -> None:
    _, top = build({"d": directory(0o700), "d/old": "1"}, {"d": OPAQUE})
    assert is_opaque(top / "d")
    assert (top / "d").stat().st_mode & 0o7777 == 0o700


@pytest.mark.parametrize(
    "members",
    [
        [("d", OPAQUE), ("d/x", WHITEOUT)],
        [("d/e/x", WHITEOUT), ("d/e/y", "1"), ("d", OPAQUE)],
        [("d", WHITEOUT), ("d", directory()), ("d/x", WHITEOUT)],
    ],
)
def test_no_whiteout_is_left_inside_an_opaque_directory(build: Build, members: Members) -> None:
    _, top = build({"d/x": "1", "d/e/x": "2"}, members)
    assert is_opaque(top / "d")
    assert not [path for path in top.rglob("*") if is_whiteout(path)]


def test_whiteout_of_what_no_layer_has_is_left_out(build: Build) -> None:
    bottom, top = build({"x": WHITEOUT, "d/y": WHITEOUT}, {"new/z": WHITEOUT, "new/f": "1"})
    assert snapshot(bottom) == {}
    assert snapshot(top) == {"new": ("directory", 0o755, ""), "new/f": ("file", 0o644, "1")}


def test_whiteout_of_what_a_middle_layer_hides_already_is_left_out(build: Build) -> None:
    _, middle, top = build({"d/x": "1"}, {"d": OPAQUE}, {"d/x": WHITEOUT})
    assert is_opaque(middle / "d")
    assert snapshot(top) == {}


def test_whiteout_of_a_directory_hides_the_marks_below_it(build: Build) -> None:
    _, top = build({"d/x": "1"}, [("d/x", WHITEOUT), ("d", WHITEOUT)])
    assert is_whiteout(top / "d")


def test_device_0_0_in_a_tar_is_a_whiteout(build: Build) -> None:
    _, top = build({"x": "1"}, {"x": Entry(tarfile.CHRTYPE), "y": Entry(tarfile.CHRTYPE)})
    assert is_whiteout(top / "x")
    assert os.listdir(top) == ["x"]


def test_books_of_aufs_are_skipped(build: Build) -> None:
    (top,) = build({".wh..wh.plnk": directory(), ".wh..wh.plnk/1.2": "x", ".wh..wh.aufs": "y", "f": "z"})
    assert os.listdir(top) == ["f"]


@needs_root
def test_opaque_root_hides_every_layer_below(build: Build, tmp_path: Path) -> None:
    layers = build({"a": "1", "d/x": "2"}, {"b": "3"}, [("d/y", "4"), ("", OPAQUE), ("c", "5")])
    with kernel_mount(lowerdir(layers), tmp_path / "view") as view:
        assert list(snapshot(view)) == ["c", "d", "d/y"]


@needs_root
def test_the_kernel_lists_no_name_that_it_cannot_look_up(build: Build, tmp_path: Path) -> None:
    layers = build(
        {"bottom/x": WHITEOUT, "bottom/f": "1", "d/e/old": "2", "gone/x": "3", "file": "4"},
        {"new/x": WHITEOUT, "new/f": "5", "d": WHITEOUT, "d/e/old": WHITEOUT, "d/e/new": "6", "gone": WHITEOUT},
        {"file": directory(), "file/x": WHITEOUT, "gone/y": "7"},
    )
    with kernel_mount(lowerdir(layers), tmp_path / "view") as view:
        names = list(snapshot(view))  # looks every name up
    assert names == ["bottom", "bottom/f", "d", "d/e", "d/e/new", "file", "gone", "gone/y", "new", "new/f"]


def test_tar_without_end_mark_is_read_if_its_digest_holds(build: Build) -> None:
    whole = layer({"a": "1"})
    (top,) = build(whole.rstrip(b"\0").ljust(1024 + 512 * (len(whole) > 10240), b"\0"))
    assert (top / "a").read_text() == "1"


def test_deep_paths_need_neither_stack_nor_descriptors(build: Build) -> None:
    name = "/".join(["d"] * 1500)
    (top,) = build([(name, "x"), ("after", "y")])
    assert (top / "after").read_text() == "y"
    fd = os.open(top, os.O_RDONLY)
    for _ in range(1499):
        fd, old = os.open("d", os.O_RDONLY, dir_fd=fd), fd
        os.close(old)
    assert os.listdir(fd) == ["d"]
    os.close(fd)
    subprocess.run(["rm", "-r", "--", top], check=True)


def test_tar_of_an_empty_layer_is_an_empty_directory(build: Build) -> None:
    empty = io.BytesIO()
    tarfile.open(fileobj=empty, mode="w").close()
    assert snapshot(build(empty.getvalue())[0]) == {}
    assert snapshot(build(b"\0" * 1024)[0]) == {}
