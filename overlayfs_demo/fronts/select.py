"""The choice of a front that works on this machine."""

from __future__ import annotations

import os

from overlayfs_demo.errors import MountError
from overlayfs_demo.fronts import attach
from overlayfs_demo.fronts.front import Front
from overlayfs_demo.fronts.kernel.session import KernelFront
from overlayfs_demo.linux import libc

# systemd links it when a machine starts; a chroot or a container may lack it.
MTAB = "/etc/mtab"
LIBFUSE_REMEDY = "install the package libfuse2 (libfuse2t64 on Debian 13 and Ubuntu 24.04), or use --front kernel"


def front(wanted: str) -> tuple[str, Front]:
    """Return the name and the front called `kernel` or `fusepy`; for `auto`, the first of these that works here.

    Raises MountError, which says what to install.
    """
    if not os.path.exists(attach.DEVICE):
        raise MountError(f"{attach.DEVICE} does not exist", "load the kernel module with 'modprobe fuse'")
    if os.geteuid() != 0 and not os.path.exists(MTAB):
        remedy = f"as root, run 'ln -s ../proc/self/mounts {MTAB}'"
        raise MountError(f"{MTAB} does not exist, and fusermount3 could not unmount without it", remedy)
    problem = attach.why_unusable()
    if wanted == "kernel" or (wanted == "auto" and not problem):
        if problem:
            remedy = "install the package fuse3, or mount as root"
            raise MountError(f"the kernel front cannot be used: {problem}", remedy)
        return "kernel", KernelFront()
    if not libc.has_library("fuse"):
        why = f"; nor can the kernel front: {problem}" if problem else ""
        raise MountError(f"the fusepy front cannot be used: libfuse 2 is not installed{why}", LIBFUSE_REMEDY)
    # Imported only here, because fusepy loads libfuse 2 on import, and the kernel front must work without it.
    from overlayfs_demo.fronts.fusepy.callbacks import FusepyFront

    return "fusepy", FusepyFront()
