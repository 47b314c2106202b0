"""The system calls of the engine, and what a test may let happen at the n-th one: it fails, or the process ends.

The calls are replaced in the modules through which the engine makes them, so nothing of this costs anything in use. A
test compares the lists here with the calls that the engine's code contains.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest

from overlayfs_demo.linux import file_handle, syscalls
from tests.contract.engine_subject import Engine

Calls = Mapping[Any, tuple[str, ...]]

# Calls that change a filesystem, or that wait until a change is on the disk.
WRITING: Calls = {
    os: (
        "mkdir",
        "mknod",
        "symlink",
        "unlink",
        "rmdir",
        "chmod",
        "chown",
        "utime",
        "setxattr",
        "removexattr",
        "truncate",
        "ftruncate",
        "copy_file_range",
        "pwrite",
        "fsync",
        "fdatasync",
        "link",
        "fchmod",
    ),
    syscalls: ("rename", "link_path", "clone_file", "allocate", "sync_filesystem"),
    fcntl: ("ioctl",),
}
OPENING: Calls = {os: ("open", "dup"), syscalls: ("open_beneath",), file_handle: ("open_handle",)}
READING: Calls = {
    os: ("stat", "fstat", "listxattr", "getxattr", "readlink", "scandir", "listdir", "lseek", "pread"),
    file_handle: ("handle_of",),
    syscalls: ("statx",),
}


def creates(_path: object, flags: int, *_: object, **__: object) -> bool:
    """Whether an open(2) changes a filesystem."""
    return bool(flags & os.O_CREAT) or flags & os.O_TMPFILE == os.O_TMPFILE


def always(*_: object, **__: object) -> bool:
    return True


class Kind(NamedTuple):
    """System calls that fail alike. `codes` are the errors that each may fail with. Only some calls of open count."""

    calls: Calls
    codes: tuple[int, ...]
    open_counts: Callable[..., bool] = always


_WRITING_AND_CREATING: Calls = {**WRITING, os: (*WRITING[os], "open")}
KINDS = {
    "writing": Kind(_WRITING_AND_CREATING, (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.ENOMEM), creates),
    "opening": Kind(OPENING, (errno.EMFILE, errno.ENOMEM)),
    "reading": Kind(READING, (errno.EIO, errno.ENOMEM)),
}


class Killed(BaseException):
    """The process ends here. Whatever handles it can still run, but changes nothing on disk any more."""


class Injection:
    """Counts the calls of one kind while `counting`, and makes something of one of them.

    `happened` is the name of that call. `trace` lists the calls that were counted. `wrote`: before it, another call
    changed a filesystem.
    """

    def __init__(self, patch: pytest.MonkeyPatch, kind: Kind) -> None:
        self.happened = ""
        self.trace: list[str] = []
        self._remaining: int | None = None
        self._act: Callable[[], object] | None = None
        self._is_dead = False
        self._is_gone = False
        self.wrote = False
        for module, names in _WRITING_AND_CREATING.items():
            for name in names:
                patch.setattr(module, name, self._watched(getattr(module, name), creates if name == "open" else always))
        for module, names in kind.calls.items():
            for name in names:
                counts = kind.open_counts if name == "open" else always
                patch.setattr(module, name, self._wrapped(name, getattr(module, name), counts))

    def _watched(self, real: Callable[..., Any], counts: Callable[..., bool]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self.wrote = self.wrote or (not self.happened and counts(*arguments, **options))
            return real(*arguments, **options)

        return call

    def _wrapped(self, name: str, real: Callable[..., Any], counts: Callable[..., bool]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if self._is_gone and counts(*arguments, **options):
                return None
            if self._remaining is not None and counts(*arguments, **options):
                if self._is_dead:
                    raise Killed
                self.trace.append(_written(name, arguments))
                self._remaining -= 1
                if self._remaining == -1:
                    self.happened = name
                    assert self._act is not None
                    self._act()
            return real(*arguments, **options)

        return call

    @contextmanager
    def counting(self) -> Iterator[list[str]]:
        """Only record the calls."""
        with self._counting(-1, None):
            yield self.trace

    @contextmanager
    def failing(self, number: int, code: int) -> Iterator[None]:
        """Let call `number`, counted from 0, fail with this errno."""

        def fail() -> None:
            raise OSError(code, os.strerror(code))

        with self._counting(number, fail):
            yield

    @contextmanager
    def killing(self, number: int) -> Iterator[None]:
        """Let the process end before call `number`: that one and all later ones change nothing, and raise `Killed`."""

        def die() -> None:
            self._is_dead = True
            raise Killed

        with self._counting(number, die):
            yield

    def abandon(self, view: Engine) -> None:
        """Release what a killed process had open. Nothing is written to the disk."""
        self._is_gone = True
        try:
            view.stop()
        finally:
            self._is_gone = False

    @contextmanager
    def _counting(self, number: int, act: Callable[[], object] | None) -> Iterator[None]:
        self.happened, self.trace, self.wrote, self._is_dead = "", [], False, False
        self._remaining, self._act = number, act
        try:
            yield
        finally:
            self._remaining = None


def _written(name: str, arguments: tuple[object, ...]) -> str:
    """Write a call down so that equal calls of two runs are equal: without descriptors and random names."""
    shown = [
        re.sub(r"#[0-9a-f]+-[0-9a-f]+|/proc/self/fd/\d+|fd/\d+|[0-9a-f]{40,}", "#", os.fsdecode(argument))
        for argument in arguments
        if isinstance(argument, str) or (isinstance(argument, bytes) and argument.isascii())
    ]
    return f"{name}({', '.join(shown)})"
