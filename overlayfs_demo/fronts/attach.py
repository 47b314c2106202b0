"""Attaching a process to a mount point through /dev/fuse, and detaching it.

Root mounts with mount(2), also inside a user namespace. Other users ask fusermount3(1), which mounts
for them and passes the opened device back over a socket.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import subprocess

from overlayfs_demo.errors import MountError
from overlayfs_demo.fronts.front import FILESYSTEM_TYPE, LIBFUSE_FLAGS, SUBTYPE, View, escape_value
from overlayfs_demo.linux import mounting
from overlayfs_demo.linux.failure import failure

DEVICE = "/dev/fuse"


def why_unusable() -> str:
    """Return why this process cannot use /dev/fuse, or "" if it can."""
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
    return _ask_fusermount(view)


def detach(mountpoint: bytes, lazy: bool = False, force: bool = False) -> None:
    """Unmount a mount point.

    With `lazy` the name disappears now, and the mount when its last user is gone. With `force`, which has an effect
    for root only, requests that are waiting for an answer fail first. Raises OSError (EBUSY) or MountError.
    """
    if os.geteuid() == 0:
        flags = (mounting.MNT_DETACH if lazy else 0) | (mounting.MNT_FORCE if force else 0)
        mounting.unmount(mountpoint, flags)
        return
    command = [b"fusermount3", b"-u", *([b"-z"] if lazy else []), b"--", mountpoint]
    done = _run(command)
    if done.returncode:
        message = os.fsdecode(done.stderr).strip()
        if "busy" in message:
            raise failure(errno.EBUSY, mountpoint)
        raise MountError(message or f"fusermount3 failed with status {done.returncode}")


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


def _ask_fusermount(view: View) -> int:
    words = [flag.word for flag in LIBFUSE_FLAGS if view.flags & flag.bit]
    words += [f"fsname={escape_value(view.source)}", f"subtype={SUBTYPE}"]
    if view.checked:
        words.append("default_permissions")
    if view.allow_other:
        words.append("allow_other")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        command = [b"fusermount3", b"-o", ",".join(words).encode(), b"--", view.mountpoint]
        done = _run(command, theirs.fileno())
        if done.returncode:
            raise MountError(os.fsdecode(done.stderr).strip() or "fusermount3 failed")
        _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
    if not descriptors:
        raise MountError("fusermount3 did not send a device")
    os.set_inheritable(descriptors[0], False)
    return descriptors[0]


def _run(command: list[bytes], pass_fd: int | None = None) -> subprocess.CompletedProcess[bytes]:
    environment = dict(os.environ)
    if pass_fd is not None:
        environment["_FUSE_COMMFD"] = str(pass_fd)
    try:
        return subprocess.run(
            command, capture_output=True, env=environment, check=False, pass_fds=[] if pass_fd is None else [pass_fd]
        )
    except FileNotFoundError as error:
        raise MountError("fusermount3 is not installed", "install the package fuse3, or mount as root") from error
