"""A small process from which the tests fork others: `spawn`.

A fork copies the page tables of a process, and its end frees them: with all collected tests in memory that takes as
long as most of what the tests ask of the new process. So this server starts before the tests are collected, imports
the program once, and forks from then on.
"""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import select
import signal
import socket
import struct
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import IO, NoReturn

_PRELOADED = (
    "overlayfs_demo.cli.main",
    "overlayfs_demo.cli.views",
    "overlayfs_demo.cli.containers",
    "overlayfs_demo.fronts.kernel.session",
    "overlayfs_demo.images.build_record",
    "overlayfs_demo.explain.dry_run",
)
_LONGEST = 1 << 18  # of an order, in bytes
_STATUS = struct.Struct("=i")


@dataclass(frozen=True)
class _Order:
    """What a new process does, and what it takes over from the test."""

    function: Callable[..., object]
    arguments: tuple[object, ...]
    cwd: str
    environment: dict[str, str]
    temporary: str | None
    umask: int


class Spawned:
    """A process that was forked by the server: its process ID, and how it ends."""

    def __init__(self, pid: int, ending: socket.socket) -> None:
        self.pid = pid
        self._ending = ending

    def wait(self, timeout: float | None = None) -> int | None:
        """Return the exit status, negative for a signal; None if it still runs after `timeout` seconds."""
        with self._ending:
            poll = select.poll()
            poll.register(self._ending, select.POLLIN)
            if not poll.poll(None if timeout is None else timeout * 1000):
                return None
            (status,) = _STATUS.unpack(self._ending.recv(_STATUS.size))
            return os.waitstatus_to_exitcode(status)


class _Server:
    """The connection to the server's process."""

    def __init__(self) -> None:
        # Orders are whole messages, so several threads, and processes that the tests fork, may send some at a time.
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.pid = os.fork()
        if self.pid == 0:
            self._ours.close()
            _serve(theirs)
        theirs.close()

    def spawn(self, order: _Order, descriptors: Sequence[int]) -> Spawned:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            socket.send_fds(self._ours, [pickle.dumps(order)], [theirs.fileno(), *descriptors])
        (pid,) = _STATUS.unpack(ours.recv(_STATUS.size))
        return Spawned(pid, ours)


_server: _Server | None = None


def start() -> None:
    """Start the server, unless it runs."""
    global _server
    if _server is None:
        _server = _Server()


def pid() -> int | None:
    """Return the process ID of the server, if it runs."""
    return None if _server is None else _server.pid


def spawn(descriptors: Sequence[int], function: Callable[..., object], *arguments: object) -> Spawned:
    """Call `function` in a new process, with these descriptors as 0, 1, 2 and so on, and no others.

    The function and its arguments are pickled. The process has the working directory, the environment, the umask and
    the temporary directory of this one, but nothing else of it: no patched modules.
    """
    start()
    assert _server is not None
    umask = os.umask(0)
    os.umask(umask)
    return _server.spawn(
        _Order(function, arguments, os.getcwd(), dict(os.environ), tempfile.tempdir, umask), descriptors
    )


def call(function: Callable[..., object], *arguments: object) -> None:
    """Call `function` in a new process, with this one's standard streams, and wait; its exception is raised here."""
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as outcomes:
        try:
            spawn([0, 1, 2, writing], _report, function, arguments)
        finally:
            os.close(writing)
        raise_outcome(outcomes)


def _report(function: Callable[..., object], arguments: tuple[object, ...]) -> None:
    write_outcome(3, lambda: function(*arguments))


def write_outcome(pipe: int, action: Callable[[], object]) -> None:
    """Do the action in a child, and write its exception, if any, to a pipe for `raise_outcome`."""
    outcome: BaseException | None = None
    try:
        action()
    except BaseException as error:  # noqa: BLE001 - it is raised in the test
        outcome = error
    os.write(pipe, pickle.dumps(outcome))


def raise_outcome(pipe: IO[bytes]) -> None:
    """Wait for what `write_outcome` writes, and raise the exception."""
    # Not to the end of the file: a daemon may have inherited the other end.
    outcome = pickle.load(pipe)
    if outcome is not None:
        raise outcome


def _serve(connection: socket.socket) -> NoReturn:
    try:
        os.setsid()  # A terminal's SIGINT is for pytest.
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # Nobody waits for the keepers.
        for name in _PRELOADED:
            import_module(name)
        gc.collect()
        gc.freeze()
        for data, descriptors in _orders(connection):
            if os.fork() == 0:
                connection.close()
                _keep(data, descriptors)
            for fd in descriptors:
                os.close(fd)
    except BaseException:  # noqa: BLE001 - nothing of pytest may run here
        traceback.print_exc()
    finally:
        os._exit(0)


def _orders(connection: socket.socket) -> Iterator[tuple[bytes, list[int]]]:
    while True:
        data, descriptors, flags, _ = socket.recv_fds(connection, _LONGEST, 16)
        assert not flags & socket.MSG_TRUNC, f"an order has at most {_LONGEST} bytes"
        if not data:
            return
        yield data, descriptors


def _keep(data: bytes, descriptors: list[int]) -> NoReturn:
    """Fork the process, and tell the test its ID and how it ends."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with socket.socket(fileno=descriptors[0]) as ending, contextlib.suppress(BrokenPipeError):
        pid = os.fork()
        if pid == 0:
            _carry_out(data, descriptors[1:])
        ending.send(_STATUS.pack(pid))
        for fd in descriptors[1:]:
            os.close(fd)
        ending.send(_STATUS.pack(os.waitpid(pid, 0)[1]))
    os._exit(0)


def _carry_out(data: bytes, descriptors: list[int]) -> NoReturn:
    status = 1
    try:
        # First out of the way of the numbers that they get.
        moved = [os.dup(fd) for fd in descriptors]
        above = max([2, *descriptors, *moved]) + 1
        for number, fd in enumerate(moved):
            os.dup2(fd, number)
        os.closerange(max(3, len(moved)), above)
        order: _Order = pickle.loads(data)
        os.chdir(order.cwd)
        os.environ.clear()
        os.environ.update(order.environment)
        tempfile.tempdir = order.temporary
        os.umask(order.umask)
        order.function(*order.arguments)
        status = 0
    except BaseException:  # noqa: BLE001 - as an interpreter tells of it
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)
