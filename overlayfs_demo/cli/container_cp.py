"""The verb `cp`, which copies between a container and this machine by the rules of `docker cp`."""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from overlayfs_demo.cli.command import Verbs
from overlayfs_demo.cli.store_options import add_verb, store_of
from overlayfs_demo.errors import MountError, UsageError, printable
from overlayfs_demo.linux.failure import failure
from overlayfs_demo.store.container import Container
from overlayfs_demo.store.container_state import root_of
from overlayfs_demo.store.containers import Containers
from overlayfs_demo.store.copy_tar import is_directory, read_tar, write_tar
from overlayfs_demo.store.copy_tree import Rules, TreeCopy
from overlayfs_demo.store.in_root import Entry, entry
from overlayfs_demo.ui.console import note
from overlayfs_demo.ui.text import plural

_STREAM = b"-"


def add_verbs(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Add the verbs of this module."""
    verb = add_verb(verbs, "cp", "cp c1:/etc/motd .\ncp site.conf c1:/etc/\ncp c1:/var/log - | tar -t", _cp)
    verb.description = (
        "Copy a file or a directory out of a container, mounted or not, or into one. A source DIR/. means what is in "
        "the directory. Links in the container lead nowhere outside it. Devices are not copied, and what comes out of "
        "a container has no set-id bits."
    )
    verb.add_argument("--archive", "-a", action="store_true", help="keep owners (else: root inside, you outside)")
    verb.add_argument(
        "--follow-link", "-L", action="store_true", help="if the source is a symbolic link, copy what it leads to"
    )
    verb.add_argument("--quiet", "-q", action="store_true", help="accepted as in docker: no progress is shown anyway")
    verb.add_argument("source", metavar="C:PATH|PATH|-", help="what to copy; - is a tar on standard input")
    verb.add_argument("target", metavar="C:PATH|PATH|-", help="where to; - writes a tar to standard output")


@dataclass(frozen=True, slots=True)
class _Side:
    """One side of a copy: a path in a container, or on this machine if `container` is None."""

    container: str | None
    path: bytes

    @classmethod
    def parse(cls, word: str) -> _Side:
        """Read C:PATH or PATH: as in docker, a word that begins with / or . is a path of this machine."""
        name, colon, path = word.partition(":")
        if not colon or not name or name.startswith(("/", ".")) or "/" in name:
            return cls(None, os.fsencode(word))
        return cls(name, os.fsencode(path))

    def __str__(self) -> str:
        shown = printable(self.path)
        return shown if self.container is None else f"{self.container}:{shown}"

    @property
    def is_stream(self) -> bool:
        """Whether it is standard input or output."""
        return self.container is None and self.path == _STREAM


def _cp(arguments: argparse.Namespace) -> int:
    source, target = _Side.parse(arguments.source), _Side.parse(arguments.target)
    containers = Containers(store_of(arguments))
    container = _the_container(containers, source, target)
    for side in (source, target):
        if not side.path and side.container is None:
            raise UsageError("a path is empty", "name a file or a directory")
    with containers.mounted(container) as mountpoint, root_of(mountpoint) as inside:
        if source.container is None:
            skipped = _copy_in(source, inside, target, arguments)
        else:
            skipped = _copy_out(inside, source, target, arguments)
    if skipped:
        note(f"note: skipped {plural(len(skipped), 'device or socket', 'devices or sockets')}: {_some(skipped)}")
    return 0


def _some(names: Sequence[bytes]) -> str:
    return ", ".join(map(printable, names[:3])) + (", ..." if len(names) > 3 else "")


def _the_container(containers: Containers, source: _Side, target: _Side) -> Container:
    names = [side.container for side in (source, target) if side.container is not None]
    if len(names) != 1:
        raise UsageError(
            "both sides are in containers" if names else "neither side is in a container",
            "write C:PATH for one side, and a path of this machine or - for the other",
        )
    return containers.find(names[0])


@contextmanager
def _directory(path: bytes) -> Iterator[int]:
    fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _copy_in(source: _Side, inside: int, target: _Side, arguments: argparse.Namespace) -> list[bytes]:
    if source.is_stream:
        if sys.stdin.isatty():
            raise UsageError("refusing to read a tar from a terminal", "pipe one in")
        _require_directory(inside, target)
        return read_tar(sys.stdin.buffer, inside, b"/" + target.path, keep_owners=arguments.archive)
    root = (0, 0) if os.geteuid() == 0 else None
    with _directory(b"/") as outside:
        rules = Rules(root, arguments.archive, set_id=True)
        return _copy(outside, source, inside, target, rules, follow=arguments.follow_link)


def _require_directory(inside: int, target: _Side) -> None:
    try:
        if is_directory(inside, b"/" + target.path):
            return
    except OSError as error:
        raise MountError(f"{target}: {error.strerror}", "name a directory of the container") from None
    raise MountError(f"{target} is not a directory", "a tar can only be copied into a directory")


def _copy_out(inside: int, source: _Side, target: _Side, arguments: argparse.Namespace) -> list[bytes]:
    if target.is_stream:
        if sys.stdout.isatty():
            raise UsageError("refusing to write a tar to a terminal", "redirect the output")
        with _source(inside, source, follow=arguments.follow_link) as found:
            skipped = write_tar(found, _base_name(source.path) or b".", sys.stdout.buffer)
        sys.stdout.flush()
        return skipped
    with _directory(b"/") as outside:
        rules = Rules(None, arguments.archive, set_id=False)
        return _copy(inside, source, outside, target, rules, follow=arguments.follow_link)


@contextmanager
def _source(root: int, side: _Side, *, follow: bool) -> Iterator[Entry]:
    """Find the source, which must exist."""
    with contextlib.ExitStack() as stack:
        try:
            found = stack.enter_context(entry(root, _absolute(side), follow=follow))
            if found.status() is None:
                raise failure(errno.ENOENT)
        except OSError as error:
            raise MountError(f"{side}: {error.strerror}", "name an existing file or directory") from None
        yield found


def _absolute(side: _Side) -> bytes:
    """Return the path from the root of its tree; one in a container always begins there."""
    return os.path.join(b"/" if side.container is not None else os.getcwdb(), side.path)


def _base_name(path: bytes) -> bytes:
    """Return the name that a copy of this path has in a directory; b"" if the path means what is in a directory."""
    name = path.rstrip(b"/").rpartition(b"/")[2]
    return b"" if name in (b".", b"..") else name


def _copy(from_root: int, source: _Side, to_root: int, target: _Side, rules: Rules, *, follow: bool) -> list[bytes]:
    copy = TreeCopy(rules)
    with _source(from_root, source, follow=follow) as found:
        status = found.status()
        is_tree = status is not None and stat.S_ISDIR(status.st_mode)
        if not is_tree and status is not None and not _is_copied(status):
            raise MountError(f"{source} is a device or a socket", "only files, directories, links and FIFOs are copied")
        with _target(to_root, target, is_tree=is_tree, name=_base_name(source.path)) as place:
            try:
                copy.copy(found, place, os.fsencode(str(source)))
            except PermissionError as error:
                if error.errno != errno.EPERM or not rules.keep_owners:
                    raise
                remedy = "only root can give files to others: leave out --archive"
                raise MountError(f"{printable(error.filename)}: {error.strerror}", remedy) from error
    return copy.skipped


def _is_copied(status: os.stat_result) -> bool:
    return stat.S_IFMT(status.st_mode) in (stat.S_IFREG, stat.S_IFLNK, stat.S_IFIFO)


@contextmanager
def _target(root: int, side: _Side, *, is_tree: bool, name: bytes) -> Iterator[Entry]:
    """Find the place that the copy gets, by the rules of `docker cp`. Raises MountError."""
    with _place(root, side) as found:
        status = found.status()
        if status is None:
            if side.path.endswith(b"/") and not is_tree:
                raise MountError(f"{side}: the directory does not exist", "make it first, or leave out the slash")
            yield found
        elif not stat.S_ISDIR(status.st_mode):
            if is_tree:
                raise MountError(f"{side} is not a directory", "a directory can only be copied into a directory")
            if side.path.endswith(b"/"):
                raise MountError(f"{side} is not a directory", "leave out the slash to replace the file")
            yield found
        elif is_tree and not name:
            yield found
        else:
            into = os.open(found.name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=found.directory)
            try:
                yield Entry(into, name)
            finally:
                os.close(into)


@contextmanager
def _place(root: int, side: _Side) -> Iterator[Entry]:
    """Find the target, whose directory must exist. Raises MountError."""
    with contextlib.ExitStack() as stack:
        try:
            found = stack.enter_context(entry(root, _absolute(side), follow=True))
        except OSError as error:
            raise MountError(f"{side}: {error.strerror}", "the directory that it is in must exist") from None
        yield found
