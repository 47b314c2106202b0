"""Owner, mode, extended attributes and times of a file, set in the one order in which none undoes another."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable

from overlayfs_demo.named_tuple import NamedTuple

Name = str | bytes
# Whether a file may lack the attribute `name`, which could not be set because of this error.
MayLose = Callable[[Name, OSError], bool]


class Attributes(NamedTuple):
    """The attributes to set. None leaves one as it is; a symbolic link has no mode of its own, see symlink(7).

    `owner` is (uid, gid), `mode` the permission, set-id and sticky bits, `times_ns` (atime, mtime) in nanoseconds
    since the epoch. `xattrs` are names with their values, which may be read while others are set.
    """

    owner: tuple[int, int] | None = None
    mode: int | None = None
    xattrs: Iterable[tuple[Name, bytes]] = ()
    times_ns: tuple[int, int] | None = None

    @classmethod
    def of(cls, status: os.stat_result, xattrs: Iterable[tuple[Name, bytes]] = ()) -> Attributes:
        """Return the owner, mode and times of a file with this status, beside `xattrs`."""
        mode = None if stat.S_ISLNK(status.st_mode) else stat.S_IMODE(status.st_mode)
        return cls((status.st_uid, status.st_gid), mode, xattrs, (status.st_atime_ns, status.st_mtime_ns))


def _never(_name: Name, _error: OSError) -> bool:
    return False


def apply(new: Attributes, place: int | bytes, may_lose: MayLose = _never) -> None:
    """Set the attributes of a file: `place` is a descriptor, or a path, whose last part is not followed.

    Nobody else may be able to put another object at the path in the meantime. Raises OSError; what was set by then
    stays.
    """
    follow = isinstance(place, int)  # A descriptor leads to the file itself, and the calls accept nothing else.
    # First, because chown(2) clears set-id bits and capabilities.
    if new.owner is not None:
        os.chown(place, *new.owner, follow_symlinks=follow)
    # Before the mode, which may forbid it: an ordinary owner needs write permission for `user.` attributes, xattr(7).
    for name, value in new.xattrs:
        try:
            os.setxattr(place, name, value, follow_symlinks=follow)
        except OSError as error:
            if not may_lose(name, error):
                raise
    # After the access ACL among the attributes, which would set the permission bits: acl(5).
    if new.mode is not None:
        os.chmod(place, new.mode)
    # Last, because a change to the data or a name below may have changed them.
    if new.times_ns is not None:
        os.utime(place, ns=new.times_ns, follow_symlinks=follow)
