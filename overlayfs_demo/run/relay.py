"""The standard streams of a process in a container, carried by pipes or a terminal of its own.

A process that holds a descriptor can change the file behind it: with fchmod(2), through /proc/self/fd/N
(proc_pid_fd(5)), or by typing into a terminal. So it gets other descriptors than ours, and threads copy between them.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import signal
import socket
import struct
import termios
import threading
import tty
from collections.abc import Callable
from types import FrameType

from overlayfs_demo.linux import syscalls

_CHUNK = 1 << 16


class Relay:
    """The streams of one process, for use in a `with`, which ends when all its output has been copied.

    `theirs` are the descriptors that become its standard streams. For a terminal they are a socket, through which the
    process sends us the terminal that it has opened in the container.
    """

    def __init__(self, *, interactive: bool, terminal: bool) -> None:
        self._files = contextlib.ExitStack()
        self._outputs: list[threading.Thread] = []
        self._inputs: list[threading.Thread] = []
        self._routes: list[tuple[int, int]] = []
        self.theirs: tuple[int, ...] = ()
        self._wake, self._waken = os.pipe()
        self._source = 0 if interactive else None
        self._terminal = self._to = -1
        self._channel: socket.socket | None = None
        # Why the output could not be written, if that is so. A reader that has gone is no failure.
        self.failure: OSError | None = None
        if terminal:
            self._channel, theirs = socket.socketpair()
            self.theirs = (theirs.detach(),) * 3
        else:
            self._open_pipes()

    def _open_pipes(self) -> None:
        theirs, self._to = os.pipe()
        out_reading, out = os.pipe()
        error_reading, error = os.pipe()
        self.theirs = (theirs, out, error)
        self._routes = [(out_reading, 1), (error_reading, 2)]

    def _receive_terminal(self, channel: socket.socket) -> None:
        """Wait for the terminal. If none comes, the process has failed; what it wrote instead goes to our stderr."""
        descriptors: list[int] = []
        while not descriptors:
            said, descriptors, _, _ = socket.recv_fds(channel, _CHUNK, 1)
            if not said:
                return
            if not descriptors:
                syscalls.write_all(2, said)
        self._terminal = descriptors[0]
        self._to = os.dup(self._terminal)
        self._routes = [(self._terminal, 1)]

    def __enter__(self) -> Relay:
        return self

    def start(self, end: Callable[[], None]) -> None:
        """Close what the process has now, and begin to copy. Call after the fork, because this starts threads.

        `end` is called if whoever reads our output has gone. SIGPIPE cannot end the process: it is the first of its
        namespace, pid_namespaces(7).
        """
        for fd in set(self.theirs):
            os.close(fd)
        self.theirs = ()
        if self._channel is not None:
            with self._channel as channel:
                self._receive_terminal(channel)
            if self._terminal < 0:
                return
            if os.isatty(0):
                self._show_terminal()
        if self._source is None:
            os.close(self._to)
        else:
            self._inputs.append(threading.Thread(target=self._copy_input, daemon=True))
        self._outputs += [
            threading.Thread(target=self._copy_output, args=(*route, end), daemon=True) for route in self._routes
        ]
        for thread in (*self._inputs, *self._outputs):
            thread.start()

    def _show_terminal(self) -> None:
        """Let our terminal pass on every key, and let theirs have its size."""
        before = termios.tcgetattr(0)
        tty.setraw(0)
        self._files.callback(termios.tcsetattr, 0, termios.TCSADRAIN, before)
        self._resize(0, None)
        handler = signal.signal(signal.SIGWINCH, self._resize)
        self._files.callback(signal.signal, signal.SIGWINCH, handler)

    def _resize(self, _number: int, _frame: FrameType | None) -> None:
        with contextlib.suppress(OSError):
            size = fcntl.ioctl(0, termios.TIOCGWINSZ, struct.pack("4H", 0, 0, 0, 0))
            fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, size)

    def _copy_input(self) -> None:
        # It is not closed at the end of a terminal's input, because the terminal is also read from.
        with contextlib.suppress(OSError):
            while True:
                ready, _, _ = select.select([0, self._wake], [], [])
                data = os.read(0, _CHUNK) if self._wake not in ready else b""
                if not data:
                    break
                syscalls.write_all(self._to, data)
        os.close(self._to)

    def _copy_output(self, source: int, target: int, end: Callable[[], None]) -> None:
        """Copy until the last writer has gone, which for a terminal is the error EIO."""
        with contextlib.suppress(OSError):
            while data := os.read(source, _CHUNK):
                try:
                    syscalls.write_all(target, data)
                except OSError as error:
                    self.failure = None if error.errno == errno.EPIPE else error
                    end()
                    break
        os.close(source)

    def __exit__(self, *_: object) -> None:
        for fd in set(self.theirs):
            os.close(fd)
        for thread in self._outputs:
            thread.join()
        os.close(self._waken)
        for thread in self._inputs:
            thread.join(1.0)
        os.close(self._wake)
        self._files.close()
