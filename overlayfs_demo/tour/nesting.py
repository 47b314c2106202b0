"""The variables by which a program knows that it runs in the shell of a lab or of a lecture."""

from __future__ import annotations

import os

from overlayfs_demo.errors import UsageError

# The name of the lab's socket, see `lab_socket`.
LAB = "OVERLAYFS_DEMO_LAB"
LECTURE = "OVERLAYFS_DEMO_LECTURE"


def refuse_inside_lab(verb: str) -> None:
    """Raise UsageError if this program runs in the shell of a lab."""
    if os.environ.get(LAB):
        raise UsageError(
            f"'{verb}' does not start in the shell of a lab",
            "leave the lab with Ctrl-D first; 'lab --hint' and 'lab --check' work here",
        )


def refuse_inside_lecture(verb: str) -> None:
    """Raise UsageError if this program runs in the shell of a lecture."""
    if os.environ.get(LECTURE):
        raise UsageError(f"'{verb}' does not start in the shell of a lecture", "leave it with 'exit' first")
