"""How is a layer's directory written without ever leaving it?

Every name is reached through the descriptor of its parent directory, which is opened below the layer's
root without following any symbolic link. Directories are private (mode 0700) while the layer is built,
so that a read-only or set-group-id directory cannot get in the way of what belongs inside it; `made`
says which there are, for their metadata to be set last.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
import tarfile
from collections import OrderedDict
from collections.abc import Iterator

from overlayfs_demo import syscalls

# What is not finished has a name that begins like this, and whoever finds one later may remove it.
BUILDING = b".building-"

_OPEN_DIRECTORIES = 64
# No O_NOFOLLOW: with it openat2(2) says ENOTDIR of a symbolic link, and we tell the two apart.
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY


def prefixes(path: bytes) -> Iterator[bytes]:
    """Every directory on the way to `path`, and `path` itself, the shortest first: a, a/b, a/b/c."""
    position = path.find(b"/")
    while position >= 0:
        yield path[:position]
        position = path.find(b"/", position + 1)
    if path:
        yield path


class LayerTree:
    """A layer directory that is being built. Paths are relative, clean and bytes; b"" is the root.

    `root_fd` and `spare_fd` stay the caller's. `spare_fd` is a directory of the same filesystem where
    trees that a later member replaces are taken apart. Every method raises OSError; ELOOP means that a
    parent is a symbolic link, ENOTDIR that it is another file.
    """

    def __init__(self, root_fd: int, spare_fd: int) -> None:
        self._root = root_fd
        self._spare = spare_fd
        self._open: OrderedDict[bytes, int] = OrderedDict()
        # The directories of the layer: the member that described each, None where none did (yet).
        self.made: dict[bytes, tarfile.TarInfo | None] = {b"": None}
        os.fchmod(root_fd, 0o700)

    def close(self) -> None:
        """Close every descriptor that `directory` gave out."""
        while self._open:
            os.close(self._open.popitem()[1])

    def directory(self, path: bytes, create: bool = True) -> int:
        """The open directory `path`, made (with its parents) if missing and `create`.

        The descriptor stays ours, and is good until some dozens of other directories have been opened.
        """
        fd = self._open.get(path)
        if fd is not None:
            self._open.move_to_end(path)
            return fd
        try:
            fd = syscalls.open_beneath(self._root, path or b".", _DIRECTORY)
        except FileNotFoundError:
            if not create:
                raise
            for prefix in prefixes(path):
                self.make_directory(prefix)
            fd = syscalls.open_beneath(self._root, path, _DIRECTORY)
        self._open[path] = fd
        if len(self._open) > _OPEN_DIRECTORIES:
            os.close(self._open.popitem(last=False)[1])
        return fd

    def make_directory(self, path: bytes) -> None:
        """Make one directory, whose parent exists; one that is there already stays as it is."""
        if path in self.made:
            return
        parent, _, name = path.rpartition(b"/")
        os.mkdir(name, 0o700, dir_fd=self.directory(parent, create=False))
        self.made[path] = None

    def remove(self, path: bytes) -> None:
        """Remove what is at `path`: a later member takes its place."""
        parent, _, name = path.rpartition(b"/")
        parent_fd = self.directory(parent)
        if path not in self.made:
            os.unlink(name, dir_fd=parent_fd)
            return
        below = path + b"/"
        self.made = {one: info for one, info in self.made.items() if one != path and not one.startswith(below)}
        for one in [one for one in self._open if one == path or one.startswith(below)]:
            os.close(self._open.pop(one))
        remove_tree(self.directory(parent), name, self._spare)

    def status(self, path: bytes) -> os.stat_result | None:
        """What is at `path` itself (a symbolic link is not followed), None if nothing."""
        parent, _, name = path.rpartition(b"/")
        try:
            return os.stat(name, dir_fd=self.directory(parent, create=False), follow_symlinks=False)
        except FileNotFoundError:
            return None

    def obstacle(self, path: bytes) -> bytes | None:
        """The first part of `path` that is there and is not a directory, for an error message."""
        for prefix in prefixes(path):
            try:
                os.close(syscalls.open_beneath(self._root, prefix, _DIRECTORY))
            except OSError as error:
                if error.errno in (errno.ELOOP, errno.ENOTDIR):
                    return prefix
                return None
        return None


def remove_tree(parent_fd: int, name: bytes, spare_fd: int) -> None:
    """Remove the directory `name`, however deep it is and whatever its modes: raises OSError.

    Each subdirectory is first moved up into `spare_fd`, so neither descriptors nor the stack grow with
    the depth.
    """
    pending = [(parent_fd, name)]
    while pending:
        at, current = pending.pop()
        os.chmod(current, 0o700, dir_fd=at)
        fd = os.open(current, _DIRECTORY | os.O_NOFOLLOW, dir_fd=at)
        try:
            for entry in os.listdir(fd):
                child = os.fsencode(entry)
                if stat.S_ISDIR(os.stat(child, dir_fd=fd, follow_symlinks=False).st_mode):
                    # Moving a directory rewrites its `..`, which takes permission to write it.
                    os.chmod(child, 0o700, dir_fd=fd)
                    moved = BUILDING + secrets.token_hex(8).encode()
                    os.rename(child, moved, src_dir_fd=fd, dst_dir_fd=spare_fd)
                    pending.append((spare_fd, moved))
                else:
                    os.unlink(child, dir_fd=fd)
        finally:
            os.close(fd)
        os.rmdir(current, dir_fd=at)
