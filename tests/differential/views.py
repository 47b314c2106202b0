"""What does a whole view show, and where do two views differ?"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Container
from typing import Any

from tests.differential.sides import Side

View = dict[bytes, tuple[Any, ...]]


def shown(side: Side) -> View:
    """Every object of the view by its path, with all that can be compared of it. As root."""
    found: View = {}
    with side.inside(False):
        _collect(side, b".", found)
    return found


def _collect(side: Side, path: bytes, found: View) -> None:
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return  # A stray whiteout.
    except OSError as error:
        found[path[2:]] = (_errno(error), *[None] * (len(_FIELDS) - 1))
        return
    found[path[2:]] = (*side.trimmed(status), _answer(lambda: _detail(path, status)), _answer(lambda: _xattrs(path)))
    if stat.S_ISDIR(status.st_mode):
        for name in _answer(lambda: sorted(os.listdir(path))):
            _collect(side, os.path.join(path, name), found)


def _answer(ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except OSError as error:
        return (_errno(error),)


def _errno(error: OSError) -> bytes:
    return f"error {errno.errorcode.get(error.errno or 0)}".encode()


def _detail(path: bytes, status: os.stat_result) -> Any:
    if stat.S_ISREG(status.st_mode):
        return _data(path)
    return os.readlink(path) if stat.S_ISLNK(status.st_mode) else None


def _xattrs(path: bytes) -> tuple[tuple[str, bytes], ...]:
    names = sorted(os.listxattr(path, follow_symlinks=False))
    return tuple((name, os.getxattr(path, name, follow_symlinks=False)) for name in names)


def _data(path: bytes) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    try:
        return os.read(fd, 1 << 22)
    finally:
        os.close(fd)


_FIELDS = ("mode", "uid", "gid", "rdev", "size", "nlink", "mtime", "content", "xattrs")


def differences(kernel: View, ours: View, ignored: Container[str] = ()) -> list[tuple[str, str]]:
    """What differs, each as a short kind and a sentence. Some fields may be `ignored`."""
    found: list[tuple[str, str]] = []
    for path in sorted({*kernel, *ours}):
        if path not in ours:
            found.append(("missing", f"{path!r}: only the kernel has it: {kernel[path]}"))
        elif path not in kernel:
            found.append(("extra", f"{path!r}: only we have it: {ours[path]}"))
        else:
            for field, theirs, mine in zip(_FIELDS, kernel[path], ours[path], strict=True):
                if theirs != mine and field not in ignored:
                    found.append((field, f"{path!r}: {field} is {_cut(theirs)} in the kernel, {_cut(mine)} in ours"))
    return found


def _cut(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 200 else f"{text[:200]}… ({len(value)})"
