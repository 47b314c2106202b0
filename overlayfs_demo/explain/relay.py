"""A relay between the standard streams and a command that must not hold their descriptors.

The command gets the ends of pipes, and the relay copies between those and our standard streams. A process that holds
a descriptor can change the file behind it, even if it can reach that by no path: with fchmod(2), through
/proc/self/fd/N (proc_pid_fd(5)), or by typing into a terminal (TIOCSTI).
"""

from __future__ import annotations

import fcntl
import os
import select
import stat
import struct
import sys
import termios
from io import FileIO

from overlayfs_demo.linux import syscalls

_CHUNK = 1 << 16


def relay(given: FileIO, gives: FileIO, shown: FileIO) -> None:
    """Copy standard input to the pipe `gives`, and the pipe `shown` to standard error, until `shown` has no writer.

    `given` is the other end of `gives`, which is closed when our input ends. If the input is a file, what the command
    has not read is put back, so that `while read name; do …; done <names` loses nothing; a pipe or a terminal cannot
    take anything back. Raises OSError.
    """
    unsent = b""
    source = _input()
    if source is None:
        gives.close()
    else:
        os.set_blocking(gives.fileno(), False)
    while True:
        ready = _wait(shown.fileno(), None if unsent else source, gives.fileno() if unsent else None)
        if shown.fileno() in ready:
            data = os.read(shown.fileno(), _CHUNK)
            if not data:
                break
            _write_error(data)
        if source in ready:
            unsent = os.read(source, _CHUNK) if source is not None else b""
            if not unsent:
                source = None
                gives.close()
        elif unsent and gives.fileno() in ready:
            unsent = unsent[gives.write(unsent) or 0 :]
    _put_back(_unread(given) + len(unsent))


def _input() -> int | None:
    """Return our standard input, or None if it is closed, or a terminal in whose background we run.

    Reading from such a terminal would stop this process (SIGTTIN).
    """
    if sys.__stdin__ is None or (os.isatty(0) and os.tcgetpgrp(0) != os.getpgrp()):
        return None
    return 0


def _wait(shown: int, source: int | None, gives: int | None) -> set[int | None]:
    """Wait, and return the descriptors that can be read or written now. For files poll(2) returns at once."""
    poll = select.poll()
    poll.register(shown, select.POLLIN)
    if source is not None:
        poll.register(source, select.POLLIN)
    if gives is not None:
        poll.register(gives, select.POLLOUT)
    return {fd for fd, _ in poll.poll()}


def _write_error(data: bytes) -> None:
    if sys.__stderr__ is not None:
        syscalls.write_all(2, data)


def _unread(pipe: FileIO) -> int:
    """Return the number of unread bytes in a pipe: FIONREAD in pipe(7)."""
    return int(struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, b"\0" * 4))[0])


def _put_back(count: int) -> None:
    if count and stat.S_ISREG(os.fstat(0).st_mode):
        os.lseek(0, -count, os.SEEK_CUR)
