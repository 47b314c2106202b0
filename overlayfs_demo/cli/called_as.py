"""The ways in which other programs call this one, without a verb: mount(8), umount(8), podman, buildah, Docker."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from overlayfs_demo.cli.families import MODULE_OF

# Docker finds its mount program by this name in the PATH (moby, daemon/graphdriver/fuse-overlayfs).
_MOUNT_PROGRAM = "fuse-overlayfs"

Call = Callable[[Sequence[str]], int]


def called_as(program: str, arguments: Sequence[str]) -> Call | None:
    """Return what answers such a call, given the path of this program; None if the arguments begin with a verb.

    mount(8) calls a helper by its name, `mount.fuse.overlayfs-demo`. mount.fuse3(8) runs this program by its own name
    with exactly these words: SOURCE MOUNTPOINT -o OPTIONS; mount(8) has made the mount point absolute. podman and
    buildah call their `mount_program`, whatever its name, as PROGRAM -o OPTIONS MOUNTPOINT (containers/storage,
    drivers/overlay).
    """
    name = os.path.basename(program)
    if name.startswith("umount."):
        return _umount_helper
    if name.startswith("mount."):
        return _mount_helper
    if name == _MOUNT_PROGRAM:
        return _mount_program
    match arguments:
        case ["-o", _, *_]:
            return _mount_program
        case [source, mountpoint, "-o", _] if source not in MODULE_OF and mountpoint.startswith("/"):
            return _mount_helper
    return None


# What answers is imported only when it is called.


def _umount_helper(arguments: Sequence[str]) -> int:
    from overlayfs_demo.cli.mount_helper import umount_as_helper

    return umount_as_helper(arguments)


def _mount_helper(arguments: Sequence[str]) -> int:
    from overlayfs_demo.cli.mount_helper import mount_as_helper

    return mount_as_helper(arguments)


def _mount_program(arguments: Sequence[str]) -> int:
    from overlayfs_demo.cli.mount_helper import mount_as_program

    return mount_as_program(arguments)
