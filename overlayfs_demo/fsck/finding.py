"""Findings, and the loop that repairs them."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
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


# Begins a check. Its findings can be repaired until the context ends, because they need what is open there.
Check = Callable[[], AbstractContextManager[Iterable[Finding]]]


def report(check: Check) -> Iterator[Result]:
    """Check, and change nothing."""
    with check() as findings:
        for finding in findings:
            yield Result(finding, State.FOUND)


def mend(check: Check) -> Iterator[Result]:
    """Check and repair until nothing is found that can be repaired. What is left comes last."""
    # By kind and path.
    failed: dict[tuple[str, str], Result] = {}
    left: list[Finding] = []
    for _ in range(_MOST_PASSES):
        with check() as findings:
            # All of them before the first repair, which the check must not see half done.
            left = list(findings)
            results = [_repaired(finding) for finding in left if (finding.kind, finding.path) not in failed]
        yield from (result for result in results if result.state is State.REPAIRED)
        failed |= {(found.finding.kind, found.finding.path): found for found in results if found.state is State.LEFT}
        if all(result.state is State.LEFT for result in results):
            break
    for finding in left:
        yield failed.get((finding.kind, finding.path), Result(finding, State.LEFT))


def _repaired(finding: Finding) -> Result:
    if finding.repair is None:
        return Result(finding, State.LEFT)
    try:
        finding.repair()
    except (OSError, OverlayError) as error:
        return Result(finding, State.LEFT, error)
    return Result(finding, State.REPAIRED)
