"""The metadata of a member of a layer's tar, checked and given to its file.

It is the owner, the mode, the time and the extended attributes: pax(1), "ustar Interchange Format" and "pax
Extended Header"; image-spec, layer.md, "File Attributes".
"""

from __future__ import annotations

import errno
import os
import tarfile
from collections import Counter
from collections.abc import Iterator

from overlayfs_demo.errors import printable
from overlayfs_demo.images.lowers import PRIVATE_XATTRS
from overlayfs_demo.images.member_names import MemberError
from overlayfs_demo.linux import attributes, proc
from overlayfs_demo.linux.attributes import Attributes
from overlayfs_demo.overlay import override_stat
from overlayfs_demo.overlay.override_stat import OverrideStat

_XATTR = "SCHILY.xattr."
# The stat record is made from the member's owner and mode; a record in the tar itself could forge them.
_FORGED_XATTRS = (*PRIVATE_XATTRS, os.fsencode(override_stat.NAME))
# The errors of setxattr(2) for a user who may not set an attribute.
_NOT_ALLOWED = (errno.EPERM, errno.EACCES)
_NO_RECORDS = "owners, which only root may set where the filesystem has no user attributes"
_NO_OWNER = 0xFFFFFFFF  # to chown(2) this means "leave as it is"


class Metadata:
    """Writer of members' metadata to their files, which counts in `left_out` what could not be set.

    `owners` says whether to set owners, which only root may; otherwise they are recorded, see
    `overlay/override_stat.py`.
    """

    def __init__(self, owners: bool) -> None:
        self._owners = owners
        self.left_out: Counter[str] = Counter()

    def give(self, info: tarfile.TarInfo, fd: int) -> None:
        """Give a member's metadata to an open file or directory. Raises MemberError or OSError."""
        self._apply(info, self._kept(OverrideStat(*owner_of(info), info.mode & 0o7777), fd), fd)

    def give_name(self, info: tarfile.TarInfo, dir_fd: int, name: bytes) -> None:
        """Give metadata to a name that cannot be opened: a symbolic link (not its target), a fifo, or a device.

        Raises MemberError or OSError.
        """
        owner = owner_of(info)
        if not self._owners and owner != (0, 0):
            self.left_out["owners of symbolic links and special files, which only root may set"] += 1
        mode = None if info.issym() else info.mode & 0o7777
        self._apply(info, Attributes(owner if self._owners else None, mode), proc.path_of(dir_fd, name))

    def give_default(self, fd: int) -> None:
        """Give the default metadata, root's and mode 0755, to a directory that no member describes. Raises OSError."""
        attributes.apply(self._kept(OverrideStat(0, 0, 0o755), fd), fd, self._may_lose)

    def _kept(self, record: OverrideStat, fd: int) -> Attributes:
        """Return an owner and mode as the file can keep them: really, or in its stat record."""
        if self._owners:
            return Attributes((record.uid, record.gid), record.mode)
        mode = record.on_disk(os.fstat(fd).st_mode)
        return Attributes(mode=mode, xattrs=[(override_stat.NAME, record.encode())])

    def _apply(self, info: tarfile.TarInfo, kept: Attributes, place: int | bytes) -> None:
        """Give a file what it can keep of the owner and mode, and a member's attributes and time."""
        given = Attributes(kept.owner, kept.mode, [*_xattrs(info), *kept.xattrs], times_of(info))
        try:
            attributes.apply(given, place, self._may_lose)
        except OverflowError:
            raise MemberError("has an invalid time") from None

    def _may_lose(self, name: str | bytes, error: OSError) -> bool:
        """Count an attribute that cannot be set here. Return False if the error is another one."""
        is_record = name == override_stat.NAME
        if error.errno != errno.EOPNOTSUPP and (is_record or error.errno not in _NOT_ALLOWED):
            return False
        self.left_out[_NO_RECORDS if is_record else f"attribute {printable(name)}: {error.strerror}"] += 1
        return True


def _xattrs(info: tarfile.TarInfo) -> Iterator[tuple[bytes, bytes]]:
    """Yield the attributes that star(1), GNU tar and Docker keep in pax headers, byte for byte. Raises MemberError."""
    for key, value in info.pax_headers.items():
        if not key.startswith(_XATTR):
            continue
        name = key.removeprefix(_XATTR).encode("utf-8", "surrogateescape")
        if name.startswith(_FORGED_XATTRS):
            continue
        if b"\0" in name:
            raise MemberError(f"has an attribute with an invalid name: '{printable(name)}'")
        yield name, value.encode("utf-8", "surrogateescape")


def owner_of(info: tarfile.TarInfo) -> tuple[int, int]:
    """Return the owner's uid and gid. Raises MemberError for numbers that chown(2) does not accept."""
    if not (0 <= info.uid < _NO_OWNER and 0 <= info.gid < _NO_OWNER):
        raise MemberError(f"has an invalid owner: {info.uid}:{info.gid}")
    return info.uid, info.gid


def times_of(info: tarfile.TarInfo) -> tuple[int, int]:
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
