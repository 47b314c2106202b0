"""A process that cleans up after another one that is killed, because SIGKILL leaves that one no time for it."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def survives(action: Callable[[], None]) -> bool:
    """Do the action, and return True. If this process is killed meanwhile, a fork of it returns False from here.

    The fork has a session of its own and no terminal, and signals that end a program do not reach it. Nobody waits for
    it: it must clean up, and end. Whatever the action raises is raised.
    """
    ours = os.pidfd_open(os.getpid())
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    survivor = os.fork()
    if survivor == 0:
        _wait_for_end(ours)
        return False
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        action()
    finally:
        os.kill(survivor, signal.SIGKILL)
        os.waitpid(survivor, 0)
        os.close(ours)
    return True


def _wait_for_end(pidfd: int) -> None:
    """Leave the terminal to others, and wait until the process with this pidfd has ended."""
    os.setsid()
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(nowhere, stream)
    select.select([pidfd], [], [])
    os.close(nowhere)
    os.close(pidfd)
