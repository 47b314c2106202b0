"""The metadata of a member of a layer's tar, checked and given to its file.

It is the name, the owner, the mode, the time and the extended attributes: pax(1), "ustar Interchange Format" and "pax
Extended Header"; image-spec, layer.md, "File Attributes".
"""

from __future__ import annotations

import errno
import os
import tarfile
from collections import Counter
from collections.abc import Sequence

from overlayfs_demo.errors import printable
from overlayfs_demo.images.layer_writer import LONGEST_PATH
from overlayfs_demo.images.lowers import PRIVATE_XATTRS
from overlayfs_demo.linux import syscalls
from overlayfs_demo.overlay import override_stat
from overlayfs_demo.overlay.override_stat import StatRecord

REBUILD = "build the image again"

_XATTR = "SCHILY.xattr."
# The stat record is made from the member's owner and mode; a record in the tar itself could forge them.
_FORGED_XATTRS = (*PRIVATE_XATTRS, os.fsencode(override_stat.NAME))
_NO_OWNER = 0xFFFFFFFF  # to chown(2) this means "leave as it is"


class MemberError(Exception):
    """A member breaks a rule. The text is the rest of a sentence that begins with the member's name."""

    def __init__(self, rule: str, remedy: str = REBUILD) -> None:
        super().__init__(rule)
        self.rule = rule
        self.remedy = remedy


def member_path(name: str, verb: str = "") -> bytes:
    """Return a member's name, or a hard link's target, as a relative path without `.` and `..`; b"" is the root.

    Every name starts at the layer's root: a leading `/` is dropped, and `..` removes the part before it and stops at
    the root, as in Docker (moby, pkg/archive: filepath.Clean, then Join). Symbolic links play no part in this, see
    `LayerTree.locate`. Raises MemberError, its rule begun with `verb`, if no file can have the name.
    """
    parts = _parts(name)
    if b".." in parts:
        folded: list[bytes] = []
        for part in parts:
            if part != b"..":
                folded.append(part)
            elif folded:
                folded.pop()
        parts = folded
    return _joined(parts, verb)


def clean_path(name: str) -> bytes:
    """Return a path that a person gives, relative to the root of a view, without `.`; b"" is the root.

    Raises MemberError if no file can have the path, or if it has a `..`, which may mean another place after a symbolic
    link.
    """
    parts = _parts(name)
    if b".." in parts:
        raise MemberError("leaves the layer through '..'")
    return _joined(parts, "")


def _parts(name: str) -> list[bytes]:
    raw = name.encode("utf-8", "surrogateescape")
    return [part for part in raw.split(b"/") if part and part != b"."]


def _joined(parts: Sequence[bytes], verb: str) -> bytes:
    path = b"/".join(parts)
    if len(path) > LONGEST_PATH or b"\0" in path:
        raise MemberError(f"{verb}is not a valid file name")
    return path


class Metadata:
    """Writer of members' metadata to their files, which counts in `left_out` what could not be set.

    `owners` says whether to set owners, which only root may; otherwise they are recorded, see
    `overlay/override_stat.py`.
    """

    def __init__(self, owners: bool) -> None:
        self._owners = owners
        self.left_out: Counter[str] = Counter()

    def give(self, info: tarfile.TarInfo, fd: int) -> None:
        """Give a member's metadata to an open file or directory. Raises MemberError or OSError.

        The order is owner, attributes, mode, times: chown(2) clears set-id bits and capabilities, and a mode may forbid
        writing attributes.
        """
        record = StatRecord(*_owner(info), info.mode & 0o7777)
        if self._owners:
            os.fchown(fd, record.uid, record.gid)
        if info.pax_headers:
            self._set_xattrs(info, fd)
        self._set_mode(fd, record)
        try:
            os.utime(fd, ns=_times(info))
        except OverflowError:
            raise MemberError("has an invalid time") from None

    def give_name(self, info: tarfile.TarInfo, dir_fd: int, name: bytes) -> None:
        """Give metadata to a name that cannot be opened: a symbolic link (not its target), a fifo, or a device.

        Raises MemberError or OSError.
        """
        owner = _owner(info)
        if self._owners:
            os.chown(name, *owner, dir_fd=dir_fd, follow_symlinks=False)
        elif owner != (0, 0):
            self.left_out["owners of symbolic links and special files, which only root may set"] += 1
        if info.pax_headers:
            self._set_xattrs(info, syscalls.path_of(dir_fd, name))
        if not info.issym():
            os.chmod(name, info.mode & 0o7777, dir_fd=dir_fd)
        try:
            os.utime(name, ns=_times(info), dir_fd=dir_fd, follow_symlinks=False)
        except OverflowError:
            raise MemberError("has an invalid time") from None

    def give_default(self, fd: int) -> None:
        """Give the default metadata, root's and mode 0755, to a directory that no member describes. Raises OSError."""
        self._set_mode(fd, StatRecord(0, 0, 0o755))

    def _set_mode(self, fd: int, record: StatRecord) -> None:
        if self._owners:
            os.fchmod(fd, record.mode)
            return
        os.fchmod(fd, record.on_disk(os.fstat(fd).st_mode))
        try:
            os.setxattr(fd, override_stat.NAME, record.encode())
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            self.left_out["owners, which only root may set where the filesystem has no user attributes"] += 1

    def _set_xattrs(self, info: tarfile.TarInfo, target: int | bytes) -> None:
        """Set the attributes that star(1), GNU tar and Docker keep in pax headers, byte for byte.

        Raises MemberError or OSError.
        """
        for key, value in info.pax_headers.items():
            if not key.startswith(_XATTR):
                continue
            name = key.removeprefix(_XATTR).encode("utf-8", "surrogateescape")
            if name.startswith(_FORGED_XATTRS):
                continue
            if b"\0" in name:
                raise MemberError(f"has an attribute with an invalid name: '{printable(name)}'")
            data = value.encode("utf-8", "surrogateescape")
            try:
                if isinstance(target, int):
                    os.setxattr(target, name, data)
                else:
                    os.setxattr(target, name, data, follow_symlinks=False)
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.EACCES, errno.EOPNOTSUPP):
                    raise
                self.left_out[f"attribute {printable(name)}: {error.strerror}"] += 1


def _owner(info: tarfile.TarInfo) -> tuple[int, int]:
    """Return the owner's uid and gid. Raises MemberError for numbers that chown(2) does not accept."""
    if not (0 <= info.uid < _NO_OWNER and 0 <= info.gid < _NO_OWNER):
        raise MemberError(f"has an invalid owner: {info.uid}:{info.gid}")
    return info.uid, info.gid


def _times(info: tarfile.TarInfo) -> tuple[int, int]:
    """Return (atime, mtime) in nanoseconds, both the member's mtime, exact where a pax header has it as a decimal."""
    text = info.pax_headers.get("mtime")
    if text is None:
        return int(info.mtime) * 10**9, int(info.mtime) * 10**9
    whole, _, fraction = text.removeprefix("-").partition(".")
    if not (whole + fraction).isdecimal() or not text.isascii() or len(text) > 40:
        raise MemberError(f"has an invalid time: '{printable(text)}'")
    nanoseconds = int(whole or "0") * 10**9 + int(fraction[:9].ljust(9, "0"))
    if text.startswith("-"):
        nanoseconds = -nanoseconds
    return nanoseconds, nanoseconds
