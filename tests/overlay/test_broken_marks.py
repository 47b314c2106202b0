"""Is it logged, once, which mark in a layer is broken?"""

from __future__ import annotations

import logging

import pytest

from tests.builders import Metacopy, directory
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
