"""The start and the end of a daemon, a separate process that serves a view.

The daemon inherits nothing from its caller except the standard descriptors and the layers it is told of. It reports
over a pipe that it is ready, or why it cannot serve. Until then the caller waits, and can still end it.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import json
import logging
import os
import select
import signal
import sys
from collections.abc import Callable

from overlayfs_demo.errors import MountError

# How long a daemon may take to end, in seconds.
_TIMEOUT = 10.0
_READY = b"ready"
# The descriptors below this one are the standard ones.
_STANDARD = 3

_log = logging.getLogger(__name__)


class Daemon:
    """A running daemon. It is a child of this process."""

    def __init__(self, pid: int) -> None:
        self._pid = pid

    def end(self) -> None:
        """Terminate the daemon, and wait until it has released everything. If it does not end in time, kill it."""
        # If the caller ignores SIGCHLD, the kernel reaps the child, and there is nothing to wait for.
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            process = os.pidfd_open(self._pid)
            try:
                for number in (signal.SIGTERM, signal.SIGKILL):
                    os.kill(self._pid, number)
                    if ended(process, _TIMEOUT):
                        break
            finally:
                os.close(process)
            os.waitpid(self._pid, 0)


def ended(process: int, timeout: float) -> bool:
    """Wait up to `timeout` seconds for the end of the process behind a pidfd, and return whether it has ended.

    It has then released everything, even if nobody waits for it and it stays a zombie: pidfd_open(2).
    """
    poll = select.poll()
    poll.register(process, select.POLLIN)
    return bool(poll.poll(timeout * 1000))


class Readiness:
    """Says once, when called, that the daemon is ready, and then leaves the terminal that it was started from.

    A process that was forked meanwhile calls `drop`, so that only the one that was started reports.
    """

    def __init__(self, report: int | None) -> None:
        """Take over the pipe to the process that waits, if there is one."""
        self._report = report

    def __call__(self) -> None:
        if self._report is not None:
            leave_terminal()
            os.write(self._report, _READY)
            self.drop()

    @property
    def is_said(self) -> bool:
        """Whether there is nothing more to report."""
        return self._report is None

    def drop(self) -> None:
        """Report nothing."""
        if self._report is not None:
            os.close(self._report)
            self._report = None

    def fail(self, error: MountError) -> None:
        """Say why the daemon cannot start."""
        if self._report is not None:
            os.write(self._report, json.dumps([error.problem, error.remedy]).encode())


def start(serve: Callable[[Readiness], None]) -> Daemon:
    """Run `serve` in a daemon, and return it when `serve` calls the function it is given.

    Raises MountError, which says why the daemon could not start.
    """
    reading, writing = os.pipe()
    # Flush before the fork, or both processes would write what is buffered.
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # It is None if the caller has closed the descriptor.
            stream.flush()
    try:
        pid = os.fork()
    except OSError as error:
        os.close(reading)
        os.close(writing)
        raise MountError(f"cannot start a daemon: {error.strerror}") from error
    if pid == 0:
        os._exit(_live(serve, writing))
    # Close our copy, or reading would not end if the daemon dies.
    os.close(writing)
    daemon = Daemon(pid)
    said = b""
    try:
        with os.fdopen(reading, "rb") as pipe:
            said = pipe.read()
    finally:
        if said != _READY:
            daemon.end()
    if said != _READY:
        raise MountError(
            *(json.loads(said) if said else ("the daemon died while starting", "run it with --foreground to see more"))
        )
    return daemon


# --- in the daemon ---------------------------------------------------------------------------------


def _live(serve: Callable[[Readiness], None], report: int) -> int:
    """Be the daemon until it ends, and return its exit status. It writes _READY or an error to the pipe `report`."""
    ready = Readiness(report)
    try:
        os.setsid()
        os.chdir("/")
        os.umask(0)  # The umask of each request's caller applies, not the daemon's.
        ready = Readiness(_close_inherited(report))
        serve(ready)
    except BaseException as error:  # noqa: BLE001 - a child must not go on as its parent, whatever happens
        if ready.is_said:
            _log.exception("the daemon failed")
            return 1
        if not isinstance(error, MountError):
            error = MountError(
                f"the daemon failed: {error or type(error).__name__}", "run it with --foreground to see more"
            )
        ready.fail(error)
        return 1
    return 0


def _close_inherited(keep: int) -> int:
    """Close all inherited descriptors except the standard ones and `keep`, and return the new number of `keep`.

    Otherwise a lock on an inherited descriptor would be held, and a pipe kept open, as long as the daemon lives.
    """
    # Objects that still refer to a closed descriptor must not close it, or write to it, when its number means another
    # file. So no object from the caller is collected any more, and the log goes only to the standard streams.
    gc.freeze()
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
    root = logging.getLogger()
    root.handlers[:] = [
        handler for handler in root.handlers if getattr(handler, "stream", None) in (sys.stdout, sys.stderr)
    ]
    keep = fcntl.fcntl(keep, fcntl.F_DUPFD_CLOEXEC, _STANDARD)
    for fd in map(int, os.listdir("/proc/self/fd")):
        if fd >= _STANDARD and fd != keep:
            with contextlib.suppress(OSError):  # The descriptor of the listing is already closed.
                os.close(fd)
    # Fill the standard descriptors that the caller had closed, so that no layer gets such a number.
    while (fd := os.open(os.devnull, os.O_RDWR)) < _STANDARD:
        pass
    os.close(fd)
    return keep


def leave_terminal() -> None:
    """Let go of the standard descriptors, and log to the system's log."""
    null = os.open(os.devnull, os.O_RDWR)
    for standard in range(_STANDARD):
        os.dup2(null, standard)
    os.close(null)
    log_to_system()


def log_to_system() -> None:
    """Send the log to syslog(3), if there is one."""
    if os.path.exists("/dev/log"):
        from logging.handlers import SysLogHandler

        handler = SysLogHandler("/dev/log")
        handler.ident = "overlayfs-demo: "
        logging.getLogger().addHandler(handler)
