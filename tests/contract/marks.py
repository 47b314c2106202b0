"""Which marks can a fact of the contract carry?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest


def differs(subject: str, instead: str) -> pytest.MarkDecorator:
    """The subject is known to do something else `instead`; the test asserts that, behind `subject.differs`."""
    return pytest.mark.differs(subject, instead)


def only(subjects: Sequence[str], reason: str) -> Callable[[Any], Any]:
    """The fact is about these subjects alone; `reason` says why it makes no sense for the others."""
    assert reason
    return pytest.mark.parametrize("kind", subjects, indirect=True, ids=list(subjects))
