"""What other programs call to mount and unmount: the helpers of mount(8) and umount(8), and a mount program.

podman, buildah and Docker have a view mounted by a mount program, which takes the arguments of fuse-overlayfs(1).
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from overlayfs_demo import __version__
from overlayfs_demo.errors import MountError
from overlayfs_demo.linux import mounting, proc
from overlayfs_demo.mounts import mount, umount
from overlayfs_demo.mounts.options import parse
from overlayfs_demo.ui.console import PROGRAM


def mount_as_helper(arguments: Sequence[str]) -> int:
    """Mount as mount(8) asks a helper to: SOURCE MOUNTPOINT [-sfnv] [-N NS] [-t TYPE] [-o OPTIONS]; return 0.

    Raises OverlayError.
    """
    parser = argparse.ArgumentParser(prog=f"mount.fuse.{PROGRAM}", add_help=False)
    parser.add_argument("source")
    parser.add_argument("mountpoint")
    parser.add_argument("-o", dest="options", action="append", default=[])
    parser.add_argument("-t", dest="type")
    for flag in "sfnv":
        parser.add_argument(f"-{flag}", dest=flag, action="store_true")
    given = parser.parse_args(arguments)
    if mount.remount(os.fsencode(given.mountpoint), given.options):
        return 0
    options = parse(given.options)
    if not given.f:  # mount -f: everything but the mounting.
        mount.mount(os.fsencode(given.mountpoint), options._replace(source=options.source or given.source))
    return 0


def mount_as_program(arguments: Sequence[str]) -> int:
    """Mount as fuse-overlayfs(1) does: [-f] [-d] [-s] [-o OPTIONS]... MOUNTPOINT; return 0. Raises OverlayError.

    As with fuse-overlayfs, `userxattr` need not be said where trusted.* attributes are not permitted.
    """
    parser = argparse.ArgumentParser(prog=PROGRAM)
    parser.add_argument("mountpoint", metavar="MOUNTPOINT")
    parser.add_argument("-o", dest="options", action="append", default=[], metavar="OPTIONS")
    parser.add_argument("-f", "-d", "--debug", dest="foreground", action="store_true", help="serve in this process")
    parser.add_argument("-s", dest="single", action="store_true", help="without effect")
    parser.add_argument("-V", "--version", action="version", version=f"{PROGRAM} {__version__}")
    given = parser.parse_args(arguments)
    options = parse(given.options)
    if os.geteuid() != 0 or proc.in_user_namespace():  # xattr(7): only root of the first one may set trusted.* there.
        options = options._replace(stack=options.stack._replace(user_xattrs=True))
    mount.mount(os.fsencode(given.mountpoint), options, foreground=given.foreground)
    return 0


def umount_as_helper(arguments: Sequence[str]) -> int:
    """Unmount as umount(8) asks a helper to: DIR [-flnrv] [-N NS] [-t TYPE]; return 0. Raises OverlayError.

    Thus umount(8) returns when the layers are free, and not before the daemon has let go of them.
    """
    parser = argparse.ArgumentParser(prog=f"umount.fuse.{PROGRAM}", add_help=False)
    parser.add_argument("mountpoint")
    parser.add_argument("-N", dest="namespace")
    parser.add_argument("-t", dest="type")
    for flag in "flnrv":
        parser.add_argument(f"-{flag}", dest=flag, action="store_true")
    given = parser.parse_args(arguments)
    if given.namespace is not None:
        mounting.enter_mount_namespace(given.namespace)
    try:
        umount.unmount(os.fsencode(given.mountpoint), lazy=given.l, force=given.f)
    except MountError:
        if not given.r or not mount.remount(os.fsencode(given.mountpoint), ["remount", "ro"]):
            raise
    return 0
