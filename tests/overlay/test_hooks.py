"""When does a front hear that a verb may take long, or that a node has changed?"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable

import pytest

from overlayfs_demo.overlay.layer import key_of
from overlayfs_demo.overlay.node import Node
from overlayfs_demo.overlay.types import AttrChange
from overlayfs_demo.overlay.upper_attributes import UpperAttributes
from tests.contract.engine_subject import Engine
from tests.overlay.conftest import Make

SMALL, BIG = 5, 1 << 20


class Disk:
    """A disk that takes a given time to write, on a clock of its own."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.seconds = 0.0
        self._now = 0.0
        patch.setattr(os, "fsync", self._sync)
        patch.setattr(time, "monotonic", lambda: self._now)

    def _sync(self, _fd: int) -> None:
        self._now += self.seconds


def waits(view: Engine, names: list[str]) -> list[str]:
    """The files of these whose copy-up gave way to other callers first."""
    gave_way: list[str] = []
    for name in names:
        view.overlay.hooks.before_copy = lambda name=name: gave_way.append(name)  # type: ignore[misc]
        view.chmod(name, 0o600)
    return gave_way


@pytest.fixture
def view(overlaid: Make) -> Engine:
    files = {name: "x" * SMALL for name in ("first", "second", "third")}
    return overlaid({**files, "big": "x" * BIG, "empty": "", "d/": None})


def test_small_copies_give_way_only_where_the_disk_is_slow(view: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch)
    assert waits(view, ["first"]) == ["first"], "nobody knows the disk yet"
    disk.seconds = 0.01
    assert waits(view, ["second"]) == []
    assert waits(view, ["third"]) == ["third"]


def test_large_copy_always_gives_way_and_one_without_data_never(view: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    Disk(monkeypatch)
    assert waits(view, ["first", "empty", "d", "big", "second"]) == ["first", "big"]


CHANGES: dict[str, tuple[Callable[[Engine, Node], object], bool]] = {
    "chmod": (lambda v, node: v.overlay.set_attrs(node, AttrChange(mode=0o600), v.caller), False),
    "truncate": (lambda v, node: v.overlay.set_attrs(node, AttrChange(size=2), v.caller), False),
    "setxattr": (lambda v, node: v.overlay.set_xattr(node, "user.x", b"1", 0, v.caller), True),
    "open": (lambda v, node: v.overlay.files.release(node, v.overlay.open(node, os.O_RDWR, v.caller)), True),  # type: ignore[arg-type]
    "rename": (lambda v, _: v.rename("first", "renamed"), True),
    "link": (lambda v, _: v.link("first", "linked"), True),
}


def test_copy_up_is_told_if_the_change_itself_fails(view: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    node = view.node("first")
    told: list[Node] = []
    view.overlay.hooks.changed = told.append

    def fail(*_: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(UpperAttributes, "chmod", fail)
    with pytest.raises(PermissionError):
        view.overlay.set_attrs(node, AttrChange(mode=0o600), view.caller)
    assert node.in_upper
    assert told == [node]


@pytest.mark.parametrize("change", CHANGES)
def test_copy_up_is_told_unless_the_result_shows_it(view: Engine, change: str) -> None:
    node = view.node("first")
    told: list[Node] = []
    view.overlay.hooks.changed = told.append
    act, is_told = CHANGES[change]
    act(view, node)
    assert node.key == key_of(os.stat(view.upper("renamed" if change == "rename" else "first")))
    assert told == [node] * is_told
