"""The output of a verb that writes an archive: the file of --output, or stdout.

A regular file is replaced in one step, so that nobody sees half of it. Anything else (a device, a FIFO, a descriptor
such as /dev/stdout) is written to directly, because it is not ours to replace.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from overlayfs_demo.errors import ImageError, UsageError, printable
from overlayfs_demo.linux import proc, syscalls, xattr
from overlayfs_demo.overlay import acl


def add_output(verb: argparse.ArgumentParser, *, required: bool = False) -> None:
    """Give the verb the option --output, whose value `output` takes."""
    default = "" if required else " (default: stdout)"
    verb.add_argument("--output", "-o", type=Path, required=required, metavar="FILE", help=f"output file{default}")


@contextmanager
def output(path: Path | None) -> Iterator[BinaryIO]:
    """Give a stream to write the result to; None means stdout. Raises ImageError, and UsageError for a terminal.

    A file that is replaced keeps its permissions and, if we may set it, its owner. If the caller raises, the file stays
    as it was.
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
        # From here on only the descriptor counts, whatever happens to the name.
        if stat.S_ISREG(os.fstat(there).st_mode):
            with _replacing(Path(os.fsdecode(os.readlink(proc.fd_path(there)))), there, made=dangling) as stream:
                yield stream
        else:
            with _straight(os.open(proc.fd_path(there), os.O_WRONLY | os.O_NOCTTY)) as stream:
                yield stream
    finally:
        os.close(there)


def _own_descriptor(path: Path) -> int | None:
    """Return the descriptor of this process that a path such as /dev/stdout stands for; None for other paths.

    A file opened by such a path would be written from its start, over what others wrote: proc_pid_fd(5). The
    descriptor itself continues where they stopped.
    """
    ours = os.path.realpath("/proc/self/fd")
    for _ in range(syscalls.MOST_LINKS):
        directory = os.path.realpath(path.parent)
        if directory == ours and path.name.isdigit():
            return int(path.name)
        if not path.is_symlink():
            break
        path = Path(directory, os.readlink(path))
    return None


def _look(path: Path) -> int | None:
    """Return an O_PATH descriptor of what is there, which the caller closes; None if nothing is.

    The kernel follows symbolic links for us, because it knows which are safe to follow: proc_sys_fs(5),
    protected_symlinks. So it also makes the file to which a dangling link leads.
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
    """Give a stream into the open file, and close it at the end."""
    with os.fdopen(fd, "wb") as stream:
        _refuse_terminal(stream)
        yield stream


@contextmanager
def _replacing(path: Path, before: int | None, *, made: bool = False) -> Iterator[BinaryIO]:
    """Give a stream into a new file, which replaces `path` at the end.

    `before` is a descriptor of the present file. `made` says that we have just made that file; it is then removed if
    the caller raises.
    """
    unfinished = path.with_name(f".overlayfs-demo-{os.urandom(8).hex()}.unfinished")
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

    It gets no set-id bits, because a write would also drop those.
    """
    status = os.fstat(like)
    for ids in ((-1, status.st_gid), (status.st_uid, -1)):
        # Only root may give files away, and only to an owner whom its user namespace maps.
        with contextlib.suppress(OSError):
            os.fchown(fd, *ids)
    os.fchmod(fd, status.st_mode & 0o777)
    # If there is an ACL, the group bits of the mode are its mask: acl(5). Without the ACL they could allow too much.
    wanted = xattr.get(proc.fd_path(like), acl.ACCESS, follow=True)
    if wanted is not None:
        os.setxattr(fd, acl.ACCESS, wanted)
