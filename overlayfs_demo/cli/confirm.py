"""The question before something is removed for good."""

from __future__ import annotations

import sys

from overlayfs_demo.ui.console import note


def confirmed(what: str, *, force: bool) -> bool:
    """Return whether `what`, a sentence about what would be removed, may be done.

    A person at a terminal is asked, unless `force`. A script is not: it means what it says, as before.
    """
    if force or not sys.stdin.isatty():
        return True
    sys.stderr.write(f"WARNING! {what}\nAre you sure you want to continue? [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() in ("y", "yes"):
        return True
    note("nothing was removed")
    return False
