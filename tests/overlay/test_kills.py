"""What does a view show when the daemon is killed in the middle of a change?

Each change is made again and again, and each time the process ends before another system call that writes. Then our
engine and the kernel's overlayfs must show the old state or the new one, the same, and nothing may be left over.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

import pytest

from overlayfs_demo.overlay import override_stat
from overlayfs_demo.overlay.override_stat import OverrideStat
from tests.conftest import why_no_mounts
from tests.contract.conftest import why_unavailable
from tests.contract.engine_subject import Engine
from tests.overlay.changes import CASES, MOUNTS, MOVE_THE_TIME, write_record
from tests.overlay.ground import OPTIONS, Ground, left_in_work, on_disk, shown_by_kernel
from tests.overlay.injection import KINDS, Injection, Killed
from tests.overlay.shown import Shown, all_names_are_counted, difference, seen_by_engine, settled

# They take two steps, as in the kernel: two kinds of flags; what two readers see of an owner and a mode.
_TWO_STEPS = ("chattr", "chattr of a protected file", "record of owner and mode")
_CASES = {name: case for name, case in (CASES | MOUNTS).items() if name not in _TWO_STEPS}


class _Trial:
    """One change, in the middle of which the process ends."""

    def __init__(self, ground: Ground, injection: Injection, change: str) -> None:
        self._ground = ground
        self._injection = injection
        self._prepare, self._act = _CASES[change]
        self._times = change not in MOVE_THE_TIME
        # What the disk held after the last kill, which decides what a mount shows.
        self._on_disk: list[object] = []

    def _settled(self, shown: Shown) -> dict[bytes, tuple[object, ...]]:
        return settled(shown, links=self._ground.index, times=self._times)

    def succeed(self) -> list[str]:
        """Make the change, and return the calls that write."""
        with self._ground.fresh() as view:
            self._prepare(view)
            self._old = self._settled(seen_by_engine(view))
            with self._injection.counting() as trace:
                self._act(view)
            shown = seen_by_engine(view)
            assert not self._ground.index or all_names_are_counted(shown)
            self._new = self._settled(shown)
        return trace

    def kill(self, number: int) -> None:
        """Make the change until before call `number`, and see what is left of it."""
        # Each mount cleans up, so each must once be the first, unless the last kill has left the same.
        if self._kill(number, kernel_first=False):
            self._on_disk = []
            self._kill(number, kernel_first=True)

    def _kill(self, number: int, *, kernel_first: bool) -> bool:
        """Return whether something else is left than by the last kill."""
        with self._ground.fresh() as view:
            self._prepare(view)
            with suppress(Killed), self._injection.killing(number):
                self._act(view)
            assert self._injection.happened
            self._injection.abandon(view)
            before, self._on_disk = self._on_disk, on_disk(view)
            is_new = self._on_disk != before
            theirs = shown_by_kernel(view) if is_new and kernel_first else None
            view.start()
            assert not left_in_work(view)
            if is_new:
                self._compare(view, theirs)
        return is_new

    def _compare(self, view: Engine, theirs: Shown | None) -> None:
        """Compare what a view shows with what the kernel showed, or else shows now."""
        ours = self._settled(seen_by_engine(view))
        assert ours in (self._old, self._new), difference(self._old, ours)
        if theirs is None:
            view.stop()
            theirs = shown_by_kernel(view)
            view.start()
        assert self._settled(theirs) == ours, difference(ours, self._settled(theirs))


@pytest.mark.parametrize("change", _CASES)
def test_killed_change_leaves_old_or_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    for problem in (why_no_mounts(), why_unavailable("kernel")):
        if problem:
            pytest.skip(problem)
    injection = Injection(monkeypatch, KINDS["writing"])
    known: list[list[str]] = []
    for index, metacopy in OPTIONS:
        ground = Ground(tmp_path / f"{index}-{metacopy}", index=index, metacopy=metacopy)
        trial = _Trial(ground, injection, change)
        trace = trial.succeed()
        if trace in known:
            continue  # With these options it takes the same steps.
        known.append(trace)
        for number, call in enumerate(trace):
            print(f"index={index}, metacopy={metacopy}, killed before call {number + 1}, {call} of {trace}")
            trial.kill(number)


@pytest.mark.parametrize("before", [None, OverrideStat(5, 6, 0o755)])
def test_killed_change_of_a_record_shows_the_old_owner_and_mode_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: OverrideStat | None
) -> None:
    if problem := why_no_mounts():
        pytest.skip(problem)
    new = OverrideStat(7, 8, 0o4711)
    injection = Injection(monkeypatch, KINDS["writing"])
    ground = Ground(tmp_path, index=True, metacopy=False)

    def shown(view: Engine) -> OverrideStat:
        status = view.upper("up").stat()
        real = OverrideStat(status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode))
        return override_stat.read(os.fsencode(view.upper("up"))) or real

    number = 0
    while True:
        with ground.fresh() as view:
            if before:
                write_record(view, "up", before)
            old = shown(view)
            with suppress(Killed), injection.killing(number):
                write_record(view, "up", new)
            assert shown(view) in (old, new)
            if not injection.happened:
                break
        number += 1
    assert number > 1
