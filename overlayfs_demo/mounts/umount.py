"""Unmounting views: the mount goes, and then its daemon ends."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import time
from collections.abc import Iterator

from overlayfs_demo.errors import MountError
from overlayfs_demo.fronts import attach
from overlayfs_demo.fronts.front import FILESYSTEM_TYPE
from overlayfs_demo.linux import mountinfo
from overlayfs_demo.mounts import daemon, registry
from overlayfs_demo.mounts.registry import find_record
from overlayfs_demo.named_tuple import NamedTuple

# How long to wait for a daemon that has nothing left to serve, in seconds.
_TIMEOUT = 10.0
# After how many seconds to look for the reason why a daemon is still serving.
_LINGERS = 0.5

_log = logging.getLogger(__name__)


def unmount(path: bytes, *, lazy: bool = False, force: bool = False) -> None:
    """Unmount a view, and wait for its daemon to end.

    With `lazy` the name disappears now, and the mount when nobody uses it any more; this then does not wait. With
    `force` requests that are waiting for the daemon fail first. Raises MountError if it is not a view, or is busy; the
    latter error says which processes use it.
    """
    mountpoint = os.fsdecode(os.path.abspath(path))
    # Only the path up to the view is resolved: realpath would ask the view itself, which may be dead.
    mountpoint = os.path.join(os.path.realpath(os.path.dirname(mountpoint)), os.path.basename(mountpoint))
    top = mountinfo.top(os.fsencode(mountpoint))
    if top is None or top.kind != FILESYSTEM_TYPE:
        remedy = f"'findmnt -t {FILESYSTEM_TYPE}' lists the views"
        raise MountError(f"{mountpoint} is not mounted by overlayfs-demo", remedy)
    with _following(mountpoint) as process, _standing_outside(mountpoint):
        try:
            attach.detach(os.fsencode(mountpoint), lazy, force)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise MountError(f"{mountpoint}: {error.strerror}") from error
            remedy = "end these processes, or use --lazy"
            raise MountError(f"{mountpoint} is busy{_users(mountpoint)}", remedy) from error
        if process is not None and not lazy:
            _await_end(process, mountpoint, top.device)
    registry.forget_dead(mountpoint)


@contextlib.contextmanager
def _standing_outside(mountpoint: str) -> Iterator[None]:
    """Leave the view if this process works in it, because that would keep it busy; return there if it stays mounted."""
    try:
        here = os.getcwd()
    except OSError:  # The directory is gone, or the daemon is.
        here = mountpoint
    if not f"{here}/".startswith(f"{mountpoint}/"):
        yield
        return
    os.chdir("/")
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            os.chdir(here)
        raise


class _Daemon(NamedTuple):
    """A daemon: its process ID and its pidfd."""

    pid: int
    descriptor: int


class _Process(NamedTuple):
    """Any process: its process ID and its name."""

    pid: int
    name: str


@contextlib.contextmanager
def _following(mountpoint: str) -> Iterator[_Daemon | None]:
    """Return the daemon that serves a view, if it is alive and belongs to this user, or None."""
    record = find_record(mountpoint)
    descriptor = -1
    if record is not None:
        with contextlib.suppress(ProcessLookupError):
            descriptor = os.pidfd_open(record.pid)
    try:
        # Check this only after opening the pidfd. Then the pidfd is the daemon's, and not that of a later process
        # with the same number.
        served = record is not None and descriptor >= 0 and registry.is_served(mountpoint)
        yield _Daemon(record.pid, descriptor) if record is not None and served else None
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _await_end(process: _Daemon, mountpoint: str, number: str) -> None:
    """Wait for the daemon of the former mount with this device number to end. Raises MountError.

    If the mount still exists in another mount namespace, warn of that instead.
    """
    deadline = time.monotonic() + _TIMEOUT
    while not daemon.ended(process.descriptor, _LINGERS):
        if holder := _mounted_elsewhere(number):
            _log.warning(
                "%s is unmounted here, but still mounted in the mount namespace of %s: until that process ends, the "
                "daemon (process %s) keeps running and the upper stays in use",
                mountpoint,
                holder,
                process.pid,
            )
            return
        if time.monotonic() > deadline:
            raise MountError(
                f"unmounted, but its daemon (process {process.pid}) is still running; another user's process may still "
                "have the mount, in a mount namespace that only root can look into",
                f"the daemon ends with that process; 'kill -9 {process.pid}' ends it at once",
            )


def _processes() -> Iterator[_Process]:
    """Yield all processes."""
    import psutil  # Imported late: it costs more than the rest of an unmount, and only what goes wrong needs it.

    for process in psutil.process_iter(["pid", "name"]):
        yield _Process(process.info["pid"], process.info["name"])


def _mounted_elsewhere(number: str) -> str:
    """Find a process in another mount namespace that has the mount with this device number.

    Return it as "sleep (812)", or "" if there is none.
    """
    for process in _processes():
        # Processes may end meanwhile, and those of other users cannot be inspected.
        with contextlib.suppress(OSError):
            namespace = os.readlink(f"/proc/{process.pid}/ns/mnt")
            if namespace == os.readlink("/proc/self/ns/mnt"):
                continue
            if any(found.device == number for found in mountinfo.mounts(process.pid)):
                return f"{process.name} ({process.pid})"
    return ""


def _users(mountpoint: str) -> str:
    """Return the processes that keep the mount busy, as ": used by bash (812), less (901)"; "" if none is found."""
    found = []
    for process in _processes():
        if any(path == mountpoint or path.startswith(f"{mountpoint}/") for path in _links(process.pid)):
            found.append(f"{process.name} ({process.pid})")
    return f": used by {', '.join(found)}" if found else ""


def _links(pid: int) -> list[str]:
    """Return the paths that a process works in, runs and has open, directories included: proc(5).

    Only the links in /proc are read; the files themselves, which may be in a dead view, are not touched.
    """
    names = ["cwd", "root", "exe"]
    found = []
    # Processes may end and files may be closed meanwhile, and those of other users cannot be inspected.
    with contextlib.suppress(OSError):
        names += [f"fd/{number}" for number in os.listdir(f"/proc/{pid}/fd")]
    for name in names:
        with contextlib.suppress(OSError):
            found.append(os.readlink(f"/proc/{pid}/{name}"))
    return found
