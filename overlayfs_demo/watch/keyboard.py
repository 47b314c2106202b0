"""Single key presses from the terminal, without echo."""

from __future__ import annotations

import os
import select
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager

_LOCAL, _CONTROL = 3, 6  # The places of c_lflag and c_cc, see termios(3), in the list of termios.tcgetattr.


@contextmanager
def keys() -> Iterator[int | None]:
    """Give a descriptor from which each key can be read at once, without echo; None if stdin is not a terminal.

    Afterwards the terminal is as it was. Ctrl-C interrupts as usual. Ctrl-Z does nothing, because a stopped program
    could not give the screen back.
    """
    if not sys.stdin.isatty():
        yield None
        return
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    changed = termios.tcgetattr(fd)
    changed[_LOCAL] &= ~(termios.ICANON | termios.ECHO)
    changed[_CONTROL][termios.VSUSP] = b"\0"  # _POSIX_VDISABLE
    try:
        # Not TCSAFLUSH, because keys typed earlier may be meant for us.
        termios.tcsetattr(fd, termios.TCSADRAIN, changed)
        yield fd
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def pressed(fd: int) -> str | None:
    """Return the keys that wait, as characters (an arrow is several); None without any, "" if the terminal has gone."""
    if not select.select([fd], [], [], 0)[0]:
        return None
    return os.read(fd, 1024).decode(errors="replace")
