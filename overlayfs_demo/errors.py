"""The errors that the command line reports.

Inside the engine every failure is an `OSError` with the errno that the kernel would return. The command line
reports an `OverlayError`: it names the thing (a layer, an archive member, an option), the rule it broke, and
what to do about it.
"""

from __future__ import annotations


class OverlayError(Exception):
    """A failure that a person can act on. `str()` is one line for stderr, without a traceback.

    `exit_code` is the process's exit status; 1 means that something could not be done.
    """

    exit_code = 1

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(f"{problem}: {remedy}" if remedy else problem)
        self.problem = problem
        self.remedy = remedy


class UsageError(OverlayError):
    """The command line itself is wrong. Exit status 2, as in programs that use argparse or getopt(3)."""

    exit_code = 2


class ImageError(OverlayError):
    """An archive is not a valid image, or one of its layers cannot be unpacked exactly."""


class MountError(OverlayError):
    """A mount cannot be made, found or removed."""
