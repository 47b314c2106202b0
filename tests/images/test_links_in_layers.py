"""Does a name that leads through a symbolic link of its own layer end where it would in a root of its own?"""

from __future__ import annotations

import os
import stat
import tarfile
from pathlib import Path

import pytest

from overlayfs_demo.errors import ImageError
from tests import builders
from tests.images.builders import (
    OPAQUE,
    WHITEOUT,
    Build,
    Content,
    Entry,
    Members,
    directory,
    hard_link,
    is_opaque,
    is_whiteout,
    layer,
    needs_root,
    snapshot,
    symlink,
)
from tests.images.splitting import SplitTar

MADE = ("directory", 0o755, "")
FILE = ("file", 0o644, "data")


# --- where a name leads ----------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["usr/bin", "/usr/bin", "../../../../usr/bin", "./usr/../usr//bin/.", "u/bin"])
@pytest.mark.parametrize("listed", [True, False])
def test_file_goes_to_where_the_link_leads(build: Build, target: str, listed: bool) -> None:
    """A directory that is missing there is made, as umoci does; Docker makes those only that a name itself has."""
    members: list[tuple[str, Content]] = [("u", symlink("usr")), ("bin", symlink(target)), ("bin/sh", "data")]
    (top,) = build([("usr/bin", directory()), *members] if listed else members)
    assert snapshot(top) == {
        "bin": ("symlink", 0o777, target),
        "u": ("symlink", 0o777, "usr"),
        "usr": MADE,
        "usr/bin": MADE,
        "usr/bin/sh": FILE,
    }


def test_links_lead_through_links(build: Build) -> None:
    (top,) = build([("a", symlink("b")), ("b", symlink("d/c")), ("d/c", symlink("../e")), ("a/x/y", "data")])
    assert snapshot(top)["e/x/y"] == FILE


def test_forty_links_are_followed_and_no_more(build: Build) -> None:
    links: list[tuple[str, Content]] = [(f"l{number}", symlink(f"l{number + 1}")) for number in range(1, 41)]
    (top,) = build([*links, ("l1/x", "data")])
    assert snapshot(top)["l41/x"] == FILE
    with pytest.raises(ImageError, match=r"layer member 'l0/x' leads through 'l40', a symbolic link in a loop"):
        build([("l0", symlink("l1")), *links, ("l0/x", "data")])


@pytest.mark.parametrize("links", [{"a": "a"}, {"a": "b", "b": "/a"}, {"a": "d/b", "d/b": "../a/x"}])
def test_links_in_a_circle_are_one_error(build: Build, links: dict[str, str]) -> None:
    members: list[tuple[str, Content]] = [(name, symlink(target)) for name, target in links.items()]
    with pytest.raises(ImageError, match=r"layer member 'a/f' leads through '.*', a symbolic link in a loop"):
        build([*members, ("a/f", "x")])


def test_dot_dot_is_folded_before_links_are_followed(build: Build) -> None:
    (top,) = build([("u/v", directory()), ("a", symlink("u/v")), ("a/../f", "data")])
    assert snapshot(top)["f"] == FILE


def test_link_at_the_end_of_a_name_is_not_followed(build: Build) -> None:
    (top,) = build([("u", "kept"), ("a", symlink("u")), ("a", "data"), ("d", symlink("e")), ("d", directory())])
    assert snapshot(top) == {"a": FILE, "d": MADE, "u": ("file", 0o644, "kept")}


def test_link_to_the_root_leads_to_the_root(build: Build) -> None:
    (top,) = build([("a", symlink("/")), ("a/a/a/f", "data")])
    assert snapshot(top) == {"a": ("symlink", 0o777, "/"), "f": FILE}


def test_link_that_replaced_a_directory_is_followed_and_one_that_gave_way_is_not(build: Build) -> None:
    (top,) = build(
        [
            ("u", directory()),
            ("a", directory()),
            ("a/old", "1"),
            ("a", symlink("u")),
            ("a/one", "data"),
            ("a", directory()),
            ("a/two", "data"),
        ]
    )
    assert snapshot(top) == {"a": MADE, "a/two": FILE, "u": MADE, "u/one": FILE}


