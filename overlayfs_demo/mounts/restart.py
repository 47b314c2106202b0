"""Restarting the daemon of a view while the view stays mounted, so that the installed program serves it."""

from __future__ import annotations

import os
import signal
import time

from overlayfs_demo.errors import MountError
from overlayfs_demo.mounts import registry
from overlayfs_demo.mounts.registry import MountRecord

# The signal by which the present program takes the place of a supervisor, see `supervisor`.
RENEWING = signal.SIGUSR1
# How long another daemon may take to answer, and between two looks, in seconds.
_TIMEOUT = 20.0
_POLL = 0.02


def restart(mountpoint: str) -> MountRecord:
    """Let the installed program serve a view that is mounted there; return the new record when it does.

    Calls in the view only take longer meanwhile. Raises MountError.
    """
    record = registry.find_record(mountpoint)
    if record is None or not registry.is_served(mountpoint):
        raise MountError(f"{mountpoint}: no daemon of yours serves it", "mount it again")
    if record.daemon == record.pid:
        remedy = "unmount it, and mount it again without --foreground and with --front kernel"
        raise MountError(f"{mountpoint}: its daemon has no supervisor, so nothing could take its place", remedy)
    os.kill(record.pid, RENEWING)
    deadline = time.monotonic() + _TIMEOUT
    while time.monotonic() < deadline:
        time.sleep(_POLL)
        now = registry.find_record(mountpoint)
        if now is None or not registry.is_served(mountpoint):
            raise MountError(f"{mountpoint}: no daemon could take the place of the one before", "mount it again")
        if now.restarts > record.restarts:
            return now
    raise MountError(f"{mountpoint}: no other daemon answers", f"'umount {mountpoint}' unmounts it")
