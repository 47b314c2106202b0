"""How does a process of its own come to serve, and how does whoever starts it learn that it does?

The daemon begins with nothing of its caller's but the standard descriptors and the layers it is told of. It says over
a pipe that it is ready, or why it cannot be. Until then the caller waits, and can still end it.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import json
import logging
import logging.handlers
import os
import select
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from overlayfs_demo.errors import MountError

# How long a daemon may take to end, in seconds.
_PATIENCE = 10.0
_READY = b"ready"
# The standard descriptors are those below.
_STANDARD = 3

_log = logging.getLogger(__name__)


class Daemon:
    """A daemon that is ready. It is a child of this process."""

    def __init__(self, pid: int) -> None:
        self._pid = pid

    def end(self) -> None:
        """Terminate it, and wait until it has let go of everything. One that does not end by itself is killed."""
        # Nobody is left to wait for where the caller ignores SIGCHLD.
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            process = os.pidfd_open(self._pid)
            try:
                for number in (signal.SIGTERM, signal.SIGKILL):
                    os.kill(self._pid, number)
                    if ended(process, _PATIENCE):
                        break
            finally:
                os.close(process)
            os.waitpid(self._pid, 0)


def ended(process: int, timeout: float) -> bool:
    """Wait so many seconds at most for the end of the process behind a pidfd: pidfd_open(2).

    It has then let go of everything, also if nobody waits for it and it stays a zombie.
    """
    poll = select.poll()
    poll.register(process, select.POLLIN)
    return bool(poll.poll(timeout * 1000))


def start(serve: Callable[[Callable[[], None]], None]) -> Daemon:
    """Run `serve` in a daemon; return when it calls what it is given. Raises MountError with what it failed on."""
    reading, writing = os.pipe()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # As it is where the caller has closed it.
            stream.flush()
    try:
        pid = os.fork()
    except OSError as error:
        os.close(reading)
        os.close(writing)
        raise MountError(f"cannot start a daemon: {error.strerror}") from error
    if pid == 0:
        os._exit(_live(serve, writing))
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
        raise MountError(*(json.loads(said) if said else ("the daemon died while starting", "--foreground shows more")))
    return daemon


# --- in the daemon ---------------------------------------------------------------------------------


def _live(serve: Callable[[Callable[[], None]], None], report: int) -> int:
    """The daemon's whole life; its exit status. `report` takes _READY, or what went wrong."""
    is_ready = False

    def ready() -> None:
        nonlocal is_ready
        _leave_terminal()
        os.write(report, _READY)
        os.close(report)
        is_ready = True

    try:
        os.setsid()
        os.chdir("/")
        os.umask(0)  # The callers' umasks count, not the daemon's.
        report = _close_inherited(report)
        serve(ready)
    except BaseException as error:  # noqa: BLE001 - a child must not go on as its parent, whatever happens
        if is_ready:
            _log.exception("the daemon failed")
            return 1
        if not isinstance(error, MountError):
            error = MountError(f"the daemon failed: {error or type(error).__name__}", "--foreground shows more")
        os.write(report, json.dumps([error.problem, error.remedy]).encode())
        return 1
    return 0


def _close_inherited(keep: int) -> int:
    """Close what the caller had open, but for the standard descriptors and `keep`, whose number is then returned.

    A lock on an inherited descriptor would be held, and a pipe kept open, as long as the daemon lives.
    """
    # What still refers to such a descriptor must not close it, or write to it, when its number means another file:
    # no object that the caller left is collected any more, and the log goes to the standard streams alone.
    gc.freeze()
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
    root = logging.getLogger()
    root.handlers[:] = [one for one in root.handlers if getattr(one, "stream", None) in (sys.stdout, sys.stderr)]
    keep = fcntl.fcntl(keep, fcntl.F_DUPFD_CLOEXEC, _STANDARD)
    for fd in map(int, os.listdir("/proc/self/fd")):
        if fd >= _STANDARD and fd != keep:
            with contextlib.suppress(OSError):  # The one by which they were listed.
                os.close(fd)
    # No layer may get the number of a standard stream that the caller had closed.
    while (fd := os.open(os.devnull, os.O_RDWR)) < _STANDARD:
        pass
    os.close(fd)
    return keep


def _leave_terminal() -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for standard in range(_STANDARD):
        os.dup2(null, standard)
    os.close(null)
    if Path("/dev/log").exists():
        handler = logging.handlers.SysLogHandler("/dev/log")
        handler.ident = "overlayfs-demo: "
        logging.getLogger().addHandler(handler)
