"""The root directory of a store: where it is by default, and the version file that makes a directory a store."""

from __future__ import annotations

import fcntl
import os
import shlex
from pathlib import Path

from overlayfs_demo.errors import ImageError, printable
from overlayfs_demo.images.record_file import read_file
from overlayfs_demo.store import durable

_VERSION_FILE = "version"
_UNFINISHED = "version.new"
VERSION = b"overlayfs-demo store 1\n"
# The directories that a store has from the beginning; each has mode 0700.
PARTS = ("layers", "images", "tmp")
# What else may be in a store.
_OTHERS = frozenset(
    {_VERSION_FILE, _UNFINISHED, "blobs.json", "containers", "empty", "lock", "lost+found", "names.json"}
)


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


def has_lost_version(root: Path) -> bool:
    """Return whether this is a store but for its version file, which is missing or cut off.

    A power failure may leave that of a file that is not synced. Raises OSError.
    """
    version = read_version(root)
    if version == VERSION or not VERSION.startswith(version or b""):
        return False
    is_store = all((root / part).is_dir() for part in PARTS)
    return is_store and _OTHERS.union(PARTS).issuperset(os.listdir(root))


def create(root: Path) -> None:
    """Make an empty directory a store by writing its version. Raises ImageError if it holds anything else.

    Several processes may do this at once. The first to lock the directory writes the version, and the others find it
    written. It is on the disk before anything else is made here, so no later power failure can leave a store without.
    """
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        version = read_version(root)
        if version == VERSION:
            return
        shown = printable(str(root))
        if version is not None and not VERSION.startswith(version):
            raise ImageError(f"{shown} is a store of a different version", "choose another --store")
        if has_lost_version(root):
            raise ImageError(
                f"the file 'version' of the store {shown} is missing or cut off, as after a power failure",
                f"'overlayfs-demo fsck --repair --store {printable(shlex.quote(str(root)))}' writes it again",
            )
        if set(os.listdir(fd)) - {_VERSION_FILE, _UNFINISHED}:
            raise ImageError(f"{shown} is not empty and not a store", "choose another --store")
        write_version(root)
    finally:
        os.close(fd)


def write_version(root: Path) -> None:
    """Write the version of a store, while nobody else does. Raises OSError."""
    durable.write_file(root / _VERSION_FILE, VERSION, root / _UNFINISHED)
