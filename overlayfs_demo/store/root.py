"""The root directory of a store: where it is by default, and the version file that makes a directory a store."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from overlayfs_demo.errors import ImageError, printable
from overlayfs_demo.images.record_file import read_file

_VERSION_FILE = "version"
VERSION = b"overlayfs-demo store 1\n"


def default_root() -> Path:
    """Return the default place of the store: the machine's for root, the user's own for others."""
    if chosen := os.environ.get("OVERLAYFS_DEMO_STORE"):
        return Path(chosen)
    if os.geteuid() == 0:
        return Path("/var/lib/overlayfs-demo")
    home = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share"
    return Path(home) / "overlayfs-demo"


def read_version(root: Path) -> bytes | None:
    """Return the contents of a store's version file; None if there is no such file."""
    try:
        return read_file(root / _VERSION_FILE)
    except FileNotFoundError:
        return None


def create(root: Path) -> None:
    """Make an empty directory a store by writing its version. Raises ImageError if it holds anything else.

    Several processes may do this at once. The first to lock the directory writes the version, and the others find it
    written. A process that is killed in between leaves the beginning of the version, which the next one completes.
    """
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        version = read_version(root)
        if version == VERSION:
            return
        if version is not None and not VERSION.startswith(version):
            raise ImageError(f"{printable(str(root))} is a store of a different version", "choose another --store")
        if set(os.listdir(fd)) - {_VERSION_FILE}:
            raise ImageError(f"{printable(str(root))} is not empty and not a store", "choose another --store")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(_VERSION_FILE, flags, 0o644, dir_fd=fd), "wb") as file:
            file.write(VERSION)
            file.flush()
            # A store whose version was lost in a power failure would be refused.
            os.fsync(file.fileno())
    finally:
        os.close(fd)
