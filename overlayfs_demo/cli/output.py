"""Where a verb writes its result: the file of --output, or stdout.

A regular file is replaced in one step, so it is there only when it is whole. Anything else (a device, a FIFO, a
descriptor such as /dev/stdout) is written straight into, because it is not ours to replace.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from overlayfs_demo.errors import ImageError, UsageError, printable
from overlayfs_demo.linux import syscalls
from overlayfs_demo.overlay import acl

# As many symbolic links as the kernel follows: path_resolution(7).
_MOST_LINKS = 40


def add_output(verb: argparse.ArgumentParser, *, required: bool = False) -> None:
    """Let the verb take --output, whose value goes to `output`."""
    default = "" if required else " (default: stdout)"
    verb.add_argument("--output", "-o", type=Path, required=required, metavar="FILE", help=f"output file{default}")


@contextmanager
def output(path: Path | None) -> Iterator[BinaryIO]:
    """Give a stream to write the result to; None is stdout. Raises UsageError for a terminal, ImageError.

    A file that is replaced keeps its permissions and, where we may set it, its owner. It stays what it
    was if the caller raises.
    """
    if path is None:
        _refuse_terminal(sys.stdout.buffer)
        yield sys.stdout.buffer
        sys.stdout.flush()
        return
    try:
        with _opened(path) as stream:
            yield stream
    except BrokenPipeError:
        raise
    except OSError as error:
        raise ImageError(f"{printable(str(path))}: {error.strerror}", "choose another --output") from error


def _refuse_terminal(stream: BinaryIO) -> None:
    if stream.isatty():
        raise UsageError(
            "refusing to write an archive to a terminal", "name a file with --output, or redirect the output"
        )


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    number = _own_descriptor(path)
    if number is not None:
        with _straight(os.dup(number)) as stream:
            yield stream
        return
    dangling = path.is_symlink() and not path.exists()
    there = _look(path)
    if there is None:
        with _replacing(path, None) as stream:
            yield stream
        return
    try:
        # From here on the descriptor says what is meant, whatever becomes of the name.
        if stat.S_ISREG(os.fstat(there).st_mode):
            with _replacing(Path(os.fsdecode(os.readlink(syscalls.fd_path(there)))), there, made=dangling) as stream:
                yield stream
        else:
            with _straight(os.open(syscalls.fd_path(there), os.O_WRONLY | os.O_NOCTTY)) as stream:
                yield stream
    finally:
        os.close(there)


def _own_descriptor(path: Path) -> int | None:
    """The descriptor of this process that a path such as /dev/stdout stands for; None for other paths.

    A file that is opened by such a path is written from its start, over what others wrote: proc_pid_fd(5). The
    descriptor itself goes on where they stopped.
    """
    ours = os.path.realpath("/proc/self/fd")
    for _ in range(_MOST_LINKS):
        directory = os.path.realpath(path.parent)
        if directory == ours and path.name.isdigit():
            return int(path.name)
        if not path.is_symlink():
            break
        path = Path(directory, os.readlink(path))
    return None


def _look(path: Path) -> int | None:
    """A descriptor (O_PATH) of what is there; None if there is nothing. The result is the caller's to close.

    The kernel follows symbolic links for us, because it knows which are safe to follow: proc_sys_fs(5),
    protected_symlinks. So it also makes the file that a dangling one leads to.
    """
    try:
        return os.open(path, os.O_PATH)
    except FileNotFoundError:
        if not path.is_symlink():
            return None
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK, 0o666))
        return os.open(path, os.O_PATH)


@contextmanager
def _straight(fd: int) -> Iterator[BinaryIO]:
    """A stream into the open file, which it closes."""
    with os.fdopen(fd, "wb") as stream:
        _refuse_terminal(stream)
        yield stream


@contextmanager
def _replacing(path: Path, before: int | None, *, made: bool = False) -> Iterator[BinaryIO]:
    """A stream into a new file, which takes the place of `path` in the end.

    `before` is a descriptor of what is there; `made` says that we have just made that, so it goes if the caller raises.
    """
    unfinished = path.with_name(f".overlayfs-demo-{secrets.token_hex(8)}.unfinished")
    fd = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666 if before is None else 0o600)
    try:
        with os.fdopen(fd, "wb") as stream:
            if before is not None:
                _dress(fd, before)
            yield stream
        unfinished.rename(path)
    except BaseException:
        if made:
            path.unlink(missing_ok=True)
        raise
    finally:
        unfinished.unlink(missing_ok=True)


def _dress(fd: int, like: int) -> None:
    """Give an empty file the owner, the permissions and the ACL of another.

    It gets no set-id bits: a write drops those, too.
    """
    status = os.fstat(like)
    for ids in ((-1, status.st_gid), (status.st_uid, -1)):
        # Only root gives files away, and not in a user namespace that lacks the owner.
        with contextlib.suppress(OSError):
            os.fchown(fd, *ids)
    os.fchmod(fd, status.st_mode & 0o777)
    # Where there is an ACL, the group's bits of the mode are its mask: acl(5). Alone they could say too much.
    wanted = syscalls.get_xattr(syscalls.fd_path(like), acl.ACCESS, follow=True)
    if wanted is not None:
        os.setxattr(fd, acl.ACCESS, wanted)
