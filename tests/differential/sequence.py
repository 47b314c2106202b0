"""What happens when one sequence of operations is applied to both overlays?

A sequence runs in a process of its own: users, umask, root directory and open files are its own, and a
view that hangs takes only that process along.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import stat
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from overlayfs_demo.mounts import registry
from tests import builders
from tests.conftest import unmount_all
from tests.contract.subjects import Layers, in_child
from tests.differential.known import is_avoided, is_known, is_skipped, parts_ways
from tests.differential.operations import Dice, Operation
from tests.differential.sides import Oracle, Ours, Outcome, Side
from tests.differential.stacks import StackSpec, random_stack
from tests.differential.views import View, differences, shown

# A sequence that takes longer hangs: then its daemon is killed, which ends it.
_LIMIT = 120.0
COMPARE_EVERY = 20


@dataclass(frozen=True)
class Setting:
    """How sequences are run. Trees are made below `place`."""

    place: Path
    front: str = "kernel"
    index: bool = False
    metacopy: bool = False
    operations: int = 300
    ignored: tuple[str, ...] = ()  # Signatures, fields of a view, verbs.


@dataclass(frozen=True)
class Case:
    """What to run: `operations` on a stack; without them they are drawn from the seed."""

    seed: int
    stack: StackSpec
    operations: tuple[Operation, ...] | None = None

    @property
    def passes(self) -> bool:
        """Whether the kernel uses files of the upper by itself: with every other seed."""
        return self.seed % 2 == 0

    @classmethod
    def of(cls, seed: int) -> Case:
        return cls(seed, random_stack(random.Random(f"stack {seed}")))


class DivergedError(Exception):
    """The overlays differ. `signature` is alike for what may be one cause."""

    def __init__(self, signature: str, text: str, operations: tuple[Operation, ...]) -> None:
        super().__init__(signature, text, operations)
        self.signature = signature
        self.text = text
        self.operations = operations


@dataclass
class Run:
    """One case, running."""

    case: Case
    setting: Setting
    base: Path
    done: list[Operation] = field(default_factory=list)

    def all(self) -> None:
        """Run it; raises DivergedError."""
        os.setgroups([])  # See `known`.
        os.umask(0o022)
        self.base.chmod(0o755)
        lowers, ours_upper, kernel_upper = self.case.stack.make(self.base)
        before = [builders.tree(lower) for lower in lowers]
        ours = self._ours(lowers, ours_upper)
        kernel = self._kernel(lowers, kernel_upper)
        with mounted(ours), mounted(kernel):
            self._operate(ours, kernel)
            last = shown(kernel)
            written = shown(ours)
        if not ours.subject.work_is_empty():
            self._fail("garbage in work", "something half-made was left in the work directory")
        with mounted(self._kernel(lowers, ours_upper)) as side:
            self._compare(written, shown(side), "kernel on our upper: ")
        with mounted(self._ours(lowers, kernel_upper)) as side:
            self._compare(last, shown(side), "ours on the kernel's upper: ")
        for lower, old in zip(lowers, before, strict=True):
            if builders.tree(lower) != old:
                self._fail("lower changed", f"{lower.name} was changed")

    def _layers(self, lowers: list[Path], upper: Path) -> Layers:
        view, work = self.base / f"{upper.name}-view", self.base / f"{upper.name}-work"
        for one in (view, work):
            one.mkdir(exist_ok=True)
        return Layers(lowers, upper, work, view)

    def _ours(self, lowers: list[Path], upper: Path) -> Side:
        setting = self.setting
        return Side(
            Ours(self._layers(lowers, upper), setting.front, setting.index, setting.metacopy, self.case.passes),
            file_times=not setting.metacopy,
        )

    def _kernel(self, lowers: list[Path], upper: Path) -> Side:
        setting = self.setting
        return Side(
            Oracle(self._layers(lowers, upper), setting.index, setting.metacopy), file_times=not setting.metacopy
        )

    def _operate(self, ours: Side, kernel: Side) -> None:
        self._compare(shown(kernel), shown(ours), "before the first operation: ")
        for number, (operation, dice) in enumerate(self._operations(kernel), 1):
            self.done.append(operation)
            if is_avoided(self.setting.front, operation, kernel, self.case.passes):
                continue
            theirs, mine = kernel.perform(*operation), ours.perform(*operation)
            if parts_ways(operation, kernel, theirs, mine):
                return
            self._judge(operation, theirs, mine)
            if operation.verb == "rename" and theirs == ("error", "ENOTEMPTY"):
                for path, side in itertools.product(operation.arguments[:2], (ours, kernel)):
                    side.perform("utime", False, (os.path.join(os.path.dirname(path), b"."), 0, 0))
            if dice:
                dice.happened(operation, theirs)
            if number % COMPARE_EVERY == 0:
                self._compare(shown(kernel), shown(ours), "view: ")
        self._compare(shown(kernel), shown(ours), "view: ")

    def _operations(self, kernel: Side) -> Iterator[tuple[Operation, Dice | None]]:
        if self.case.operations is not None:
            yield from ((operation, None) for operation in self.case.operations)
            return
        dice = Dice(random.Random(f"operations {self.case.seed}"))
        for path, row in shown(kernel).items():
            dice.saw(path, row[0])
        drawn = 0
        while drawn < self.setting.operations:
            operation = dice.next()
            if operation.verb not in self.setting.ignored and not is_skipped(self.setting.front, operation):
                drawn += 1
                yield operation, dice

    def _judge(self, operation: Operation, theirs: Outcome, mine: Outcome) -> None:
        if theirs == mine or is_known(operation, theirs, mine):
            return
        brief = [outcome[1] if outcome[0] == "error" else "ok" for outcome in (theirs, mine)]
        signature = f"{operation.verb}: {brief[0]} / {brief[1]}"
        if signature in self.setting.ignored:
            return
        self._fail(signature, f"{operation}\n  kernel: {_cut(theirs)}\n  ours:   {_cut(mine)}")

    def _compare(self, theirs: View, mine: View, where: str) -> None:
        if found := differences(theirs, mine, self.setting.ignored):
            signature = where + ", ".join(sorted({kind for kind, _ in found}))
            if signature in self.setting.ignored:
                return
            text = "\n".join(f"  {sentence}" for _, sentence in found[:12])
            self._fail(signature, f"{where}\n{text}")

    def _fail(self, signature: str, text: str) -> None:
        raise DivergedError(signature, text, tuple(self.done))


def _cut(outcome: Outcome) -> str:
    text = repr(outcome[1])
    return text if len(text) < 400 else f"{text[:400]}…"


@contextmanager
def mounted(side: Side) -> Iterator[Side]:
    side.start()
    try:
        yield side
    finally:
        side.stop()


def run(case: Case, setting: Setting) -> DivergedError | None:
    """Run a case in a child; how it diverged, if it did. Raises what else went wrong."""
    base = Path(tempfile.mkdtemp(prefix="fuzz-", dir=setting.place))
    watchdog = threading.Timer(_LIMIT, _kill_daemons, [base])
    watchdog.daemon = True
    watchdog.start()
    try:
        in_child(Run(case, setting, base).all)
    except DivergedError as diverged:
        return diverged
    finally:
        watchdog.cancel()
        unmount_all(str(base))
        remove(base)
    return None


def _kill_daemons(base: Path) -> None:
    for record in registry.live_records():
        if record.mountpoint.startswith(f"{base}/"):
            os.kill(record.pid, signal.SIGKILL)


def remove(base: Path) -> None:
    """Remove a tree, unless something is still mounted in it."""
    if any(stat.S_ISDIR(one.lstat().st_mode) and os.path.ismount(one) for one in base.iterdir()):
        raise AssertionError(f"still mounted below {base}")
    shutil.rmtree(os.fsencode(base))
