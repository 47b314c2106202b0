"""How is a layer's directory written without ever leaving it?

Every name is reached through the descriptor of its parent directory, which is opened below the layer's
root without following any symbolic link. Where a member's name leads through a link of the same layer, `locate`
says first which path that is. Directories are private (mode 0700) while the layer is built,
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
from collections.abc import Iterable, Iterator

from overlayfs_demo.linux import syscalls

# What is not finished has a name that begins like this, and whoever finds one later may remove it.
BUILDING = b".building-"

LONGEST_PATH = 4095  # PATH_MAX, path_resolution(7), without the NUL
_MOST_LINKS = 40  # in one name: path_resolution(7), "Length limit"

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


class BlockedError(Exception):
    """`part`, on the way to a name, is not a directory of the layer; `why` is the rest of a sentence about it."""

    def __init__(self, part: bytes, why: str) -> None:
        super().__init__(why)
        self.part = part
        self.why = why


class LayerTree:
    """A layer directory that is being built. Paths are relative, clean and bytes; b"" is the root.

    `root_fd` and `spare_fd` stay the caller's. `spare_fd` is a directory of the same filesystem where
    trees that a later member replaces are taken apart. Every method raises OSError; ELOOP means that a
    parent is a symbolic link, ENOTDIR that it is another file. All but `locate` follow no link.
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

    def inside(self, path: bytes) -> list[bytes]:
        """`path`, and if it is a directory everything below it."""
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
        """Remove what is at `path`: a later member takes its place. `gone` is what is `inside` it."""
        parent, _, name = path.rpartition(b"/")
        if path not in self.made:
            os.unlink(name, dir_fd=self.directory(parent))
            return
        for one in gone:
            self.made.pop(one, None)
            if one in self._open:
                os.close(self._open.pop(one))
        remove_tree(self.directory(parent), name, self._spare)

    def status(self, path: bytes) -> os.stat_result | None:
        """What is at `path` itself (a symbolic link is not followed), None if nothing."""
        parent, _, name = path.rpartition(b"/")
        try:
            return os.stat(name, dir_fd=self.directory(parent, create=False), follow_symlinks=False)
        except FileNotFoundError:
            return None

    def locate(self, path: bytes) -> bytes:
        """Where `path` is when the links on the way to it are followed, but not one at its end.

        The links are those that this layer holds so far. They lead as if its directory were the root of the whole
        filesystem, like RESOLVE_IN_ROOT of openat2(2): an absolute target begins there, and `..` ends there. Unlike
        the kernel we go on where nothing is yet, because the directories that are missing will be made.

        Raises BlockedError, and OSError: ENAMETOOLONG.
        """
        parent, _, name = path.rpartition(b"/")
        if parent in self.made:
            return path
        return _join(self._follow(parent), name)

    def _follow(self, path: bytes) -> bytes:
        """The path of the directory that `path` leads to, whether it is there yet or not."""
        at = b""
        links = 0
        ahead = path.split(b"/")[::-1]
        while ahead:
            part = ahead.pop()
            if part == b"..":
                at = at.rpartition(b"/")[0]
            if part in (b"", b".", b".."):
                continue
            one = _join(at, part)
            status = self.status(one) if at in self.made and one not in self.made else None
            if status is None:
                at = one
            elif stat.S_ISLNK(status.st_mode):
                links += 1
                if links > _MOST_LINKS:
                    raise BlockedError(one, "a symbolic link that leads round in a circle or is one of too many")
                target = os.readlink(part, dir_fd=self.directory(at))
                if target.startswith(b"/"):
                    at = b""
                ahead += target.split(b"/")[::-1]
            else:
                raise BlockedError(one, "which is not a directory in this layer")
        return at


def _join(directory: bytes, name: bytes) -> bytes:
    if not directory:
        return name
    if len(directory) + len(name) >= LONGEST_PATH:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    return directory + b"/" + name


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
