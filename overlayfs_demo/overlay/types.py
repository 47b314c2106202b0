"""Which plain values do the engine and its callers exchange?"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import NamedTuple


class Caller(NamedTuple):
    """The process on whose behalf a verb runs, and the call it made.

    New files belong to `uid`:`gid`; `umask` applies to them unless a default ACL does. `call` is the
    word for events, e.g. `unlink`.
    """

    uid: int
    gid: int
    pid: int = 0
    umask: int = 0o022
    call: str = ""


class Attrs(NamedTuple):
    """What stat(2) says about a node; times in nanoseconds since the epoch, sizes in bytes, blocks of 512."""

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
        """The attributes of a real file, with the identity it has in the view."""
        return cls(
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
        )


class Dirent(NamedTuple):
    """One name of a merged directory: `kind` is the S_IFMT part of its mode, `ino` what stat(2) shows."""

    name: bytes
    kind: int
    ino: int


class Links(NamedTuple):
    """How many names the view has for a file, and the most that its lower file was seen to have (None: unknown)."""

    view: int
    lower: int | None

    def changed(self, names: int) -> Links:
        """So many names of the view came, or went."""
        return self._replace(view=self.view + names)

    def met(self, lower_names: int | None) -> Links:
        """The lower file has so many names now. Those that it got behind the view are names of the view, too.

        Any that it lost may have been hidden: one too many in the count keeps a copy, one too few would lose it.
        """
        before = self.lower or lower_names or 0
        added = max(0, (lower_names or 0) - before)
        return Links(self.view + added, before + added or None)


@dataclass(frozen=True, slots=True)
class Change:
    """The attributes to change, all at once; None leaves one as it is.

    `mode` holds permission bits only. Times are nanoseconds since the epoch; `only_touches` says that nothing else
    is changed, and that both are now. `kill_privileges` drops
    set-user-ID, set-group-ID and capabilities, as the VFS does when an ordinary user writes or truncates. `by_path`:
    the size is changed by truncate(2), and not by ftruncate(2), see `upper.resize`.
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
