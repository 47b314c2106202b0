"""The standard streams, which our caller may have closed (`>&-`)."""

from __future__ import annotations

import os
import sys


def open_missing_streams() -> None:
    """Occupy the numbers of closed standard streams, so that no other file gets one of them. Call this first.

    Reading stdin and writing to stdout then fail with EBADF, as they do for other programs: the C library opens them
    the wrong way round like this for set-user-ID programs. Messages to a closed stderr disappear.
    """
    for number, name, flags in ((0, "stdin", os.O_WRONLY), (1, "stdout", os.O_RDONLY), (2, "stderr", os.O_WRONLY)):
        if getattr(sys, name) is not None:
            continue
        fd = os.open(os.devnull, flags)
        if fd != number:
            os.dup2(fd, number)
            os.close(fd)
        os.set_inheritable(number, True)
        stream = open(number, "w" if number else "r", errors="surrogateescape", closefd=False)  # noqa: SIM115
        setattr(sys, name, stream)


def abandon_output() -> None:
    """Let what is still to be written to stdout disappear: Python flushes again at exit, and that must not fail."""
    fd = os.open(os.devnull, os.O_WRONLY)
    os.dup2(fd, sys.stdout.fileno())
    os.close(fd)
