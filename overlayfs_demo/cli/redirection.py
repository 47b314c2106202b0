"""The check that a command's own output does not go to a view.

The shell opens the file of a redirection before the command begins, and `>` has then emptied it already.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import stat
from collections.abc import Sequence

from overlayfs_demo.errors import UsageError, printable
from overlayfs_demo.linux import proc
from overlayfs_demo.mounts import registry

# stderr comes first, because the reason is printed there.
_STREAMS = ((2, "error output", "2"), (1, "output", ""))


def check_outside_views(command: Sequence[str]) -> None:
    """Check that stdout and stderr are no files in a view. Raises UsageError, which says how to redirect `command`."""
    for fd, stream, number in _STREAMS:
        if not _is_file_in_view(fd):
            continue
        if fd == 2:
            _speak_to_terminal()
        appends = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_APPEND
        path = os.fsdecode(os.readlink(proc.fd_path(fd)))
        sign, done = (f"{number}>>", "opened it") if appends else (f"{number}>", "emptied it")
        quoted = shlex.quote(f"{shlex.join(command)} {sign} {shlex.quote(path)}")
        raise UsageError(
            f"the {stream} goes to {printable(path)}, which is in a view: the shell {done} before this command began",
            f"to see what the redirection does, let the command make it: sh -c {printable(quoted)}",
        )


def _is_file_in_view(fd: int) -> bool:
    try:
        return registry.is_in_view(fd) and stat.S_ISREG(os.fstat(fd).st_mode)
    except FileNotFoundError:
        return False  # The stream is closed.


def _speak_to_terminal() -> None:
    """Let stderr lead to the terminal, if there is one, because the reason would be written to the view."""
    with contextlib.suppress(OSError):
        fd = os.open("/dev/tty", os.O_WRONLY | os.O_NOCTTY)
        os.dup2(fd, 2)
        os.close(fd)
