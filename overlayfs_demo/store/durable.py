"""Writing and publishing of what a store keeps, so that a power failure leaves the old state or the new one.

A rename(2) is atomic for other processes, but the disk may see it before the data of the renamed file, which is then
empty after a power failure (ext4(5), "auto_da_alloc"). So each change takes three steps: the data is synced, then it is
renamed to its place, then the directory of that place is synced. A change that relies on another comes after the last
step of the other.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable
from pathlib import Path

from overlayfs_demo.linux import syscalls


def write_file(path: Path, data: bytes, staged: Path) -> None:
    """Replace a file. Its new contents get the name `staged` first, on the same filesystem. Raises OSError."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(staged, flags, 0o644), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    staged.rename(path)
    sync_directory(path.parent)


def sync_all(place: Path) -> None:
    """Sync everything on the filesystem of the directory `place`: syncfs(2). Raises OSError.

    For a tree of many files this takes much less time than one fsync(2) for each.
    """
    fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        syscalls.sync_filesystem(fd)
    finally:
        os.close(fd)


def move(steps: Iterable[tuple[Path, Path]]) -> None:
    """Rename each first path, whose contents are synced, to the second, in order; all go into one directory.

    Without steps nothing happens. Raises OSError.
    """
    above = None
    for staged, path in steps:
        staged.rename(path)
        above = path.parent
    if above is not None:
        sync_directory(above)


def make_directory(path: Path, mode: int) -> None:
    """Make a directory unless it exists, and sync the one that it is in. Raises OSError."""
    if not path.is_dir():
        path.mkdir(mode, exist_ok=True)
        with contextlib.suppress(PermissionError):  # We may make names in some directories that we may not read.
            sync_directory(path.parent)


def make_directories(path: Path) -> None:
    """Make a directory and its parents with mode 0755, as far as they do not exist. Raises OSError."""
    for directory in reversed((path, *path.parents)):
        make_directory(directory, 0o755)


def remove_file(path: Path) -> None:
    """Remove a file if it exists, and sync its directory. Raises OSError."""
    path.unlink(missing_ok=True)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Sync the names in a directory, and its own attributes: fsync(2). Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno != errno.EINVAL:  # This filesystem syncs no directories.
            raise
    finally:
        os.close(fd)
