"""A lab in progress: what its learner has tried, and which hints they have seen."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

from overlayfs_demo.tour.lab import Lab, judge
from overlayfs_demo.tour.results import Result
from overlayfs_demo.tour.stage import Stage


@dataclass(slots=True)
class Session:
    """A lab on its stage. Another thread may ask for hints and checks while the learner works."""

    lab: Lab
    stage: Stage
    _began: float = field(default_factory=time.monotonic)
    _mistakes: int = 0
    _hints: int = 0
    _passed: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def check(self, *, working: bool) -> str:
        """Return what is wrong on the disk, "" if nothing is; `working`: the learner's shell is still open.

        Raises OSError or OverlayError if a file changes while it is read.
        """
        with self._lock:
            mistake = judge(self.lab, self.stage, restore=not working)
            self._passed = not mistake
            self._mistakes += bool(mistake)
            return mistake

    def hint(self) -> tuple[str, int, int]:
        """Return the next hint, its number, and how many there are. The last one is repeated."""
        with self._lock:
            hints = self.lab.all_hints()
            self._hints = min(self._hints + 1, len(hints))
            return hints[self._hints - 1], self._hints, len(hints)

    def result(self, student: str) -> Result:
        """Return how it went until now. An attempt is a check that found a mistake, or the one that passed."""
        return Result(
            lab=self.lab.name,
            student=student,
            passed=self._passed,
            attempts=self._mistakes + self._passed,
            seconds=round(time.monotonic() - self._began),
            hints=self._hints,
        )
