"""What is remembered of the views that are mounted, and where?

A mounted view leaves a small record (who serves it, from which layers) in a runtime directory, and beside it
the socket at which its daemon can be asked.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from overlayfs_demo import mount_table
from overlayfs_demo.errors import MountError
from overlayfs_demo.fronts.base import FILESYSTEM_TYPE


@dataclass(frozen=True, slots=True)
class Record:
    """What is remembered of a live mount. Paths are as text, with surrogates for undecodable bytes.

    `lowers` are topmost first, and `titles` say what made each, see `Stack`; "" where that is unknown.
    """

    mountpoint: str
    pid: int
    front: str
    lowers: list[str]
    upper: str | None = None
    titles: list[str] = field(default_factory=list)

    def save(self) -> None:
        """Write the record, at once for whoever reads it."""
        path = _record_path(self.mountpoint)
        unfinished = path.with_suffix(f".{os.getpid()}")
        unfinished.write_text(json.dumps({name: getattr(self, name) for name in self.__slots__}))
        unfinished.rename(path)

    def forget(self) -> None:
        """Remove the record; it need not exist."""
        _record_path(self.mountpoint).unlink(missing_ok=True)


def _runtime_directory() -> Path:
    """Where records are kept until the next boot: /run for root, who in a user namespace may not write there."""
    if os.geteuid() == 0 and os.access("/run", os.W_OK):
        directory = Path("/run/overlayfs-demo")
    elif runtime := os.environ.get("XDG_RUNTIME_DIR"):
        directory = Path(runtime) / "overlayfs-demo"
    else:
        directory = Path(f"/tmp/overlayfs-demo-{os.geteuid()}")
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = directory.lstat()
    except OSError as error:
        raise MountError(f"{directory}: {error.strerror}", "name a directory of yours in XDG_RUNTIME_DIR") from error
    if status.st_uid != os.geteuid() or not stat.S_ISDIR(status.st_mode):
        raise MountError(f"{directory} belongs to somebody else", "name a directory of yours in XDG_RUNTIME_DIR")
    return directory


def _record_path(mountpoint: str) -> Path:
    return _runtime_directory() / f"{hashlib.sha256(os.fsencode(mountpoint)).hexdigest()[:16]}.json"


def socket_path(mountpoint: str, uid: int | None = None) -> Path:
    """Where the daemon of a mount point can be asked, see `control`; for root that may be another user's daemon."""
    mine = _record_path(mountpoint).with_suffix(".sock")
    if uid is None or os.geteuid() != 0:
        return mine
    theirs = (Path(f"/run/user/{uid}/overlayfs-demo"), Path(f"/tmp/overlayfs-demo-{uid}"))
    return next((path for directory in theirs if (path := directory / mine.name).exists()), mine)


def find_record(mountpoint: str) -> Record | None:
    """The record of a mount point, if there is one."""
    return _read_record(_record_path(mountpoint))


def _read_record(path: Path) -> Record | None:
    """None if there is none, perhaps because its daemon has just ended. A later version may have noted more."""
    try:
        found = json.loads(path.read_text())
        return Record(**{name: found[name] for name in Record.__slots__ if name in found})
    except FileNotFoundError:
        return None


def live_records() -> list[Record]:
    """The records of all views that are mounted now."""
    live = mounted()
    records = [_read_record(path) for path in sorted(_runtime_directory().glob("*.json"))]
    return [record for record in records if record is not None and record.mountpoint in live]


def mounted() -> set[str]:
    """Where our views are mounted in this mount namespace."""
    return {os.fsdecode(one.mountpoint) for one in mount_table.mounts() if one.kind == FILESYSTEM_TYPE}


def place_in_view(path: bytes, *, follow: bool) -> tuple[str, str, Path]:
    """On which view a path lies: its mount point, the absolute path in it, and where its daemon can be asked.

    The path need not exist. `follow`: if it is a symbolic link, where that leads is meant. Raises MountError.
    """
    head, name = os.path.split(path)
    if follow or name in (b"", b".", b".."):
        resolved = os.path.realpath(path)
    else:
        resolved = os.path.join(os.path.realpath(head), name)
    above = [one for one in mount_table.mounts() if _lies_in(resolved, one.mountpoint)]
    # Of several at one place the last one made is seen.
    found = max(enumerate(above), key=lambda numbered: (len(numbered[1].mountpoint), numbered[0]))[1]
    mountpoint = os.fsdecode(found.mountpoint)
    if found.kind != FILESYSTEM_TYPE:
        raise MountError(f"{os.fsdecode(path)} does not lie in a view", f"'findmnt -t {FILESYSTEM_TYPE}' lists those")
    owner = next((int(one[8:]) for one in found.options if one.startswith("user_id=")), os.geteuid())
    if os.geteuid() not in (0, owner):
        raise MountError(f"{mountpoint} was mounted by user {owner}", "only they and root can ask its daemon")
    inside = b"/" + os.path.relpath(resolved, found.mountpoint)
    return mountpoint, os.fsdecode(os.path.normpath(inside)), socket_path(mountpoint, owner)


def _lies_in(path: bytes, directory: bytes) -> bool:
    return path == directory or path.startswith(directory.rstrip(b"/") + b"/")
