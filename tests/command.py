"""Runs `overlayfs-demo` without a new interpreter: in this process, or in a fork of it.

A new interpreter needs longer to import the program than the program needs for most of what the tests ask. `call`
waits for the end; `started` is a process with its own streams, to talk to and to signal. Only what is about the
interpreter, or about what it inherits, starts one with subprocess.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import io
import logging
import os
import signal
import subprocess
import sys
import tempfile
import termios
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NoReturn
from unittest import mock

from overlayfs_demo.cli.main import main
from overlayfs_demo.ui.console import PROGRAM
from tests import fork_server

# These leave a daemon, fork, handle signals or serve: they need a process of their own.
_FORKED = frozenset(
    (
        "mount",
        "create",
        "start",
        "watch",
        "explain",
        "serve",
        "shell",
        "tour",
        "lab",
        "lecture",
        "cp",
        "run",
        "exec",
        "rename",
        "container",
    )
)


def call(
    arguments: Sequence[str], environment: Mapping[str, str], timeout: float, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """What `overlayfs-demo` does with these arguments, as subprocess.run tells it. Its stdin is empty.

    Raises subprocess.TimeoutExpired after `timeout` seconds, but only for a verb that gets its own process.
    """
    run = _run_forked if arguments and arguments[0] in _FORKED else _run_here
    return _completed(run, arguments, environment, timeout, cwd)


def call_as_patched(arguments: Sequence[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """The same, but always in this process, with what the test has patched in the program."""
    return _completed(_run_here, arguments, environment, 0.0, None)


def _completed(
    run: Callable[[Sequence[str], BinaryIO, BinaryIO, float], int],
    arguments: Sequence[str],
    environment: Mapping[str, str],
    timeout: float,
    cwd: Path | None,
) -> subprocess.CompletedProcess[str]:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        with mock.patch.dict(os.environ, environment), contextlib.chdir(cwd) if cwd else contextlib.nullcontext():
            status = run(arguments, out, err, timeout)
        return subprocess.CompletedProcess([PROGRAM, *arguments], status, _text(out), _text(err))


def started(
    arguments: Sequence[str | Path], environment: Mapping[str, str] | None = None, **options: Any
) -> subprocess.Popen[Any]:
    """`overlayfs-demo` with these arguments, running; `environment` and `options` are what subprocess.Popen takes.

    With the option `owns_terminal`, its stdin is the controlling terminal of its own session: ioctl_tty(2), TIOCSCTTY.

    The process lives in the function that Popen calls just before it would become another program.
    """
    words = [str(word) for word in arguments]
    owns_terminal = options.pop("owns_terminal", False)

    def become() -> None:
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))  # Popen's own, too, from which it learns that the process runs.
        if environment is not None:
            os.environ.clear()
            os.environ.update(environment)
        if owns_terminal:
            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        _live(words)

    # Python itself ignores the signals that Popen would restore.
    return subprocess.Popen([PROGRAM, *words], preexec_fn=become, restore_signals=False, **options)


def _text(written: BinaryIO) -> str:
    written.seek(0)
    with io.TextIOWrapper(written, "utf-8") as text:
        return text.read()


def _run_here(arguments: Sequence[str], out: BinaryIO, err: BinaryIO, _timeout: float) -> int:
    root = logging.getLogger()
    # main() adds a handler where there is none, and pytest has some.
    handlers, root.handlers = root.handlers, []
    try:
        with Path(os.devnull).open("rb") as nothing, _streams(nothing.fileno(), out.fileno(), err.fileno()):
            return _status(arguments)
    finally:
        root.handlers = handlers


def _status(arguments: Sequence[str]) -> int:
    with mock.patch.object(sys, "argv", [PROGRAM, *arguments]):
        try:
            return main()
        except SystemExit as end:  # argparse's, always with a number.
            return int(end.code or 0)


@contextlib.contextmanager
def _streams(*descriptors: int) -> Iterator[None]:
    """Let these be stdin, stdout and stderr, with the encoding of the locale C.UTF-8. They stay open."""
    kinds = (("stdin", "r", "surrogateescape"), ("stdout", "w", "surrogateescape"), ("stderr", "w", "backslashreplace"))
    with contextlib.ExitStack() as stack:
        for fd, (name, mode, errors) in zip(descriptors, kinds, strict=True):
            buffering = 1 if name == "stderr" else -1  # An interpreter's stderr is written line by line.
            stream = stack.enter_context(os.fdopen(fd, mode, buffering, "utf-8", errors, closefd=False))
            for attribute in (name, f"__{name}__"):
                stack.enter_context(mock.patch.object(sys, attribute, stream))
        yield


def _run_forked(arguments: Sequence[str], out: BinaryIO, err: BinaryIO, timeout: float) -> int:
    with Path(os.devnull).open("rb") as nothing:
        process = fork_server.spawn([nothing.fileno(), out.fileno(), err.fileno()], _live, list(arguments))
    status = process.wait(timeout)
    if status is None:
        os.kill(process.pid, signal.SIGKILL)
        raise subprocess.TimeoutExpired([PROGRAM, *arguments], timeout)
    return status


def _live(arguments: Sequence[str]) -> NoReturn:
    """The life of the forked process, whose descriptors 0, 1 and 2 are its streams."""
    status = 1
    try:
        gc.freeze()  # The collector would touch, and thus copy, all memory that is shared with the parent.
        logging.getLogger().handlers.clear()
        with _streams(0, 1, 2):
            try:
                status = _status(arguments)
            except BaseException:  # noqa: BLE001 - as an interpreter tells of it
                traceback.print_exc()
    finally:
        os._exit(status)
