"""Plain values that the engine and its callers exchange."""

from __future__ import annotations

import os

from overlayfs_demo.named_tuple import NamedTuple


class Caller(NamedTuple):
    """The process on whose behalf a verb runs, and the call it made.

    New files belong to `uid`:`gid`. `umask` applies to them unless a default ACL does. `call` is the
    name of the call in events, e.g. `unlink`.
    """

    uid: int
    gid: int
    pid: int = 0
    umask: int = 0o022
    call: str = ""


class Attrs(NamedTuple):
    """The stat(2) attributes of a node: times in nanoseconds since the epoch, sizes in bytes, blocks of 512 bytes."""

    ino: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size: int
    blocks: int
    blksize: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, status: os.stat_result, ino: int, nlink: int) -> Attrs:
        """Return the attributes of a real file, with the inode number and link count it has in the view."""
        # Not through the constructor, which takes twice as long: nearly every request makes one.
        return tuple.__new__(
            cls,
            (
                ino,
                status.st_mode,
                nlink,
                status.st_uid,
                status.st_gid,
                status.st_rdev,
                status.st_size,
                status.st_blocks,
                status.st_blksize,
                status.st_atime_ns,
                status.st_mtime_ns,
                status.st_ctime_ns,
            ),
        )


class Dirent(NamedTuple):
    """One entry of a merged directory. `kind` is the S_IFMT part of its mode, `ino` the inode number of stat(2)."""

    name: bytes
    kind: int
    ino: int


class Links(NamedTuple):
    """The number of names a file has in the view, and the most its lower file was seen to have (None: unknown)."""

    view: int
    lower: int | None

    def changed(self, names: int) -> Links:
        """Return the links after `names` names were added to the view, or removed if negative."""
        return self._replace(view=self.view + names)

    def met(self, lower_names: int | None) -> Links:
        """Return the links after the lower file was seen with `lower_names` names.

        Names that it got behind the view are also names of the view. Names that it lost are not subtracted, because
        they may have been hidden: a count that is too high keeps a copy, one that is too low would lose it.
        """
        before = self.lower or lower_names or 0
        added = max(0, (lower_names or 0) - before)
        return Links(self.view + added, before + added or None)


class AttrChange(NamedTuple):
    """The attributes to change together. None leaves an attribute as it is.

    `mode` holds permission bits only. Times are nanoseconds since the epoch. `only_touches`: nothing but the times is
    changed, and both are set to the present. `kill_privileges` drops set-user-ID, set-group-ID and capabilities, as
    the VFS does when an ordinary user writes or truncates. `by_path`: the size is changed by truncate(2) and not by
    ftruncate(2), see `upper_attributes.resize`.
    """

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    kill_privileges: bool = False
    only_touches: bool = False
    by_path: bool = False
