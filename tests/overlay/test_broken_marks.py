"""Is it logged, once, which mark in a layer is broken?"""

from __future__ import annotations

import logging
import os

import pytest

from tests import builders
from tests.builders import Dir, Metacopy, directory
from tests.overlay.conftest import Make


def test_bad_redirect_is_logged_once_with_layer_path_and_value(
    overlaid: Make, caplog: pytest.LogCaptureFixture
) -> None:
    bad = directory(xattrs={"trusted.overlay.redirect": b"../..\n"})
    view = overlaid({"p/low": ""}, {"p/bad": bad}, upper={"p/own": bad})
    for _ in range(3):
        assert view.names("p") == [b"bad", b"low", b"own"]
        for name in ("p/bad", "p/own"):
            with pytest.raises(OSError):
                view.stat(name)
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(told) == 2
    for line, layer, path in zip(sorted(told), ("layer 2 (layer1)", "upper"), ("'p/bad'", "'p/own'"), strict=True):
        assert line.startswith(f"{layer}: {path} ")
        assert "overlay.redirect" in line and r"'../..\n'" in line


def test_log_has_no_room_for_all_of_very_many(overlaid: Make, caplog: pytest.LogCaptureFixture) -> None:
    bad = directory(xattrs={"trusted.overlay.redirect": b"a/b"})
    view = overlaid({"low": ""}, {f"bad{number}": bad for number in range(200)})
    assert len(view.names()) == 201
    assert 10 < len(caplog.records) <= 100


def test_bad_metacopy_is_logged(overlaid: Make, caplog: pytest.LogCaptureFixture) -> None:
    bad = Metacopy(size=4, xattrs={"trusted.overlay.metacopy": b"x"})
    view = overlaid({"a": "data"}, {"a": bad})
    with pytest.raises(OSError):
        view.stat("a")
    assert "overlay.metacopy" in caplog.text and "layer 2 (layer1): 'a'" in caplog.text


@pytest.mark.parametrize("mark", ["redirect", "metacopy"])
def test_mark_that_is_not_followed_is_logged_once(overlaid: Make, caplog: pytest.LogCaptureFixture, mark: str) -> None:
    forged: Metacopy | Dir = Metacopy(size=4, xattrs={"user.overlay.metacopy": b""})
    if mark == "redirect":
        forged = directory(xattrs={"user.overlay.redirect": b"/private"})
    view = overlaid({"private/s": ""}, upper={"p/forged": forged}, user_xattrs=True)
    for _ in range(3):
        with pytest.raises(PermissionError):
            view.stat("p/forged")
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert line.startswith("upper: 'p/forged' cannot be looked up") and f"user.overlay.{mark}" in line


@pytest.mark.parametrize("mark", ["redirect", "metacopy"])
def test_ordinary_user_s_mount_follows_user_marks(overlaid: Make, monkeypatch: pytest.MonkeyPatch, mark: str) -> None:
    """It reads no more than that user may."""
    there: builders.Content = {"own": directory(xattrs={"user.overlay.redirect": b"/d"})}
    if mark == "metacopy":
        marks = {"user.overlay.metacopy": b"", "user.overlay.redirect": b"/d/s"}
        there = {"own": {"s": Metacopy(size=4, xattrs=marks)}}
    view = overlaid({"d/s": "data"}, upper=there, user_xattrs=True)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert view.read("own/s") == b"data"


@pytest.mark.parametrize("namespace", ["trusted", "user"])
def test_origin_that_its_owner_may_have_forged_names_no_other_file(overlaid: Make, namespace: str) -> None:
    """A handle can be guessed, and the file that it names may be in a directory that is closed to others."""
    view = overlaid({"private/s": "secret"}, user_xattrs=namespace == "user")
    view.chmod("private/s", 0o600)
    origin = os.getxattr(view.upper("private/s"), f"{namespace}.overlay.origin")
    assert view.xattr("private/s", "user.overlayfs_demo.origin") == b"layer 1 (layer0)"
    view.upper("private/forged").touch()
    os.setxattr(view.upper("private/forged"), f"{namespace}.overlay.origin", origin)
    if namespace == "trusted":
        assert view.xattr("private/forged", "user.overlayfs_demo.origin") == b"layer 1 (layer0): /private/s"
    else:
        with pytest.raises(OSError, match="No data available"):
            view.xattr("private/forged", "user.overlayfs_demo.origin")
