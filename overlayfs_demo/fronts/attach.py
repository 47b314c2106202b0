"""Attaching a process to a mount point through /dev/fuse, and detaching it.

Root mounts with mount(2), also inside a user namespace. Other users ask fusermount3(1): the module `fusermount` is
imported only for them, because it needs much that root's mount does not.
"""

from __future__ import annotations

import os
import stat

from overlayfs_demo.errors import MountError
from overlayfs_demo.fronts.front import FILESYSTEM_TYPE, View
from overlayfs_demo.linux import mounting

DEVICE = "/dev/fuse"


def why_unusable() -> str:
    """Return why this process cannot mount, or "" if it can."""
    if os.geteuid() != 0:
        from overlayfs_demo.fronts import fusermount

        return "" if fusermount.is_installed() else "fusermount3 is not installed"
    try:
        os.close(os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"{DEVICE}: {error.strerror}"
    return ""


def attach(view: View) -> int:
    """Mount the view on its mount point and return the device that serves it, which the caller owns.

    Raises MountError.
    """
    if os.geteuid() == 0:
        return _mount_directly(view)
    from overlayfs_demo.fronts import fusermount

    return fusermount.mount(view)


def detach(mountpoint: bytes, lazy: bool = False, force: bool = False) -> None:
    """Unmount a mount point.

    With `lazy` the name disappears now, and the mount when its last user is gone. With `force`, which has an effect
    for root only, requests that are waiting for an answer fail first. Raises OSError (EBUSY) or MountError.
    """
    if os.geteuid() == 0:
        flags = (mounting.MNT_DETACH if lazy else 0) | (mounting.MNT_FORCE if force else 0)
        mounting.unmount(mountpoint, flags)
        return
    from overlayfs_demo.fronts import fusermount

    fusermount.unmount(mountpoint, lazy)


def _mount_directly(view: View) -> int:
    try:
        device = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise MountError(f"{DEVICE}: {error.strerror}", "load the kernel module with 'modprobe fuse'") from error
    kind = stat.S_IFMT(os.stat(view.mountpoint).st_mode)
    options = f"fd={device},rootmode={kind:o},user_id={os.geteuid()},group_id={os.getegid()}"
    if view.checked:
        options += ",default_permissions"
    if view.allow_other:
        options += ",allow_other"
    try:
        mounting.mount(
            os.fsencode(view.source), view.mountpoint, FILESYSTEM_TYPE.encode(), view.flags, options.encode()
        )
    except OSError as error:
        os.close(device)
        raise MountError(f"{os.fsdecode(view.mountpoint)}: mount(2) failed: {error.strerror}") from error
    return device
