"""What can a person be told went wrong?

Inside the engine every failure is an `OSError` with the errno the kernel would give. What a person
meets on the command line is an `OverlayError`: it names the thing (a layer, an archive member, an
option), the rule it broke, and what to do about it.
"""

from __future__ import annotations


class OverlayError(Exception):
    """A failure that a person can act on; `str()` is one line for stderr, without a traceback.

    `exit_code` is the process's exit status: 1, something could not be done.
    """

    exit_code = 1

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(f"{problem}: {remedy}" if remedy else problem)
        self.problem = problem
        self.remedy = remedy


class UsageError(OverlayError):
    """The command line itself is wrong: exit status 2, as argparse and getopt(3) programs do."""

    exit_code = 2


class ImageError(OverlayError):
    """An archive is not a sound image, or one of its layers cannot be unpacked faithfully."""


class MountError(OverlayError):
    """A mount cannot be made, found, or taken away."""
