"""Two programs side by side in one terminal, by tmux(1) with a server of its own.

The server ends with the first of the two programs, and so does what the person sees. Their own tmux and its settings
are not touched, also if this runs inside it.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import termios
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from overlayfs_demo.errors import OverlayError, printable
from overlayfs_demo.tour.stage import undisturbed
from overlayfs_demo.tour.survivor import survives
from overlayfs_demo.ui.console import put

# How long to wait for the client and the server after they were told to end, in seconds.
_TIMEOUT = 10.0
_SESSION = "overlayfs-demo"
_LONGEST_SOCKET = 107  # bytes of a path: unix(7)
# `destroy-unattached`: a terminal that is closed takes everything with it.
_SETTINGS = """
set -g mouse on
set -g default-terminal screen-256color
set -sg escape-time 20
set -g destroy-unattached on
set -g status-style reverse
set -g status-left '{hint}'
set -g status-left-length 200
set -g status-right ''
set -g window-status-format ''
set -g window-status-current-format ''
bind -n F2 select-pane -t :.+
set-hook -g pane-exited 'kill-session -t {session}'
"""
# A server that is killed cannot do this itself: leave the second screen, show the cursor, no mouse, plain text.
_RESTORE = "\x1b[?1049l\x1b[?25h\x1b[?1000l\x1b[?1002l\x1b[?1006l\x1b[?2004l\x1b[0m\r\n"


@dataclass(frozen=True, slots=True)
class Side:
    """What runs in one half of the terminal."""

    words: Sequence[str]
    environment: Mapping[str, str]


def check_tmux() -> None:
    """Raise OverlayError if tmux is not installed."""
    if shutil.which("tmux") is None:
        raise OverlayError("tmux, which splits the terminal, is not installed", "install it with 'apt install tmux'")


def show(left: Side, right: Side, room: Path, start_in: Path, hint: str) -> None:
    """Show two programs side by side, the left one in front, until one of them ends. Raises OverlayError.

    `room` is a directory for the socket and the settings, and the last line of the terminal is the `hint`. Afterwards
    nothing runs any more, whatever happens: if this process is killed, another one returns from here (`survives`).
    """
    settings, socket = room / "tmux.conf", room / "tmux"
    if len(os.fsencode(socket)) > _LONGEST_SOCKET:
        raise OverlayError(f"the path {printable(str(socket))} is too long for a socket", "set TMPDIR to a shorter one")
    settings.write_text(_SETTINGS.format(hint=hint, session=_SESSION))
    # tmux refuses to run inside tmux unless it does not know.
    environment = {name: value for name, value in os.environ.items() if name not in ("TMUX", "TMUX_PANE")}
    # -u: both sides write UTF-8, in any locale.
    tmux = _Tmux(("tmux", "-u", "-S", str(socket)), environment)
    words = ("-f", str(settings), *_commands(left, right, start_in))
    if not survives(lambda: _attach(tmux, words)):
        tmux.end()


def _attach(tmux: _Tmux, words: Sequence[str]) -> None:
    """Run tmux with these words until it ends. Raises OverlayError if it complains."""
    before = termios.tcgetattr(sys.stdin)
    client = subprocess.Popen([*tmux.words, *words], env=tmux.environment, stderr=subprocess.PIPE)
    try:
        complaint = client.communicate()[1].decode(errors="replace").strip()
    finally:
        with undisturbed():
            tmux.end()
            _end(client)
            _restore(before, screen=client.returncode != 0)
    if complaint:
        raise OverlayError(f"tmux: {printable(complaint)}", "see tmux(1)")


@dataclass(frozen=True, slots=True)
class _Tmux:
    """The words by which tmux finds our server, and the environment that it needs."""

    words: tuple[str, ...]
    environment: Mapping[str, str]

    def end(self) -> None:
        """End the server, if it is running, and everything in it."""
        server = self._server()
        self._ask("kill-server")
        if server is not None:
            try:
                if not select.select([server], [], [], _TIMEOUT)[0]:
                    signal.pidfd_send_signal(server, signal.SIGKILL)
            finally:
                os.close(server)

    def _server(self) -> int | None:
        """Return a pidfd of the server; None if it does not answer."""
        try:
            return os.pidfd_open(int(self._ask("display-message", "-p", "#{pid}")))
        except (ValueError, ProcessLookupError):
            return None

    def _ask(self, *words: str) -> str:
        """Return what a command of tmux prints; "" if there is no server, or it does not answer in time."""
        command = [*self.words, *words]
        try:
            done = subprocess.run(command, env=self.environment, capture_output=True, check=False, timeout=_TIMEOUT)
        except subprocess.TimeoutExpired:
            return ""
        return done.stdout.decode(errors="replace")


def _restore(settings: list[Any], *, screen: bool) -> None:
    """Restore the terminal's settings, and its screen if tmux did not."""
    # A terminal that was closed has neither.
    with contextlib.suppress(OSError, termios.error):
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, settings)
        if screen:
            put(_RESTORE)


def _end(client: subprocess.Popen[bytes]) -> None:
    """Wait for the client, which ends with its server."""
    try:
        client.wait(_TIMEOUT)
    except subprocess.TimeoutExpired:
        client.kill()
        client.wait()


def _commands(left: Side, right: Side, start_in: Path) -> list[str]:
    """Return tmux's commands that make the two sides, and go to the left one."""
    directory = ["-c", str(start_in)]
    return [
        *("new-session", "-s", _SESSION, *directory, *_words(left), ";"),
        *("split-window", "-h", *directory, *_words(right), ";"),
        *("select-pane", "-L"),
    ]


def _words(side: Side) -> list[str]:
    """Return the program of a side, in words that tmux takes; to it, a word that ends in `;` ends a command."""
    variables = [f"{name}={value}" for name, value in side.environment.items()]
    return [word[:-1] + "\\;" if word.endswith(";") else word for word in ("env", *variables, *side.words)]
