"""The reasons why a peer has no figure in a row, and the check that raises one of them."""

from __future__ import annotations

import subprocess
from typing import TypeVar

T = TypeVar("T")


class WrongResultError(Exception):
    """The mount, or the result of a row, is wrong."""


class LeftOutError(Exception):
    """A row does not apply to this peer, or cannot be measured on this machine."""


FAULTS = (OSError, subprocess.SubprocessError, WrongResultError, LeftOutError)


def expect(what: str, found: T, wanted: T) -> None:
    """Raise WrongResultError if `found` is not `wanted`."""
    if found != wanted:
        raise WrongResultError(f"wrong {what}: {str(found)[:60]}, expected {str(wanted)[:60]}")
