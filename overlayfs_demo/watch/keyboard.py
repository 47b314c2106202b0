"""Single key presses from the terminal, without echo; afterwards the terminal is as it was."""

from __future__ import annotations

import os
import select
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager

_LOCAL, _CONTROL = 3, 6  # Where termios.tcgetattr has what termios(3) calls c_lflag and c_cc.


@contextmanager
def keys() -> Iterator[int | None]:
    """While inside, each key can be read at once from the descriptor that is given, and is not shown.

    None if stdin is no terminal. Ctrl-C interrupts as ever; Ctrl-Z does nothing, for a stopped program could not
    give the screen back.
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
        # Not TCSAFLUSH: what was typed before may be meant for us.
        termios.tcsetattr(fd, termios.TCSADRAIN, changed)
        yield fd
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def pressed(fd: int) -> str | None:
    """The keys that wait, as characters (an arrow is several), None if there is none; "" if the terminal has gone."""
    if not select.select([fd], [], [], 0)[0]:
        return None
    return os.read(fd, 1024).decode(errors="replace")
