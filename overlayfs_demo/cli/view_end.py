"""The end of a view that a command follows: it was unmounted, or its daemon died."""

from __future__ import annotations

from overlayfs_demo.errors import printable
from overlayfs_demo.mounts import registry
from overlayfs_demo.ui.console import PROGRAM, note


def tell_end(mountpoint: str, owner: int) -> int:
    """Say how the view that user `owner` mounted has ended. Return the exit status: 1 if its daemon died."""
    shown = printable(mountpoint)
    if not registry.was_left(mountpoint, owner):
        note(f"{shown} was unmounted")
        return 0
    note(f"the daemon of {shown} died, so the view answers no more: '{PROGRAM} umount {shown}' removes it")
    return 1
