"""How small can a case become and still diverge?"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from tests.differential.sequence import Case, DivergedError, Setting, run
from tests.differential.stacks import Entry, StackSpec

T = TypeVar("T")


class Shrinker:
    """Drops operations and entries of layers as long as the same divergence comes of the rest."""

    def __init__(self, setting: Setting, found: DivergedError, seconds: float) -> None:
        self._setting = setting
        self.found = found
        self._deadline = time.monotonic() + seconds

    def shrunk(self, case: Case) -> Case:
        """The smallest case found in the time there is."""
        assert self.found.operations is not None
        case = replace(case, operations=self.found.operations)
        while time.monotonic() < self._deadline:
            before = case
            case = self._with_fewer_operations(case)
            case = self._with_smaller_layers(case)
            if case == before:
                break
        return case

    def _diverges(self, case: Case) -> bool:
        if time.monotonic() > self._deadline:
            return False
        try:
            found = run(case, self._setting)
        except Exception:  # noqa: BLE001 - an impossible stack, say a link to a file that was dropped
            return False
        if found is None or found.signature != self.found.signature:
            return False
        self.found = found
        return True

    def _with_fewer_operations(self, case: Case) -> Case:
        kept = _fewer(case.operations or (), lambda few: self._diverges(replace(case, operations=tuple(few))))
        return replace(case, operations=tuple(kept))

    def _with_smaller_layers(self, case: Case) -> Case:
        entries = [(-1, entry) for entry in case.stack.upper]
        entries += [(number, entry) for number, layer in enumerate(case.stack.lowers) for entry in layer]
        count = len(case.stack.lowers)
        kept = _fewer(entries, lambda few: self._diverges(replace(case, stack=_stack(few, count))))
        case = replace(case, stack=_stack(kept, count))
        for number in reversed(range(count)):
            lowers = case.stack.lowers[:number] + case.stack.lowers[number + 1 :]
            smaller = replace(case, stack=replace(case.stack, lowers=lowers))
            if lowers and not case.stack.lowers[number] and self._diverges(smaller):
                case = smaller
        return case


def _stack(entries: Sequence[tuple[int, Entry]], count: int) -> StackSpec:
    layers = [tuple(entry for where, entry in entries if where == number) for number in range(-1, count)]
    return StackSpec(tuple(layers[1:]), layers[0])


def _fewer(items: Sequence[T], still: Callable[[Sequence[T]], bool]) -> Sequence[T]:
    """Drop ever smaller runs of items, down to single ones, as long as `still` holds of the others."""
    size = max(1, len(items) // 2)
    while True:
        end = len(items)
        while end > 0:
            rest = [*items[: max(0, end - size)], *items[end:]]
            if len(rest) < len(items) and still(rest):
                items = rest
            end -= size
            end = min(end, len(items))
        if size == 1:
            return items
        size //= 2
