"""The content of a directory, name by name, as an overlay reads it."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from overlayfs_demo.linux import xattr
from overlayfs_demo.overlay.whiteout import TRUSTED, USER, is_whiteout


class Kind(StrEnum):
    """The type of file that a name refers to."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symbolic link"
    WHITEOUT = "whiteout"
    OTHER = "device, fifo or socket"


@dataclass(frozen=True, slots=True)
class ScanEntry:
    """One name. `size` is in bytes, `digest` is the SHA-256 of a file, and `target` is that of a symbolic link.

    `opaque` and `redirect` are the overlay's marks of a directory, in either of the two xattr namespaces.
    """

    kind: Kind
    mode: int
    size: int = 0
    links: int = 1
    digest: str = ""
    target: str = ""
    opaque: bool = False
    redirect: str = ""
    mtime_ns: int = 0


# The entries by their paths, which are relative to the scanned directory.
Tree = Mapping[str, ScanEntry]


def scan(top: Path, leave_out: Collection[str] = ()) -> Tree:
    """Return everything below a directory, except these names directly in it. Raises OSError."""
    found = {}
    for above, directories, files in os.walk(top, onerror=_fail):
        if above == str(top):
            directories[:] = [name for name in directories if name not in leave_out]
        for name in directories + files:
            path = Path(above, name)
            found[str(path.relative_to(top))] = _entry(path)
    return found


def _fail(error: OSError) -> None:
    raise error


def _entry(path: Path) -> ScanEntry:
    status = path.lstat()
    mode, mtime = stat.S_IMODE(status.st_mode), status.st_mtime_ns
    if is_whiteout(status):
        return ScanEntry(Kind.WHITEOUT, mode, mtime_ns=mtime)
    if stat.S_ISDIR(status.st_mode):
        return ScanEntry(
            Kind.DIRECTORY,
            mode,
            opaque=any(_mark(path, namespace.opaque) == "y" for namespace in (TRUSTED, USER)),
            redirect=_mark(path, TRUSTED.redirect) or _mark(path, USER.redirect),
            mtime_ns=mtime,
        )
    if stat.S_ISLNK(status.st_mode):
        return ScanEntry(Kind.SYMLINK, mode, target=os.readlink(path), mtime_ns=mtime)
    if stat.S_ISREG(status.st_mode):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return ScanEntry(Kind.FILE, mode, status.st_size, status.st_nlink, digest, mtime_ns=mtime)
    return ScanEntry(Kind.OTHER, mode, mtime_ns=mtime)


def _mark(path: Path, name: str) -> str:
    value = xattr.get(os.fsencode(path), name)
    return "" if value is None else os.fsdecode(value)
