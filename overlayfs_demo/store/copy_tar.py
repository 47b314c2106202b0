"""Tar streams for `cp`: a file or a directory of a container as a tar, and a tar into a directory of a container.

A tar is hostile input, and so is the tree: see `copy_tree`, whose rules hold here too.
"""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from overlayfs_demo.errors import ImageError, printable
from overlayfs_demo.linux import proc, syscalls
from overlayfs_demo.linux.attributes import Attributes
from overlayfs_demo.store.copy_tree import dress_directory, make_directory, put_fifo, put_file, put_hard_link, put_link
from overlayfs_demo.store.in_root import Entry, entry

_BILLION = 10**9
_TYPES = {stat.S_IFDIR: tarfile.DIRTYPE, stat.S_IFLNK: tarfile.SYMTYPE, stat.S_IFIFO: tarfile.FIFOTYPE}


def write_tar(source: Entry, name: bytes, out: BinaryIO) -> list[bytes]:
    """Write a file, or a directory with everything in it, as a tar in which it has this name.

    Returns the names that were left out, because they are devices or sockets. Raises OSError.
    """
    skipped: list[bytes] = []
    with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        _write(archive, source, name, skipped)
    return skipped


def _write(archive: tarfile.TarFile, source: Entry, name: bytes, skipped: list[bytes]) -> None:
    fd = os.open(source.name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=source.directory)
    try:
        status = os.fstat(fd)
        member = _member(status, name)
        if stat.S_ISREG(status.st_mode):
            with os.fdopen(os.open(proc.fd_path(fd), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as data:
                archive.addfile(member, data)
        elif stat.S_IFMT(status.st_mode) not in _TYPES:
            skipped.append(name)
        else:
            if stat.S_ISLNK(status.st_mode):
                member.linkname = os.fsdecode(os.readlink(b"", dir_fd=fd))
            archive.addfile(member)
        if stat.S_ISDIR(status.st_mode):
            listing = os.open(proc.fd_path(fd), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                names = sorted(map(os.fsencode, os.listdir(listing)))
            finally:
                os.close(listing)
            for child in names:
                _write(archive, Entry(fd, child), os.path.join(name, child), skipped)
    finally:
        os.close(fd)


def _member(status: os.stat_result, name: bytes) -> tarfile.TarInfo:
    member = tarfile.TarInfo(os.fsdecode(name))
    member.type = _TYPES.get(stat.S_IFMT(status.st_mode), tarfile.REGTYPE)
    member.size = status.st_size if stat.S_ISREG(status.st_mode) else 0
    member.mode = stat.S_IMODE(status.st_mode)
    member.uid, member.gid, member.mtime = status.st_uid, status.st_gid, status.st_mtime_ns // _BILLION
    return member


def read_tar(source: BinaryIO, root: int, directory: bytes, *, keep_owners: bool) -> list[bytes]:
    """Put the members of a tar into a directory of the tree `root`. Symbolic links lead nowhere outside that tree.

    Returns the members that were left out, because they are devices. Raises ImageError, OSError.
    """
    skipped: list[bytes] = []
    try:
        with tarfile.open(fileobj=source, mode="r|*", encoding="utf-8", errors="surrogateescape") as archive:
            for member in archive:
                if member.ischr() or member.isblk():
                    skipped.append(os.fsencode(member.name))
                    continue
                with _place(root, directory, member.name) as target:
                    _extract(archive, member, target, root, directory, keep_owners=keep_owners)
    except tarfile.TarError as error:
        raise ImageError(f"standard input is not a tar archive ({error})", "write one with tar -c") from None
    return skipped


@contextmanager
def _place(root: int, directory: bytes, name: str) -> Iterator[Entry]:
    """Find the place for a member, and make the directories on the way to it."""
    names = [part for part in os.fsencode(name).split(b"/") if part not in (b"", b".")]
    if b".." in names:
        raise ImageError(f"the member '{printable(name)}' has '..' in its name", "write the archive without it")
    at = directory
    for part in names[:-1]:
        at = os.path.join(at, part)
        with entry(root, at, follow=True) as found:
            make_directory(found, at)
    with entry(root, os.path.join(at, *names[-1:]), follow=False) as found:
        yield found


def _extract(
    archive: tarfile.TarFile, member: tarfile.TarInfo, target: Entry, root: int, directory: bytes, *, keep_owners: bool
) -> None:
    path = os.fsencode(member.name)
    owner = (member.uid, member.gid) if keep_owners else ((0, 0) if os.geteuid() == 0 else None)
    times = (int(member.mtime) * _BILLION, int(member.mtime) * _BILLION)
    given = Attributes(owner, None if member.issym() else member.mode & 0o7777, (), times)
    if member.isdir():
        if make_directory(target, path):
            dress_directory(target, given)
    elif member.issym():
        put_link(target, given, os.fsencode(member.linkname), path)
    elif member.islnk():
        with _place(root, directory, member.linkname) as other:
            put_hard_link(target, other, path)
    elif member.isfifo():
        put_fifo(target, given, path)
    else:
        data = archive.extractfile(member)
        assert data is not None, "it is a regular file"
        put_file(target, given, data, path)


def is_directory(root: int, path: bytes) -> bool:
    """Return whether a path of the tree is a directory, links followed. Raises OSError if it does not exist."""
    fd = syscalls.open_in_root(root, path, os.O_PATH)
    try:
        return stat.S_ISDIR(os.fstat(fd).st_mode)
    finally:
        os.close(fd)
