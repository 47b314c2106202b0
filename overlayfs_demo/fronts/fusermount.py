"""Mounting and unmounting by fusermount3(1), which has the rights that an ordinary user lacks."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess

from overlayfs_demo.errors import MountError
from overlayfs_demo.fronts.front import LIBFUSE_FLAGS, SUBTYPE, View, escape_value
from overlayfs_demo.linux.failure import failure

_PROGRAM = "fusermount3"


def is_installed() -> bool:
    """Return whether the program is there."""
    return shutil.which(_PROGRAM) is not None


def mount(view: View) -> int:
    """Mount the view on its mount point and return the device that serves it, which the caller owns.

    fusermount3 passes the opened device back over a socket. Raises MountError.
    """
    words = [flag.word for flag in LIBFUSE_FLAGS if view.flags & flag.bit]
    words += [f"fsname={escape_value(view.source)}", f"subtype={SUBTYPE}"]
    if view.checked:
        words.append("default_permissions")
    if view.allow_other:
        words.append("allow_other")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        done = _run([b"-o", ",".join(words).encode(), b"--", view.mountpoint], theirs.fileno())
        if done.returncode:
            raise MountError(os.fsdecode(done.stderr).strip() or "fusermount3 failed")
        _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
    if not descriptors:
        raise MountError("fusermount3 did not send a device")
    os.set_inheritable(descriptors[0], False)
    return descriptors[0]


def unmount(mountpoint: bytes, lazy: bool) -> None:
    """Unmount a mount point; with `lazy`, when its last user is gone. Raises OSError (EBUSY) or MountError."""
    done = _run([b"-u", *([b"-z"] if lazy else []), b"--", mountpoint])
    if done.returncode:
        message = os.fsdecode(done.stderr).strip()
        if "busy" in message:
            raise failure(errno.EBUSY, mountpoint)
        raise MountError(message or f"fusermount3 failed with status {done.returncode}")


def _run(arguments: list[bytes], pass_fd: int | None = None) -> subprocess.CompletedProcess[bytes]:
    environment = dict(os.environ)
    if pass_fd is not None:
        environment["_FUSE_COMMFD"] = str(pass_fd)
    try:
        return subprocess.run(
            [_PROGRAM, *arguments],
            capture_output=True,
            env=environment,
            check=False,
            pass_fds=[] if pass_fd is None else [pass_fd],
        )
    except FileNotFoundError as error:
        raise MountError("fusermount3 is not installed", "install the package fuse3, or mount as root") from error
