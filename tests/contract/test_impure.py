"""Which directories of the upper bear the mark that something in them belongs to a lower?"""

from __future__ import annotations

import os

from overlayfs_demo.linux import xattr
from tests.contract.conftest import Mount
from tests.contract.subjects import Subject


def is_impure(view: Subject, path: str) -> bool:
    return xattr.get(os.fsencode(view.upper(path)), "trusted.overlay.impure") == b"y"


def test_directory_that_shows_nothing_of_a_lower_any_more_is_not_impure(mounted: Mount) -> None:
    view = mounted({"a": "1", "d": {"b": "2"}})
    view.mkdir("pure")
    view.write("pure/own", b"")
    view.rename("a", "pure/a")
    for path in ("pure", ""):
        assert view.names(path)
        assert is_impure(view, path)
    view.unlink("pure/a")
    assert view.names("pure") == [b"own"]
    assert not is_impure(view, "pure")
    view.rename("d", "pure/d")
    assert view.names("pure") == [b"d", b"own"]
    assert is_impure(view, "pure")
