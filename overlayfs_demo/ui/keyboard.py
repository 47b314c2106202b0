"""Single key presses from the terminal, without echo."""

from __future__ import annotations

import errno
import os
import select
import signal
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_LOCAL, _CONTROL = 3, 6  # The places of c_lflag and c_cc, see termios(3), in the list of termios.tcgetattr.


@contextmanager
def keys() -> Iterator[int | None]:
    """Give a descriptor from which each key can be read at once, without echo; None if stdin is not a terminal.

    Afterwards the terminal is as it was. Ctrl-C interrupts as usual. Ctrl-Z and Ctrl-\\ do nothing, because a program
    that they stopped or killed could not give the terminal back.
    """
    if not sys.stdin.isatty():
        yield None
        return
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    changed = termios.tcgetattr(fd)
    changed[_LOCAL] &= ~(termios.ICANON | termios.ECHO)
    for character in (termios.VSUSP, termios.VQUIT):
        changed[_CONTROL][character] = b"\0"  # _POSIX_VDISABLE
    try:
        # Not TCSAFLUSH, because keys typed earlier may be meant for us.
        termios.tcsetattr(fd, termios.TCSADRAIN, changed)
        yield fd
    finally:
        # A terminal that was closed has no settings.
        with suppress(termios.error):
            termios.tcsetattr(fd, termios.TCSADRAIN, before)


def pressed(fd: int) -> str | None:
    """Return the keys that wait, as characters (an arrow is several); None without any, "" if the terminal has gone."""
    return _read(fd) if select.select([fd], [], [], 0)[0] else None


def forget_pressed(fd: int) -> None:
    """Forget the keys that wait."""
    termios.tcflush(fd, termios.TCIFLUSH)


def read_keys(fd: int) -> str:
    """Wait for keys, and return them as `pressed` does. Call it in the main thread."""
    _wait(fd)
    return _read(fd)


def _read(fd: int) -> str:
    try:
        return os.read(fd, 1024).decode(errors="replace")
    except OSError as error:
        # The other end of a pseudoterminal was closed: pty(7).
        if error.errno == errno.EIO:
            return ""
        raise


def _wait(fd: int) -> None:
    """Wait until the terminal can be read, and let the handlers of signals run meanwhile.

    Python runs them between its own instructions. A signal that comes just before a blocking read would wait for the
    next key, so each signal is also made to wake this wait: signal.set_wakeup_fd.
    """
    reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    try:
        while fd not in select.select([fd, reading], [], [])[0]:
            os.read(reading, 1024)
    finally:
        signal.set_wakeup_fd(before)
        os.close(reading)
        os.close(writing)
