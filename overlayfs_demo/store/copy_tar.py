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
from overlayfs_demo.images.layer_stream import decompressed
from overlayfs_demo.images.member_data import copy_member
from overlayfs_demo.images.member_names import MemberError, clean_path
from overlayfs_demo.images.tar_metadata import owner_of, times_of
from overlayfs_demo.images.tarstream import TarStream
from overlayfs_demo.linux import proc, syscalls
from overlayfs_demo.linux.attributes import Attributes
from overlayfs_demo.store.copy_tree import (
    SET_ID,
    dress_directory,
    make_directory,
    put_fifo,
    put_file,
    put_hard_link,
    put_link,
)
from overlayfs_demo.store.in_root import Entry, entry

_BILLION = 10**9
_LONGEST_NAME = 100
_LABEL = "standard input"
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
    member.mode = stat.S_IMODE(status.st_mode) & ~SET_ID
    member.uid, member.gid, member.mtime = status.st_uid, status.st_gid, status.st_mtime_ns // _BILLION
    return member


def read_tar(source: BinaryIO, root: int, directory: bytes, *, keep_owners: bool) -> list[bytes]:
    """Put the members of a tar, perhaps compressed, into a directory of the tree `root`. No link leads out of the tree.

    Returns the members that were left out, because they are devices or of unknown kinds. Raises ImageError, OSError.
    """
    return _Reading(source, root, directory, keep_owners).run()


class _Reading:
    """One run of `read_tar`."""

    def __init__(self, source: BinaryIO, root: int, directory: bytes, keep_owners: bool) -> None:
        self._tar = TarStream(decompressed(source, _LABEL), _LABEL, marked_end=True)
        self._root = root
        self._directory = directory
        self._keep_owners = keep_owners

    def run(self) -> list[bytes]:
        skipped: list[bytes] = []
        for member in self._tar:
            try:
                if not self._extract(member):
                    skipped.append(os.fsencode(member.name))
            except MemberError as error:
                raise _refused(member, error.rule) from None
            except OverflowError:
                raise _refused(member, "has an invalid time") from None
        return skipped

    def _extract(self, member: tarfile.TarInfo) -> bool:
        """Make what a member describes; return False if it is of a kind that is not copied."""
        with self._place(member.name) as target:
            path = os.fsencode(member.name)
            given = self._attributes(member)
            if member.isdir():
                if make_directory(target, path):
                    dress_directory(target, given)
            elif member.issym():
                put_link(target, given, _link_target(member), path)
            elif member.islnk():
                with self._place(member.linkname) as other:
                    put_hard_link(target, other, path)
            elif member.isfifo():
                put_fifo(target, given, path)
            elif member.isreg():
                put_file(target, given, lambda fd: copy_member(self._tar, member, fd), path)
            else:
                return False
        return True

    def _attributes(self, member: tarfile.TarInfo) -> Attributes:
        mine = (0, 0) if os.geteuid() == 0 else None
        owner = owner_of(member) if self._keep_owners else mine
        return Attributes(owner, None if member.issym() else member.mode & 0o7777, (), times_of(member))

    @contextmanager
    def _place(self, name: str) -> Iterator[Entry]:
        """Find the place for a member, and make the directories on the way to it. Raises MemberError, OSError."""
        names = clean_path(name).split(b"/")
        at = self._directory
        for part in names[:-1]:
            at = os.path.join(at, part)
            with entry(self._root, at, follow=True) as found:
                make_directory(found, at)
        # The directory itself may be named by a symbolic link.
        with entry(self._root, os.path.join(at, names[-1]), follow=not names[-1]) as found:
            yield found


def _link_target(member: tarfile.TarInfo) -> bytes:
    if "\0" in member.linkname:
        raise MemberError("links to an invalid name")
    return os.fsencode(member.linkname)


def _refused(member: tarfile.TarInfo, rule: str) -> ImageError:
    name = printable(member.name)[:_LONGEST_NAME]
    return ImageError(f"the member '{name}' {rule}", "write the archive again, without it")


def is_directory(root: int, path: bytes) -> bool:
    """Return whether a path of the tree is a directory, links followed. Raises OSError if it does not exist."""
    fd = syscalls.open_in_root(root, path, os.O_PATH)
    try:
        return stat.S_ISDIR(os.fstat(fd).st_mode)
    finally:
        os.close(fd)
