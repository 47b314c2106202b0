"""Writer of a layer's directory that can never leave it.

Every name is reached through the descriptor of its parent directory, which is opened below the layer's root without
following any symbolic link. If a member's name leads through a link of the same layer, `locate` first finds the path
that is meant. Directories are private (mode 0700) while the layer is built, so that a read-only or set-group-id
directory cannot get in the way of its contents; `made` lists them, so that their metadata can be set last.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from overlayfs_demo.linux import syscalls
from overlayfs_demo.linux.failure import failure

if TYPE_CHECKING:
    import tarfile

# Names of unfinished files and directories begin like this. A later run that finds one may remove it.
BUILDING = b".building-"

LONGEST_PATH = 4095  # PATH_MAX, path_resolution(7), without the NUL


_OPEN_DIRECTORIES = 64
# No O_NOFOLLOW: with it, openat2(2) fails with ENOTDIR for a symbolic link too, and we tell the two apart.
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY


def prefixes(path: bytes) -> Iterator[bytes]:
    """Yield every directory on the way to `path`, and `path` itself, the shortest first: a, a/b, a/b/c."""
    position = path.find(b"/")
    while position >= 0:
        yield path[:position]
        position = path.find(b"/", position + 1)
    if path:
        yield path


class BlockedError(Exception):
    """`part`, on the way to a name, is not a directory of the layer; `why` is the rest of a sentence about it."""

    def __init__(self, part: bytes, why: str) -> None:
        super().__init__(why)
        self.part = part
        self.why = why


class LayerTree:
    """A layer directory that is being built. Paths are relative, normalised bytes; b"" is the root.

    The caller keeps ownership of `root_fd` and `spare_fd`. `spare_fd` is a directory on the same filesystem where trees
    that a later member replaces are taken apart. Every method raises OSError; ELOOP means that a parent is a symbolic
    link, ENOTDIR that it is another file. Only `locate` follows links.
    """

    def __init__(self, root_fd: int, spare_fd: int) -> None:
        self._root = root_fd
        self._spare = spare_fd
        self._open: OrderedDict[bytes, int] = OrderedDict()
        # The directories of the layer, each with the member that described it; None if no member did (yet).
        self.made: dict[bytes, tarfile.TarInfo | None] = {b"": None}
        os.fchmod(root_fd, 0o700)

    def close(self) -> None:
        """Close every descriptor that `directory` returned."""
        while self._open:
            os.close(self._open.popitem()[1])

    def directory(self, path: bytes, create: bool = True) -> int:
        """Return the descriptor of the directory `path`; if it is missing and `create`, make it and its parents.

        This object owns the descriptor and may close it once `_OPEN_DIRECTORIES` others have been opened.
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
        """Make one directory, whose parent exists; a directory that is already there stays as it is."""
        if path in self.made:
            return
        parent, _, name = path.rpartition(b"/")
        os.mkdir(name, 0o700, dir_fd=self.directory(parent, create=False))
        self.made[path] = None

    def inside(self, path: bytes) -> list[bytes]:
        """Return `path`, and everything below it if it is a directory."""
        found = [path]
        pending = [path] if path in self.made else []
        while pending:
            at = pending.pop()
            for name in os.listdir(self.directory(at, create=False)):
                child = _join(at, os.fsencode(name))
                found.append(child)
                if child in self.made:
                    pending.append(child)
        return found

    def remove(self, path: bytes, gone: Iterable[bytes]) -> None:
        """Remove what is at `path`, because a later member takes its place. `gone` is the result of `inside(path)`."""
        parent, _, name = path.rpartition(b"/")
        if path not in self.made:
            os.unlink(name, dir_fd=self.directory(parent))
            return
        for removed in gone:
            self.made.pop(removed, None)
            if removed in self._open:
                os.close(self._open.pop(removed))
        remove_tree(self.directory(parent), name, self._spare)

    def status(self, path: bytes) -> os.stat_result | None:
        """Return the status of `path` itself (a symbolic link is not followed); None if nothing is there."""
        parent, _, name = path.rpartition(b"/")
        try:
            return os.stat(name, dir_fd=self.directory(parent, create=False), follow_symlinks=False)
        except FileNotFoundError:
            return None

    def locate(self, path: bytes) -> bytes:
        """Return `path` with the links on the way to it followed, but not a link at its end.

        The links are those that this layer holds so far. They are resolved as if its directory were the root of the
        whole filesystem, like RESOLVE_IN_ROOT of openat2(2): an absolute target starts there, and `..` stops there.
        Unlike the kernel, we continue where nothing exists yet, because the missing directories will be made.

        Raises BlockedError, and OSError with ENAMETOOLONG.
        """
        parent, _, name = path.rpartition(b"/")
        if parent in self.made:
            return path
        return _join(self._follow(parent), name)

    def _follow(self, path: bytes) -> bytes:
        """Return the path of the directory to which `path` leads, whether it exists yet or not."""
        at = b""
        links = 0
        ahead = path.split(b"/")[::-1]
        while ahead:
            part = ahead.pop()
            if part == b"..":
                at = at.rpartition(b"/")[0]
            if part in (b"", b".", b".."):
                continue
            child = _join(at, part)
            status = self.status(child) if at in self.made and child not in self.made else None
            if status is None:
                at = child
            elif stat.S_ISLNK(status.st_mode):
                links += 1
                if links > syscalls.MOST_LINKS:
                    raise BlockedError(child, "a symbolic link in a loop or in a chain that is too long")
                target = os.readlink(part, dir_fd=self.directory(at))
                if target.startswith(b"/"):
                    at = b""
                ahead += target.split(b"/")[::-1]
            else:
                raise BlockedError(child, "which is not a directory in this layer")
        return at


def _join(directory: bytes, name: bytes) -> bytes:
    if not directory:
        return name
    if len(directory) + len(name) >= LONGEST_PATH:
        raise failure(errno.ENAMETOOLONG)
    return directory + b"/" + name


def remove_tree(parent_fd: int, name: bytes, spare_fd: int) -> None:
    """Remove the directory `name`, however deep it is and whatever modes it has. Raises OSError.

    Each subdirectory is first moved up into `spare_fd`, so neither descriptors nor the stack grow with the depth.
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
                    # Moving a directory rewrites its `..`, which needs write permission on it.
                    os.chmod(child, 0o700, dir_fd=fd)
                    moved = BUILDING + os.urandom(8).hex().encode()
                    os.rename(child, moved, src_dir_fd=fd, dst_dir_fd=spare_fd)
                    pending.append((spare_fd, moved))
                else:
                    os.unlink(child, dir_fd=fd)
        finally:
            os.close(fd)
        os.rmdir(current, dir_fd=at)