def test_link_of_a_layer_below_is_not_followed(build: Build) -> None:
    """Docker's overlay2 unpacks each layer into a directory of its own, where that link is not."""
    _, top = build([("usr/bin", directory()), ("bin", symlink("usr/bin"))], {"bin/sh": "data"})
    assert snapshot(top) == {"bin": MADE, "bin/sh": FILE}


# --- each kind of member ---------------------------------------------------------------------------


def test_directories_and_links_go_where_the_link_leads(build: Build) -> None:
    (top,) = build(
        [
            ("u", directory()),
            ("a", symlink("u")),
            ("a/d", directory(0o700)),
            ("a/d/f", "data"),
            ("a/s", symlink("/x")),
            ("a/h", hard_link("a/d/f")),
            ("a/p", Entry(tarfile.FIFOTYPE, mode=0o600)),
        ]
    )
    assert snapshot(top) == {
        "a": ("symlink", 0o777, "u"),
        "u": MADE,
        "u/d": ("directory", 0o700, ""),
        "u/d/f": FILE,
        "u/h": FILE,
        "u/p": ("fifo", 0o600, ""),
        "u/s": ("symlink", 0o777, "/x"),
    }
    assert (top / "u/h").samefile(top / "u/d/f")


def test_metadata_of_a_directory_is_set_last_at_its_real_place(build: Build) -> None:
    (top,) = build([("u", directory()), ("a", symlink("u")), ("a/d", directory(0o500, mtime=7)), ("u/d/f", "data")])
    status = (top / "u/d").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_mtime) == (0o500, 7)


def test_missing_directory_behind_a_link_looks_as_in_the_layers_below(build: Build) -> None:
    _, top = build({"u": directory(0o750)}, [("a", symlink("u")), ("a/f", "data")])
    assert snapshot(top)["u"] == ("directory", 0o750, "")


def test_hard_links_target_is_found_through_links(build: Build) -> None:
    _, top = build(
        {"below/x": "data"},
        [
            ("u/x", "data"),
            ("a", symlink("/u")),
            ("one", hard_link("a/x")),
            ("b", symlink("below")),
            ("two", hard_link("b/x")),
        ],
    )
    assert (top / "one").samefile(top / "u/x")
    assert (top / "two").samefile(top / "below/x")


def test_hard_link_to_a_symbolic_link_is_that_link(build: Build) -> None:
    (top,) = build([("u", "1"), ("a", symlink("u")), ("h", hard_link("a"))])
    assert (top / "h").lstat().st_ino == (top / "a").lstat().st_ino


@needs_root
def test_device_goes_where_the_link_leads(build: Build) -> None:
    (top,) = build([("u", directory()), ("a", symlink("u")), ("a/n", Entry(tarfile.CHRTYPE, device=(240, 3)))])
    assert snapshot(top)["u/n"] == ("character device", 0o644, "240:3")


# --- whiteouts and opaque marks --------------------------------------------------------------------


def test_whiteout_behind_a_link_hides_what_the_link_leads_to(build: Build) -> None:
    """So do Docker, with any driver, podman and umoci."""
    _, top = build({"u/x": "1", "a/x": "2"}, [("a", symlink("u")), ("a/x", WHITEOUT)])
    assert is_whiteout(top / "u/x")


def test_whiteout_before_the_link_is_about_the_name_below_which_the_link_hides(build: Build) -> None:
    _, top = build({"u/x": "1", "a/x": "2"}, [("a/x", WHITEOUT), ("a", symlink("u"))])
    assert snapshot(top) == {"a": ("symlink", 0o777, "u")}


@pytest.mark.parametrize(
    "members",
    [
        [("u/x", "data"), ("a", symlink("u")), ("a/x", WHITEOUT)],
        [("a", symlink("u")), ("a/x", WHITEOUT), ("a/x", "data")],
    ],
    ids=["before", "after"],
)
def test_whiteout_behind_a_link_leaves_what_this_layer_has(build: Build, members: Members) -> None:
    (top,) = build(members)
    assert snapshot(top) == {"a": ("symlink", 0o777, "u"), "u": MADE, "u/x": FILE}


