"""A terminal of its own for `overlayfs-demo`, on which a test types what it sees fit, when it sees fit."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self

from overlayfs_demo.ui.console import PROGRAM
from tests.command import started
from tests.conftest import PATIENCE
from tests.places import BIN, MINUTE

_STYLE = re.compile(r"\x1b\[[0-9;?]*[A-Za-ln-z]|\x1b\[[0-9;]*m|\x1b[()][A-Z0-9]")
CLEAR = "\x1b[H\x1b[2J"


def as_user(user: int) -> tuple[str, ...]:
    """The words that run a command as this user, without privilege but one: only root may be able to read this."""
    capability = "+dac_read_search"
    ids = (f"--reuid={user}", f"--regid={user}", "--clear-groups")
    return ("setpriv", *ids, f"--inh-caps={capability}", f"--ambient-caps={capability}")


class Terminal:
    """A process whose controlling terminal this is; it is killed if it does not end in the `with`."""

    def __init__(
        self,
        *words: str | Path,
        rows: int = 24,
        columns: int = 80,
        settings: Mapping[str, str] = MappingProxyType({}),
        user: int | None = None,
    ) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.theirs = theirs
        self.before = termios.tcgetattr(theirs)
        self.written = ""
        self.process: subprocess.Popen[bytes]
        own = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS", "LINES")}
        environment: Mapping[str, str] = {
            **own,
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "LC_ALL": "C.UTF-8",
            "TERM": "xterm-256color",
            "SHELL": "/bin/sh",
            **settings,
        }
        if user is None:
            self.process = started(words, environment, owns_terminal=True, stdin=theirs, stdout=theirs, stderr=theirs)
            return
        os.fchown(theirs, user, -1)
        self.process = subprocess.Popen(
            [*as_user(user), "setsid", "--ctty", BIN / PROGRAM, *words],
            env=environment,
            cwd="/",
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(MINUTE)
        for fd in (self._ours, self.theirs):
            with contextlib.suppress(OSError):
                os.close(fd)

    @property
    def text(self) -> str:
        """What was written, without styles and movements; a cleared screen is a form feed."""
        return _STYLE.sub("", self.written.replace(CLEAR, "\f")).replace("\r\n", "\n")

    def shows(self, pattern: str) -> None:
        """Read until the pattern has been written."""
        self._read(lambda: re.search(pattern, self.text) is not None, pattern)

    def press(self, keys: str) -> None:
        """Type, and forget what was written until now."""
        self.written = ""
        os.write(self._ours, keys.encode())

    def close(self) -> None:
        """Take the terminal away, as a window that is closed does."""
        os.close(self.theirs)
        os.close(self._ours)

    def ends(self, status: int) -> None:
        """The process ends, and the terminal's settings are as they were."""
        self._read(lambda: self.process.poll() is not None and not select.select([self._ours], [], [], 0)[0], "the end")
        assert self.process.returncode == status, self.text
        assert "Traceback" not in self.written
        assert termios.tcgetattr(self.theirs) == self.before

    def _read(self, enough: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + 4 * PATIENCE
        while not enough():
            assert time.monotonic() < deadline, f"{what} is not in {self.text!r}"
            if select.select([self._ours], [], [], 0.1)[0]:
                self.written += os.read(self._ours, 1 << 16).decode(errors="replace")


def solve_whiteout(screen: Terminal) -> None:
    """Do what a learner types in the lab `whiteout`, and see it checked inside and at the end."""
    screen.shows(r"lab whiteout\$ $")
    screen.press("rm merged/notes; overlayfs-demo lab --check\r")
    screen.shows(r"Leave the shell with Ctrl-D\.[\s\S]*lab whiteout\$ $")
    screen.press("\x04")
    screen.shows("Solved")
    screen.ends(0)
