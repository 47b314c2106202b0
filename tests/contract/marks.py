"""Which marks can a fact of the contract carry?"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import pytest


def differs(subject: str, instead: str) -> pytest.MarkDecorator:
    """The subject is known to do something else `instead`; the test asserts that, behind `subject.differs`."""
    return pytest.mark.differs(subject, instead)


def kernel_version() -> tuple[int, int]:
    """Which Linux runs here, as in (6, 12)."""
    major, minor = os.uname().release.split(".")[:2]
    return int(major), int(minor)


def kernel_since(major: int, minor: int, what: str) -> pytest.MarkDecorator:
    """The kernel's overlayfs knows `what` since that Linux: on an older one the fact is not asked of it."""
    return pytest.mark.kernel_since((major, minor), f"{what}: since Linux {major}.{minor}")


# The kernel front with an option that keeps the kernel from using files of the upper by itself.
CACHED = "cached-kernel-front"
SUBJECTS = ("engine", "engine-asking-first", "engine-with-tables", "kernel-front", "fusepy-front", "kernel")
# For a module about data: both ways that the kernel front carries it.
also_cached = pytest.mark.parametrize("kind", (*SUBJECTS, CACHED), indirect=True)
HAS_PASSTHROUGH = kernel_version() >= (6, 9)


def only(subjects: Sequence[str], reason: str) -> Callable[[Any], Any]:
    """The fact is about these subjects alone; `reason` says why it makes no sense for the others."""
    assert reason
    return pytest.mark.parametrize("kind", subjects, indirect=True, ids=list(subjects))
