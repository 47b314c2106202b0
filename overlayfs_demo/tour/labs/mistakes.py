"""Mistakes that several labs have in common."""

from __future__ import annotations

from overlayfs_demo.tour import checks
from overlayfs_demo.tour.checks import entry
from overlayfs_demo.tour.lab import Mistake
from overlayfs_demo.tour.scan import Kind
from overlayfs_demo.tour.stage import Stage
from overlayfs_demo.ui.text import human_size


def nothing_at(path: str, rule: str) -> Mistake:
    """The mistake that nothing exists at this path."""
    return lambda stage: "" if entry(stage, path) else f"{path} does not exist. {rule}"


def also_holds(*expected: str, rule: str) -> Mistake:
    """The mistake that the upper holds more than these paths."""

    def mistake(stage: Stage) -> str:
        upper = stage.tree("upper")
        others = sorted(set(upper) - set(expected))
        if not others:
            return ""
        size = human_size(sum(upper[path].size for path in others))
        return f"The upper also contains {', '.join(others)} ({size}). {rule}"

    return mistake


def is_a(kind: Kind, path: str, rule: str) -> Mistake:
    """The mistake that the path is of this kind."""

    def mistake(stage: Stage) -> str:
        found = entry(stage, path)
        return f"{path} is a {kind.value}. {rule}" if found is not None and found.kind is kind else ""

    return mistake


def same_data(first: str, second: str, rule: str) -> Mistake:
    """The mistake that the copy still has its old data, or has it again."""
    check = checks.same(first, second)
    return lambda stage: f"{check.says}. {rule}" if check.holds(stage) else ""
