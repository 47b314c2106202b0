"""What does the view show when a change fails half-way?

Each change is tried again and again, and each time another system call of a kind fails: one that writes (the disk is
full, broken, or the user's quota is used up), one that opens (there are no descriptors left), one that reads (the disk
is broken), any of them if there is no memory. Then the caller sees that error, the view must show the old state or the
new one, here and after a remount, nothing may be left over or stay open, and what was not done can be done after all.
"""

from __future__ import annotations

import errno
import gc
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from overlayfs_demo.overlay.node import DirNode
from overlayfs_demo.overlay.types import AttrChange
from tests.contract.engine_subject import Engine
from tests.overlay.changes import ABOUT_DATA, CASES, MOUNTS, MOVE_THE_TIME, Act
from tests.overlay.conftest import Make
from tests.overlay.ground import OPTIONS, Ground, left_in_work
from tests.overlay.injection import KINDS, Injection, Kind
from tests.overlay.shown import difference, seen_by_engine, settled

# What may fail while something is taken away that was replaced: the next mount does it.
CLEANING = ("unlink", "rmdir", "scandir", "open", "stat", "fstat", "lstat")

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: owners, devices, trusted xattrs")


def options(change: str, kind: str) -> list[tuple[bool, bool]]:
    """The options to try a change with. What opens and reads depends on them where data may stay below."""
    if kind == "writing":
        return OPTIONS
    if "metacopy" in change:
        return OPTIONS[1:2]
    return OPTIONS[:2] if change in ABOUT_DATA else OPTIONS[:1]


@pytest.fixture
def descriptors_counted() -> Iterator[None]:
    """What earlier tests left is not looked at for garbage, which takes long, and the log keeps nothing alive."""
    gc.collect()
    gc.freeze()
    logging.disable()
    yield
    logging.disable(logging.NOTSET)
    gc.unfreeze()


@contextmanager
def none_stays_open() -> Iterator[None]:
    """There are as many descriptors afterwards, not counting those that only garbage has open."""
    before = _open_descriptors()
    yield
    assert _open_descriptors() == before


def _open_descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def fails(act: Act, view: Engine, injection: Injection, number: int, kind: Kind) -> bool:
    """Whether the change fails when call `number` fails. If so, with that call's error."""
    code = kind.codes[number % len(kind.codes)]
    try:
        with injection.failing(number, code):
            act(view)
    except OSError as error:
        assert error.errno == code
        return True
    finally:
        assert injection.happened
    return False


class _Trial:
    """One change with the calls of one kind, of which another one fails each time."""

    def __init__(self, ground: Ground, injection: Injection, change: str, kind: str) -> None:
        self._ground = ground
        self._injection = injection
        self._prepare, self._act = (CASES | MOUNTS)[change]
        self._kind = KINDS[kind]
        self._times = change not in MOVE_THE_TIME

    def shown(self, view: Engine) -> dict[bytes, tuple[object, ...]]:
        return settled(seen_by_engine(view), links=self._ground.index, times=self._times)

    def succeed(self) -> list[str]:
        """Make the change, and return the calls."""
        with self._ground.fresh() as view:
            self._prepare(view)
            self._old = self.shown(view)
            with self._injection.counting() as trace:
                self._act(view)
            self._new = self.shown(view)
        return trace

    def fail(self, number: int) -> None:
        """Make the change while call `number` fails, and see what is left of it."""
        with self._ground.fresh() as view:
            self._prepare(view)
            failed = fails(self._act, view, self._injection, number, self._kind)
            if failed and not self._injection.wrote:
                self._act(view)  # Nothing can have been half done.
                return
            self._see_what_is_left(view, failed)
            assert self.shown(view) == self._new, difference(self._new, self.shown(view))
            assert not left_in_work(view)

    def _see_what_is_left(self, view: Engine, failed: bool) -> None:
        shown = self.shown(view)
        assert shown == self._new or (failed and shown == self._old), difference(self._old, shown)
        assert view.work_is_empty() or self._injection.happened in CLEANING
        if shown != self._new:
            self._act(view)
        view.remount()

    def fail_to_mount(self, number: int) -> None:
        """Mount while call `number` fails, and again if that fails."""
        with self._ground.fresh() as view:
            self._prepare(view)
            if fails(self._act, view, self._injection, number, self._kind):
                view.start()
            assert self.shown(view) == self._old
            assert not left_in_work(view)


@needs_root
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", CASES)
def test_failed_change_leaves_old_or_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, descriptors_counted: None, change: str, kind: str
) -> None:
    injection = Injection(monkeypatch, KINDS[kind])
    known = []
    for index, metacopy in options(change, kind):
        ground = Ground(tmp_path / f"{index}-{metacopy}", index=index, metacopy=metacopy)
        trial = _Trial(ground, injection, change, kind)
        trace = trial.succeed()
        if trace in known:
            continue  # With these options it takes the same steps.
        known.append(trace)
        with none_stays_open():
            for number, call in enumerate(trace):
                print(f"index={index}, metacopy={metacopy}, call {number + 1}, {call} of {trace}")
                trial.fail(number)


@needs_root
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", MOUNTS)
def test_failed_mount_leaves_nothing_open_and_can_be_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, descriptors_counted: None, change: str, kind: str
) -> None:
    injection = Injection(monkeypatch, KINDS[kind])
    trial = _Trial(Ground(tmp_path, index=True, metacopy=False), injection, change, kind)
    trace = trial.succeed()
    with none_stays_open():
        for number, call in enumerate(trace):
            print(f"call {number + 1}, {call} of {trace}")
            trial.fail_to_mount(number)


def test_filesystem_without_unnamed_files_says_so(overlaid: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    view = overlaid({})
    real = os.open

    def refuse(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return real(path, flags, *arguments, **options)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(OSError) as failure:
        view.open("", os.O_TMPFILE | os.O_RDWR)
    assert failure.value.errno == errno.EOPNOTSUPP


def _held_create(view: Engine, name: bytes) -> Callable[[], object]:
    parent = view.node("d/e")
    assert isinstance(parent, DirNode)
    return lambda: view.overlay.mkdir(parent, name, 0o755, view.caller)


HELD: dict[str, Callable[[Engine], Callable[[], object]]] = {
    "mkdir in a directory": lambda v: _held_create(v, b"new"),
    **{
        f"chmod of {path}": lambda v, path=path: partial(  # type: ignore[misc]
            v.overlay.set_attrs, v.node(path), AttrChange(mode=0o700), v.caller
        )
        for path in ("a", "d", "d/e", "d/e/f", "l1", "both")
    },
}


@needs_root
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("held", HELD)
def test_failed_change_can_be_made_by_whoever_holds_the_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: str, kind: str
) -> None:
    """As the kernel does, which looks nothing up again: what memory says must be what is on disk."""
    injection = Injection(monkeypatch, KINDS[kind])
    ground = Ground(tmp_path, index=True, metacopy=False)
    with ground.fresh() as whole:
        act = HELD[held](whole)
        with injection.counting() as trace:
            act()
    for number in range(len(trace)):
        with ground.fresh() as view:
            act = HELD[held](view)
            if fails(lambda _view, act=act: act(), view, injection, number, KINDS[kind]):  # type: ignore[misc]
                act()  # Not EEXIST: what was half done is gone, or is taken up.
