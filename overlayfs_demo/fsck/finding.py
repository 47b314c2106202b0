"""Findings, and the loop that repairs them."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from overlayfs_demo.errors import OverlayError

# One repair may bring to light what another damage hid: the names of an image show only that its config is gone.
_MOST_PASSES = 10


@dataclass(frozen=True, slots=True)
class Finding:
    """One damage.

    `kind` is a short word for programs, `path` where it is. `sentence` says what is wrong, why it matters, and what the
    repair does. `repair` changes nothing else; it is None if only a person can mend this. It raises OSError or
    OverlayError.
    """

    kind: str
    path: str
    sentence: str
    repair: Callable[[], object] | None = None


class State(enum.Enum):
    """What has become of a finding."""

    FOUND = "found"
    REPAIRED = "repaired"
    LEFT = "left"


@dataclass(frozen=True, slots=True)
class Result:
    """A finding, what has become of it, and the error if its repair failed."""

    finding: Finding
    state: State
    error: OverlayError | OSError | None = None


Check = Callable[[], Iterable[Finding]]


def report(check: Check) -> Iterator[Result]:
    """Check, and change nothing."""
    for finding in check():
        yield Result(finding, State.FOUND)


def mend(check: Check) -> Iterator[Result]:
    """Check and repair until nothing is found that can be repaired. What is left comes last."""
    failed: dict[tuple[str, str], Result] = {}
    for _ in range(_MOST_PASSES):
        # All of them before the first repair, which the check must not see half done.
        findings = list(check())
        repaired = False
        for finding in findings:
            key = (finding.kind, finding.path)
            if finding.repair is None or key in failed:
                continue
            try:
                finding.repair()
            except (OSError, OverlayError) as error:
                failed[key] = Result(finding, State.LEFT, error)
            else:
                repaired = True
                yield Result(finding, State.REPAIRED)
        if not repaired:
            break
    for finding in findings:
        yield failed.get((finding.kind, finding.path), Result(finding, State.LEFT))