@pytest.mark.parametrize("target", ["/tmp", "nowhere", "a", "f", "f/x"])
def test_whiteout_behind_a_link_to_nothing_hides_nothing(build: Build, target: str) -> None:
    _, top = build({"usr": "1"}, [("f", "data"), ("a", symlink(target)), ("a/usr", WHITEOUT)])
    assert snapshot(top) == {"a": ("symlink", 0o777, target), "f": FILE}


def test_opaque_mark_behind_a_link_empties_what_the_link_leads_to(build: Build) -> None:
    _, top = build({"u/x": "1"}, [("u", directory()), ("a", symlink("u")), ("a", OPAQUE), ("u/y", "data")])
    assert is_opaque(top / "u")


@pytest.mark.parametrize("target", ["a", "f"])
def test_opaque_mark_behind_a_link_to_no_directory_is_nothing(build: Build, target: str) -> None:
    (top,) = build([("f", "data"), ("a", symlink(target)), ("a", OPAQUE)])
    assert snapshot(top) == {"a": ("symlink", 0o777, target), "f": FILE}


def test_whiteout_in_a_file_that_gives_way_to_a_directory_counts(build: Build) -> None:
    _, top = build({"d/x": "1"}, [("d", "file"), ("d/x", WHITEOUT), ("d", directory())])
    assert is_whiteout(top / "d/x")


# --- the hard links of AUFS ------------------------------------------------------------------------


@pytest.mark.parametrize("target", [".wh..wh.plnk/1.2", "/.wh..wh.plnk/1.2", "./.wh..wh.plnk/../.wh..wh.plnk/1.2"])
def test_hard_links_to_the_books_of_aufs_are_one_file(split: SplitTar, target: str) -> None:
    members: list[tuple[str, Content]] = [
        (".wh..wh.plnk", directory(0o700)),
        (".wh..wh.plnk/1.2", Entry(data=b"data", mode=0o640)),
        (".wh..wh.plnk/3.4", "nobody's"),
        ("f", hard_link(target)),
        ("d/g", hard_link(target)),
    ]
    done = split(members)
    assert snapshot(done.top) == {"d": MADE, "d/g": ("file", 0o640, "data"), "f": ("file", 0o640, "data")}
    assert (done.top / "f").samefile(done.top / "d/g")
    assert (done.top / "f").stat().st_nlink == 2
    assert done.assembled() == layer(members)


def test_hard_link_to_a_missing_book_of_aufs_is_named(build: Build) -> None:
    with pytest.raises(ImageError, match=r"layer member 'f' is a hard link to '\.wh\.\.wh\.plnk/1\.2', which neither"):
        build({"f": hard_link(".wh..wh.plnk/1.2")})


@pytest.mark.parametrize(
    "members",
    [
        [(".wh..wh.plnk", symlink("d")), (".wh..wh.plnk/x", "1")],
        [("a", symlink(".wh..wh.plnk")), ("a/x", "1"), ("a/d", directory()), ("a/d/y", "2")],
        [(".wh..wh.plnk/.wh..wh..opq", ""), (".wh..wh.plnk/.wh.x", "")],
        [(".wh..wh.aufs", "1"), (".wh..wh.orph/x", "1"), ("d/.wh..wh.plnk/x", "1")],
    ],
    ids=["link", "behind a link", "marks", "others"],
)
def test_no_book_of_aufs_stays_in_the_layer(build: Build, members: Members) -> None:
    _, top = build({"d/x": "1"}, members)
    assert [name for name in snapshot(top) if ".wh." in name or name.startswith("d")] == []


# --- the recipe ------------------------------------------------------------------------------------

