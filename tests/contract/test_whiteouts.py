"""What does the upper look like where names were deleted?"""

from __future__ import annotations

import errno
import os

import pytest

from tests.contract.conftest import Mount
from tests.contract.marks import only
from tests.contract.subjects import Subject

engine_only = only(["engine"], "its system calls are made to fail")


def inodes(view: Subject, *paths: str) -> set[int]:
    assert all(view.is_whiteout(path) for path in paths)
    return {os.lstat(view.upper(path)).st_ino for path in paths}


def test_whiteouts_share_one_inode(mounted: Mount) -> None:
    view = mounted({"a": "1", "d": {"b": "2", "c": "3"}, "e/": None})
    view.unlink("a")
    view.unlink("d/b")
    view.rmdir("e")
    view.append("d/c", b"+")
    view.unlink("d/c")
    assert len(inodes(view, "a", "d/b", "d/c", "e")) == 1


def test_name_over_a_shared_whiteout_is_a_new_object(mounted: Mount) -> None:
    view = mounted({"a": "1", "b": "2", "c/": None, "d": "4"})
    for path in ("a", "b"):
        view.unlink(path)
    view.rmdir("c")
    view.write("a", b"new")
    view.mkdir("c")
    view.rename("d", "b")
    view.remount()
    assert (view.read("a"), view.read("b"), view.names()) == (b"new", b"4", [b"a", b"b", b"c"])
    assert view.is_whiteout("d")
    assert view.stat("b").nlink == 1


def test_nothing_is_left_in_the_work_directory_after_unmount(mounted: Mount) -> None:
    view = mounted({"a": "1", "b": "2"})
    view.unlink("a")
    view.append("b", b"+")
    view.stop()
    left = list((view.layers.work / "work").iterdir())
    view.start()
    assert left == []


@engine_only
@pytest.mark.parametrize("code", [errno.EMLINK, errno.EPERM, errno.ENOENT])
def test_name_is_deleted_where_the_whiteout_takes_no_more_names(
    mounted: Mount, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    view = mounted({"a": "1", "b": "2", "c": "3", "d": "4"})
    view.unlink("a")
    with monkeypatch.context() as patch:

        def fail(*_: object, **__: object) -> None:
            raise OSError(code, os.strerror(code))

        patch.setattr(os, "link", fail)
        view.unlink("b")
    view.unlink("c")
    view.unlink("d")
    assert view.names() == []
    alone = code == errno.EPERM  # Then it is not tried again.
    assert len(inodes(view, "a", "b")) == 2
    assert len(inodes(view, "c", "d")) == (2 if alone else 1)
    assert not inodes(view, "a") & inodes(view, "c")
