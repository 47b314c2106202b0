"""Where does the redirect of a renamed object lead, and what if it is broken?"""

from __future__ import annotations

import errno
from dataclasses import replace

import pytest

from tests import builders
from tests.builders import OPAQUE, Dir, directory, metacopy
from tests.contract.conftest import Mount
from tests.contract.subjects import Subject


def renamed(redirect: bytes, content: builders.Content | None = None) -> Dir:
    return directory(content, xattrs={"trusted.overlay.redirect": redirect})


def stack_up(view: Subject) -> None:
    """Mount again with an empty upper on what was the upper."""
    view.stop()
    assert view.layers.upper is not None
    above = view.layers.upper.parent / "above"
    builders.directories(above, "upper", "work")
    lowers = [*view.layers.lowers, view.layers.upper]
    view.layers = replace(view.layers, lowers=lowers, upper=above / "upper", work=above / "work")
    view.start()


def test_directory_moved_twice_keeps_what_the_lowest_layer_has(mounted: Mount) -> None:
    view = mounted({"origin/foo": "1"})
    view.mkdir("pure")
    view.rename("origin", "pure/redirect")
    stack_up(view)
    view.rename("pure/redirect", "redirect")
    assert view.names("redirect") == [b"foo"]
    view.remount()
    assert view.names("redirect") == [b"foo"]
    assert view.read("redirect/foo") == b"1"


def test_absolute_redirect_below_an_opaque_directory_leads_on(mounted: Mount) -> None:
    view = mounted({"origin/f": "1"}, {"pure": OPAQUE({"d": renamed(b"/origin")})}, {"moved": renamed(b"/pure/d")})
    assert view.names("moved") == [b"f"]


def test_relative_redirect_below_an_opaque_directory_does_not(mounted: Mount) -> None:
    view = mounted({"pure/old/f": "1"}, {"pure": OPAQUE({"d": renamed(b"old")})}, {"moved": renamed(b"/pure/d")})
    assert view.names("moved") == []


def test_opaque_directory_on_the_way_is_not_redirected(mounted: Mount) -> None:
    marks = {"trusted.overlay.opaque": b"y", "trusted.overlay.redirect": b"/elsewhere"}
    view = mounted(
        {"elsewhere/d/f": "1", "way/d/g": "2"},
        {"way": directory({"d/own": ""}, xattrs=marks)},
        {"moved": renamed(b"/way/d")},
    )
    assert view.names("moved") == [b"own"]


def test_metacopy_below_an_opaque_directory_has_its_data_further_down(mounted: Mount) -> None:
    view = mounted(
        {"pure/f": "data"}, {"pure": OPAQUE({"f": metacopy(4)})}, {"moved": metacopy(4, "/pure/f")}, metacopy=True
    )
    assert view.read("moved") == b"data"


def test_directory_is_not_merged_with_one_of_a_data_layer(mounted: Mount) -> None:
    view = mounted({"x": ""}, {"moved": renamed(b"/hidden")}, data_only={"hidden/secret": "1"}, metacopy=True)
    assert view.names("moved") == []


NOWHERE = {
    "sibling": b"nowhere",
    "path": b"/no/where",
    "very deep": b"/" + b"d/" * 1800 + b"x",
    "long name": b"n" * 300,
    "long name on a path": b"/" + b"n" * 300,
}


@pytest.mark.parametrize("redirect", NOWHERE.values(), ids=NOWHERE.keys())
def test_redirect_to_what_no_layer_has_leads_nowhere(mounted: Mount, redirect: bytes) -> None:
    view = mounted({"p/moved/low": "1"}, upper={"p/moved": renamed(redirect, {"own": ""})})
    assert view.names("p/moved") == [b"own"]


def test_name_that_is_too_long_is_an_error_all_the_same(mounted: Mount) -> None:
    view = mounted({"d/low": ""}, upper={"d": {"own": ""}})
    for attempt in (view.stat, view.mkdir, view.unlink, lambda path: view.truncate(path, 0)):
        with pytest.raises(OSError) as caught:
            attempt("d/" + "n" * 256)
        assert caught.value.errno == errno.ENAMETOOLONG


def test_redirect_ends_at_a_nul(mounted: Mount) -> None:
    view = mounted({"p": {"a/f": "1"}, "q/g": "2"}, upper={"p": {"x": renamed(b"a\0b"), "y": renamed(b"/q\0")}})
    assert (view.names("p/x"), view.names("p/y")) == ([b"f"], [b"g"])


BAD = {
    "upwards": b"..",
    "two upwards": b"../..",
    "itself": b".",
    "upwards on a path": b"/../etc",
    "itself on a path": b"/./d",
    "relative path": b"a/b",
    "nothing": b"",
    "only a NUL": b"\0",
    "root": b"/",
    "trailing slash": b"/d/",
    "double slash": b"/d//f",
}


@pytest.mark.parametrize("layer", ["upper", "middle"])
@pytest.mark.parametrize("redirect", BAD.values(), ids=BAD.keys())
def test_bad_redirect_fails_under_its_own_name_alone(mounted: Mount, redirect: bytes, layer: str) -> None:
    broken = {"p": {"bad": renamed(redirect, {"x": "1"}), "good": "2"}}
    lowers = [{"p": {"low": "3", "d/f": ""}, "d/f": ""}, *([broken] if layer == "middle" else [])]
    view = mounted(*lowers, upper=broken if layer == "upper" else {})
    assert view.names("p") == [b"bad", b"d", b"good", b"low"]
    for name in ("p/bad", "p/bad/x", "p/bad/.."):
        with pytest.raises(OSError) as caught:
            view.stat(name)
        assert caught.value.errno in (errno.EINVAL, errno.EACCES)
    assert (view.read("p/good"), view.read("p/low")) == (b"2", b"3")
    view.unlink("p/good")
    view.write("p/new", b"4")
    assert view.names("p") == [b"bad", b"d", b"low", b"new"]


def test_bad_redirect_in_the_root_of_a_layer_leads_nowhere(mounted: Mount) -> None:
    view = mounted({"low": ""}, {"bad": renamed(b"..")}, {"top": ""})
    assert view.names() == [b"bad", b"low", b"top"]
    with pytest.raises(PermissionError):
        view.names("bad")


def test_bad_redirect_below_a_file_of_the_upper_does_not_matter(mounted: Mount) -> None:
    view = mounted({"bad/f": "1"}, {"bad": renamed(b"../.."), "other": ""}, upper={"bad": "mine"})
    assert view.read("bad") == b"mine"
    view.unlink("bad")
    assert view.is_whiteout("bad")