KEPT: dict[str, list[tuple[str, Content]]] = {
    "file": [("a", symlink("/u/v")), ("a/f", "1" * 5000), ("a/f", "2" * 600), ("u/v/f", "3" * 700)],
    "replaced directory": [("u/d/f", "1" * 5000), ("a", symlink("u")), ("a/d", "2" * 600), ("a", "3" * 700)],
    "closed directory": [("a", symlink("u")), ("a/d", directory(0)), ("a/d/f", "1" * 5000)],
    "marks": [("a", symlink("u")), ("a", OPAQUE), ("a/x", WHITEOUT), ("a/y", "1" * 5000)],
    "hard link": [("a", symlink("u")), ("a/f", "1" * 5000), ("h", hard_link("a/f")), ("a/f", "2" * 600)],
}


@pytest.mark.parametrize("members", KEPT.values(), ids=KEPT.keys())
def test_the_tar_is_put_together_again(split: SplitTar, members: list[tuple[str, Content]]) -> None:
    split({"u/x": "below", "u/v/x": "below"})
    assert split(members).assembled() == layer(members)


# --- attacks ---------------------------------------------------------------------------------------

ATTACKS: dict[str, list[tuple[str, Content]]] = {
    "file": [("l/evil", "x"), ("l/canary", "x")],
    "directory": [("l/evil", directory(0o777)), ("l", directory(0o777))],
    "directory over the canary": [("l/canary", directory(0o777)), ("l/canary/evil", "x")],
    "symbolic link": [("l/canary", symlink("evil")), ("l/canary/evil", "x")],
    "fifo": [("l/canary", Entry(tarfile.FIFOTYPE))],
    "device": [("l/canary", Entry(tarfile.CHRTYPE, device=(240, 3)))],
    "device 0:0": [("l/canary", Entry(tarfile.CHRTYPE))],
    "hard link into it": [("x", "1"), ("l/canary", hard_link("x"))],
    "whiteout": [("l/canary", WHITEOUT)],
    "opaque mark": [("l", OPAQUE)],
    "link to a link": [("m", symlink("l")), ("n", symlink("m/../l/.")), ("n/canary", "x")],
    "link over a directory": [("d/canary", "1"), ("d", symlink("l")), ("d/canary", "x")],
    "directory over a link": [("l/canary", "x"), ("l", directory()), ("l/canary", "y")],
    "climbing name": [("l/../../../../../../../../../../evil", "x"), ("../" * 30 + "l/canary", "x")],
    "books of AUFS": [
        (".wh..wh.plnk", symlink("l")),
        (".wh..wh.plnk/x", "1"),
        ("l/canary", hard_link(".wh..wh.plnk/x")),
    ],
}


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("climbing", [True, False])
def test_nothing_outside_the_layer_is_touched(build: Build, tmp_path: Path, attack: str, climbing: bool) -> None:
    if "device" in attack and os.geteuid() != 0:
        pytest.skip("needs root: devices")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "canary").write_text("sings")
    before = builders.tree(outside)
    way = "../" * 40 + str(outside).lstrip("/") if climbing else str(outside)
    layers = build({f"{outside}/canary": "below"}, [("l", symlink(way)), *ATTACKS[attack]])
    assert builders.tree(outside) == before
    assert sorted(os.listdir(tmp_path)) == ["image.tar", "out", "outside"]
    assert sorted(os.listdir(tmp_path / "out")) == sorted([".layers.json", *(one.name for one in layers)])


@pytest.mark.parametrize("target", ["l/canary", "../../outside/canary", "m/canary"])
def test_hard_link_cannot_bring_a_file_from_outside(build: Build, tmp_path: Path, target: str) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/canary").write_text("sings")
    links = [("l", symlink(f"{tmp_path}/outside")), ("m", symlink("../" * 40 + f"{tmp_path}/outside".lstrip("/")))]
    with pytest.raises(ImageError, match=r"layer member 'evil' is a hard link to '.*canary', which neither this layer"):
        build([*links, ("evil", hard_link(target))])
    assert (tmp_path / "outside/canary").stat().st_nlink == 1


def test_path_that_links_make_too_long_is_refused(build: Build) -> None:
    deep = "/".join(["n" * 200] * 19)
    with pytest.raises(ImageError, match=r"layer member 'a/.*' cannot be unpacked: File name too long"):
        build([("a", symlink(deep)), ("a/" + "/".join(["m" * 200] * 2), "x")])
