"""Which marks does root's mount obey if everybody who owns a file may set them, as with the option userxattr?"""

from __future__ import annotations

import errno
import os
from typing import Any

import pytest

from overlayfs_demo.linux import xattr
from overlayfs_demo.linux.syscalls import RENAME_EXCHANGE
from tests import builders
from tests.builders import Metacopy, directory, hardlink
from tests.contract.conftest import Mount
from tests.contract.marks import differs
from tests.contract.subjects import Subject

OPAQUE, REDIRECT, METACOPY, ORIGIN = (f"user.overlay.{mark}" for mark in ("opaque", "redirect", "metacopy", "origin"))
SECRET = {"private": directory({"sub/s": "SECRET\n"}, mode=0o700)}


def a_redirect(to: bytes) -> builders.Content:
    return {"home": {"mark": directory(xattrs={REDIRECT: to}), "other": "mine"}}


def a_metacopy(of: bytes) -> builders.Content:
    mark = Metacopy(size=7, xattrs={METACOPY: b"", REDIRECT: of})
    return {"home": {"mark": mark, "other": "mine"}}


FORGED = {"redirect": a_redirect(b"/private/sub"), "metacopy": a_metacopy(b"/private/sub/s")}


@pytest.mark.parametrize("layer", ["upper", "middle"])
@pytest.mark.parametrize("forged", FORGED.values(), ids=FORGED.keys())
def test_mark_leads_to_no_other_file(mounted: Mount, forged: builders.Content, layer: str) -> None:
    lowers = [{**SECRET, "home/low": ""}, *([forged] if layer == "middle" else [])]
    view = mounted(*lowers, upper=forged if layer == "upper" else {}, user_xattrs=True)
    assert view.names("home") == [b"low", b"mark", b"other"]
    for name in ("home/mark", "home/mark/s"):
        with pytest.raises(PermissionError):
            view.stat(name)
    assert view.read("home/other") == b"mine"
    assert view.read("private/sub/s") == b"SECRET\n"
    view.write("home/new", b"1")
    assert view.names("home") == [b"low", b"mark", b"new", b"other"]


def test_relative_redirect_leads_nowhere_either(mounted: Mount) -> None:
    view = mounted(
        {"home/private": directory({"s": "SECRET"}, mode=0o700)}, upper=a_redirect(b"private"), user_xattrs=True
    )
    with pytest.raises(PermissionError):
        view.names("home/mark")


def test_mark_on_the_copy_in_the_index_is_not_followed(mounted: Mount) -> None:
    view = mounted({"a": "data", "d/b": hardlink("../a")}, user_xattrs=True)
    view.chmod("a", 0o600)
    view.stop()
    os.setxattr(view.upper("a"), METACOPY, b"")
    view.start()
    for name in ("a", "d/b"):
        with pytest.raises(PermissionError):
            view.read(name)


@pytest.mark.parametrize("upper", [{}, {"d": {}}], ids=["lower", "merged"])
def test_directory_of_a_lower_does_not_move(mounted: Mount, upper: builders.Content) -> None:
    view = mounted({"d/f": "1"}, upper={**upper, "pure": {}}, user_xattrs=True)
    moves = [("d", "new", 0), ("d", "pure", 0)]
    if view.kind != "fusepy-front":  # It passes no flags.
        moves += [("d", "pure", RENAME_EXCHANGE), ("pure", "d", RENAME_EXCHANGE)]
    for old, new, flags in moves:
        with pytest.raises(OSError) as caught:
            view.rename(old, new, flags)
        assert caught.value.errno == errno.EXDEV
    assert sorted(path.name for path in view.upper("").iterdir()) == sorted([*upper, "pure"])
    assert view.read("d/f") == b"1"


def test_directory_of_the_upper_moves(mounted: Mount) -> None:
    view = mounted({"low/f": "1"}, upper={"pure/g": "2"}, user_xattrs=True)
    view.rename("pure", "low/pure")
    view.remount()
    assert view.read("low/pure/g") == b"2"


def change_mode(view: Subject) -> str:
    view.chmod("f", 0o600)
    return "f"


def move(view: Subject) -> str:
    view.rename("f", "d/g")
    return "d/g"


def link(view: Subject) -> str:
    view.link("f", "d/g")
    return "d/g"


@pytest.mark.parametrize("change", [change_mode, move, link])
def test_file_of_a_lower_is_copied_with_its_data(mounted: Mount, change: Any) -> None:
    view = mounted({"f": "data", "d/": None}, user_xattrs=True)
    name = change(view)
    copy = view.upper(name)
    assert copy.read_bytes() == b"data"
    assert {METACOPY, REDIRECT}.isdisjoint(xattr.names(os.fsencode(copy)))
    view.remount()
    assert view.read(name) == b"data"


def test_opaque_directory_hides_what_is_below(mounted: Mount) -> None:
    view = mounted({"d/low": ""}, upper={"d": directory({"mine": ""}, xattrs={OPAQUE: b"y"})}, user_xattrs=True)
    assert view.names("d") == [b"mine"]


def test_copied_up_file_keeps_its_number(mounted: Mount) -> None:
    view = mounted({"f": "1"}, user_xattrs=True)
    before = view.stat("f").ino
    view.chmod("f", 0o600)
    view.remount()
    assert view.stat("f").ino == before


@differs("kernel", "who looked the forged one up first sees it under both names")
def test_forged_origin_makes_no_two_files_one(mounted: Mount) -> None:
    """Or an archiver would store the one as a hard link to the other."""
    view = mounted({"target": "root's"}, user_xattrs=True)
    view.chmod("target", 0o600)
    origin = os.getxattr(view.upper("target"), ORIGIN)
    view.stop()
    view.upper("target").unlink()
    view.upper("forged").write_text("attacker's")
    os.setxattr(view.upper("forged"), ORIGIN, origin)
    os.link(view.upper("forged"), view.upper("forged2"))
    view.start()
    forged = view.stat("forged").ino
    if view.differs:
        assert view.stat("target").ino == forged
        return
    view.link("target", "target2")
    assert view.stat("target").ino == view.stat("target2").ino != forged
    assert (view.read("target"), view.read("forged")) == (b"root's", b"attacker's")
