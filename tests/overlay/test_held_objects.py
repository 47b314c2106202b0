"""Does what holds an object keep that very object, whatever is closed, removed and opened meanwhile?"""

from __future__ import annotations

import errno
import logging
import os
import subprocess
from pathlib import Path

import pytest

from overlayfs_demo.overlay.node import DirNode, FileNode
from overlayfs_demo.overlay.types import AttrChange
from overlayfs_demo.overlay.upper import Upper
from tests.builders import WHITEOUT, directory, file
from tests.contract.engine_subject import Engine
from tests.overlay.conftest import Make

CAPABILITY = bytes.fromhex("0000000201000000000000000000000000000000")  # v2, CAP_CHOWN


def regular(view: Engine, path: str) -> FileNode:
    node = view.node(path)
    assert isinstance(node, FileNode)
    return node


def many(path: Path, flags: int = os.O_RDONLY) -> list[int]:
    """So many open files that they take every number that was just let go of."""
    return [os.open(path, flags) for _ in range(40)]


def test_way_to_a_removed_file_outlives_its_handle(overlaid: Make, tmp_path: Path) -> None:
    view = overlaid({"f": "mine"})
    (tmp_path / "secret").write_text("root's")
    node = regular(view, "f")
    handle = view.overlay.open(node, os.O_RDONLY, view.caller)
    view.unlink("f")
    way = node.way()
    view.overlay.files.release(node, handle)
    others = many(tmp_path / "secret")
    fd = way.open(os.O_RDONLY)
    assert os.read(fd, 10) == b"mine"
    for one in (fd, *others):
        os.close(one)


def test_copy_of_a_removed_file_gets_nothing_of_what_is_opened_meanwhile(overlaid: Make, tmp_path: Path) -> None:
    view = overlaid({"f": file("mine", mode=0o755, xattrs={"user.own": b"1"})})
    secret = tmp_path / "program"
    secret.write_text("root's")
    os.setxattr(secret, "security.capability", CAPABILITY)
    node = regular(view, "f")
    handle = view.overlay.open(node, os.O_RDONLY, view.caller)
    view.unlink("f")
    others: list[int] = []

    def close_and_open() -> None:
        """What another thread may do while data is copied, without the tree's lock."""
        if not others:
            view.overlay.files.release(node, handle)
            others.extend(many(secret))

    view.overlay.hooks.before_copy = close_and_open
    view.overlay.set_attrs(node, AttrChange(mode=0o700), view.caller)
    assert others, "nothing was opened meanwhile: nothing is tested"
    assert view.overlay.xattrs(node, view.caller) == ["user.own"]
    assert view.overlay.attrs(node).size == 4
    for one in others:
        os.close(one)


def test_reader_goes_on_while_its_handle_is_closed(overlaid: Make, tmp_path: Path) -> None:
    view = overlaid({"f": "mine"})
    node = regular(view, "f")
    handle = view.overlay.open(node, os.O_RDONLY, view.caller)
    held = handle.opened
    view.overlay.files.release(node, handle)
    others = many(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    assert os.pread(held.fd, 10, 0) == b"mine"
    with pytest.raises(OSError) as failure:
        handle.read_into(memoryview(bytearray(4)), 0)
    assert failure.value.errno == errno.EBADF
    for one in others:
        os.close(one)


def test_tree_that_is_moved_into_a_dying_directory_is_not_removed(
    overlaid: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever has the directory open can still move into it what only root could remove."""
    view = overlaid({"d/x": "1"}, upper={"d": {"x": WHITEOUT}, "project/roots": directory({"canary": "1"}, mode=0o700)})
    dying = os.open(view.upper("d"), os.O_RDONLY | os.O_DIRECTORY)
    real = Upper.sweep

    def sweep(upper: Upper) -> None:
        os.rename(view.upper("project"), "project", dst_dir_fd=dying)
        monkeypatch.setattr(Upper, "sweep", real)
        real(upper)

    monkeypatch.setattr(Upper, "sweep", sweep)
    with caplog.at_level(logging.WARNING):
        view.rmdir("d")
    assert not view.exists("d")
    assert "stays in the work directory" in caplog.text
    assert os.listdir(dying) == ["project"]
    view.remount()
    assert os.stat("project/roots/canary", dir_fd=dying).st_size == 1
    os.close(dying)
    # What stays is in nobody's way.
    view.mkdir("d")
    view.rmdir("d")


def test_very_deep_tree_in_the_work_directory_stops_no_mount(overlaid: Make) -> None:
    view = overlaid({"a": "1"})
    view.stop()
    assert view.layers.work is not None
    fd = os.open(view.layers.work / "work", os.O_RDONLY | os.O_DIRECTORY)
    top = os.dup(fd)
    for _ in range(1500):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    try:
        view.start()
        assert view.read("a") == b"1"
        assert os.listdir(top) == ["d"]
    finally:
        os.close(top)
        # pytest cannot remove so deep a tree either.
        subprocess.run(["rm", "-rf", "--one-file-system", view.layers.work / "work/d"], check=True)


def test_removed_files_that_somebody_changes_are_counted(overlaid: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    view = overlaid({"f": "1", "g": "2"})
    node = regular(view, "f")
    view.unlink("f")
    monkeypatch.setattr("overlayfs_demo.overlay.budget.Budget.has_room", lambda *_: False)
    monkeypatch.setattr("overlayfs_demo.overlay.budget.Budget.check", _refuse)
    with pytest.raises(OSError) as failure:
        view.overlay.set_attrs(node, AttrChange(mode=0o700), view.caller)
    assert failure.value.errno == errno.ENFILE
    assert view.work_is_empty()


def _refuse(_budget: object, _fd: int) -> None:
    raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))


def test_name_made_behind_the_view_leads_to_the_same_node(overlaid: Make) -> None:
    view = overlaid({}, upper={"d": {"a": "1", "b": "2", "c": "3"}})
    first = view.node("d/a")
    os.link(view.upper("d/a"), view.upper("d/more"))
    assert view.node("d/more") is first
    held = view.node("d/b")
    opened = view.open("d/b")
    view.upper("d/b").rename(view.upper("d/moved"))
    assert view.node("d/moved") is held
    opened.close()


@pytest.mark.on_disk  # In memory no number is used again.
def test_inode_number_that_is_used_again_is_another_node(overlaid: Make) -> None:
    view = overlaid({}, upper={"a": "1"})
    before = view.node("a")
    number = view.upper("a").stat().st_ino
    view.upper("a").unlink()
    for attempt in range(50):
        made = view.upper(f"n{attempt}")
        made.write_text("other")
        if made.stat().st_ino == number:
            assert view.node(made.name) is not before
            assert view.read(made.name) == b"other"
            return
    pytest.skip("this filesystem does not use the number again")


def test_directory_node_is_held_while_it_is_removed(overlaid: Make) -> None:
    view = overlaid({"d/x": "1"}, upper={"d": {"x": WHITEOUT}})
    node = view.node("d")
    assert isinstance(node, DirNode)
    view.rmdir("d")
    assert view.overlay.attrs(node).nlink == 0
    assert view.overlay.entries(node) == []
