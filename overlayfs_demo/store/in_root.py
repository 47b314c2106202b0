"""Names in a container's tree, resolved as a process with that tree as its root would: openat2(2), RESOLVE_IN_ROOT.

A symbolic link in an image may lead anywhere on this machine if it is followed from outside. Here no name leads out of
the container, whatever its links say and however the tree changes meanwhile.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from overlayfs_demo.errors import MountError, printable
from overlayfs_demo.linux import proc, syscalls
from overlayfs_demo.linux.failure import failure


@dataclass(frozen=True, slots=True)
class Entry:
    """A name in a directory, which need not exist. `directory` is an open descriptor (O_PATH), owned by the maker.

    The name is one component. It is b"." for the directory itself.
    """

    directory: int
    name: bytes

    def status(self) -> os.stat_result | None:
        """Return the status of what has this name, a link not followed; None if nothing has. Raises OSError."""
        try:
            return os.stat(self.name, dir_fd=self.directory, follow_symlinks=False)
        except FileNotFoundError:
            return None


def _split(path: bytes) -> tuple[bytes, bytes]:
    """Return the path of the directory and the last name; the name is b"." if the path ends in a directory's name."""
    head, _, name = path.rstrip(b"/").rpartition(b"/")
    return (path, b".") if name in (b"", b".", b"..") else (head or b"/", name)


@contextmanager
def entry(root: int, path: bytes, *, follow: bool) -> Iterator[Entry]:
    """Find a path below the directory `root`: its last directory, which must exist, and the name in it.

    With `follow`, or if a slash follows it, a symbolic link at the end means its target, also if that does not exist.
    Raises OSError.
    """
    path = b"/" + path
    follow = follow or path.endswith(b"/")
    for _ in range(syscalls.MOST_LINKS):
        head, name = _split(path)
        directory = syscalls.open_in_root(root, head, os.O_PATH | os.O_DIRECTORY)
        try:
            found = Entry(directory, name)
            status = found.status()
            if not (follow and status is not None and stat.S_ISLNK(status.st_mode)):
                yield found
                return
            # The next name is relative to the path of this link's directory, as the kernel resolves it.
            path = os.path.join(head, os.readlink(name, dir_fd=directory)) + (b"/" if path.endswith(b"/") else b"")
        finally:
            os.close(directory)
    raise failure(errno.ELOOP, path)


def path_outside(root: bytes, path: bytes) -> bytes:
    """Return the path by which this process reaches `path` of the tree mounted on `root`: links lead nowhere else.

    A symbolic link at the end is not followed. What does not exist stays as written. Raises MountError.
    """
    fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with entry(fd, path, follow=False) as found:
            directory = os.readlink(proc.fd_path(found.directory))
            return directory if found.name == b"." else os.path.join(directory, found.name)
    except OSError as error:
        raise MountError(f"{printable(path)}: {error.strerror}", "name a path whose directory exists") from None
    finally:
        os.close(fd)
