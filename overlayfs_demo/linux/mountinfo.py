"""The mounts in the mount namespace of this process or another."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

from overlayfs_demo.named_tuple import NamedTuple


class Mounted(NamedTuple):
    """One mount.

    `device` is the device number (`major:minor`) and `kind` the type of its filesystem; `options` are those that the
    filesystem lists, still escaped. `number` tells mounts apart. `root` is the mounted directory of the filesystem.
    """

    mountpoint: bytes
    device: str
    kind: str
    options: tuple[str, ...]
    number: int
    root: bytes


class Place(NamedTuple):
    """The position of a directory in its filesystem, which does not depend on the mount it is reached through."""

    device: str
    path: bytes

    def is_within(self, other: Place) -> bool:
        """Return whether this is the other directory, or lies below it."""
        return self == other or (self.device == other.device and self.path.startswith(other.path.rstrip(b"/") + b"/"))


def mounts(process: int | str = "self") -> list[Mounted]:
    """Return all mounts that a process sees, in the order in which they were made. Raises OSError.

    The source is proc_pid_mountinfo(5).
    """
    found = []
    with open(f"/proc/{process}/mountinfo", errors="surrogateescape") as file:  # noqa: PTH123
        lines = file.read().splitlines()
    for line in lines:
        fields, _, rest = line.partition(" - ")
        kind, _, options = rest.split(" ")
        number, _, device, root, mountpoint, *_ = fields.split(" ")
        names = tuple(options.split(","))
        found.append(Mounted(unescape(mountpoint), device, kind, names, int(number), unescape(root)))
    return found


def top(mountpoint: bytes) -> Mounted | None:
    """Return the visible mount at a mount point, which is the last one made there, or None."""
    return next((found for found in reversed(mounts()) if found.mountpoint == mountpoint), None)


def below(directory: bytes) -> list[bytes]:
    """Return the mount points at and below a directory, which is given by its real path."""
    start = directory.rstrip(b"/") + b"/"
    return [found.mountpoint for found in mounts() if (found.mountpoint + b"/").startswith(start)]


def mount_number(path: bytes) -> int:
    """Return the number of the mount that a directory is on. Raises OSError."""
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        return mount_number_of(fd)
    finally:
        os.close(fd)


def mount_number_of(fd: int) -> int:
    """Return the number of the mount that an open file is on, without asking its filesystem. Raises OSError."""
    # proc_pid_fdinfo(5), "mnt_id"
    with open(f"/proc/self/fdinfo/{fd}") as lines:  # noqa: PTH123
        return next(int(line.split()[1]) for line in lines if line.startswith("mnt_id:"))


def places(paths: Iterable[bytes]) -> list[Place]:
    """Return the place of each directory. Raises OSError."""
    by_number = {mounted.number: mounted for mounted in mounts()}
    found = []
    for path in paths:
        real, mounted = os.path.realpath(path), by_number.get(mount_number(path))
        if mounted is None or not (real + b"/").startswith(mounted.mountpoint.rstrip(b"/") + b"/"):
            # This process sees only part of the mount, so mountinfo does not tell the path in the filesystem.
            found.append(Place(str(os.stat(path).st_dev), real))
            continue
        inside = os.path.relpath(real, mounted.mountpoint)
        found.append(Place(mounted.device, os.path.normpath(os.path.join(mounted.root, inside))))
    return found


def unescape(text: str) -> bytes:
    """Undo the octal escapes (`\\040` for a blank) by which the kernel keeps such lists parsable."""
    if "\\" not in text:
        return os.fsencode(text)
    return re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), os.fsencode(text))
