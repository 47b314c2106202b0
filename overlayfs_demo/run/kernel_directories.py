"""The directories of a container that the kernel fills: /proc and /dev, with a terminal if one is wanted.

What of this machine they need is taken before the container's tree becomes the root. Afterwards every name may be a
trap: it leads only into the container, but to anything there.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import struct
from collections.abc import Sequence

from overlayfs_demo.linux import confinement, mounting
from overlayfs_demo.linux.mounting import MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_RDONLY

_DEVICES = (b"null", b"zero", b"full", b"random", b"urandom", b"tty")
_LINKS = {"fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2", "ptmx": "pts/ptmx"}
# moby oci/defaults.go, MaskedPaths: what tells of this machine, or of keys of the same user.
_MASKED_FILES = (
    b"/proc/interrupts",
    b"/proc/kcore",
    b"/proc/keys",
    b"/proc/latency_stats",
    b"/proc/sched_debug",
    b"/proc/timer_list",
    b"/proc/timer_stats",
)
_MASKED_DIRECTORIES = (b"/proc/acpi", b"/proc/asound", b"/proc/scsi")
_SAFE = MS_NOSUID | MS_NODEV | MS_NOEXEC
_DEVPTS = b"newinstance,ptmxmode=0666,mode=0620"
# asm-generic/ioctls.h
_TIOCSPTLCK, _TIOCGPTPEER = 0x40045431, 0x5441


class KernelDirectories:
    """What fills the directories. Make it before the change of the root, and call `fill` after it."""

    def __init__(self) -> None:
        """Take what is needed of this machine. Raises OSError."""
        # Read-only mounts keep root from changing the host's own nodes by chmod(2); data passes.
        self._devices = [(name, mounting.clone_mount_read_only(b"/dev/" + name)) for name in _DEVICES]
        self._masks = [
            (path, mounting.clone_mount_read_only(b"/dev/null")) for path in _MASKED_FILES if os.path.exists(path)
        ]
        mounting.mount(b"devpts", b"/dev/pts", b"devpts", MS_NOSUID | MS_NOEXEC, _DEVPTS)
        self._terminals = mounting.clone_mount(b"/dev/pts", 0)

    def open_terminal(self) -> tuple[int, int]:
        """Return the two sides of a new terminal of the container, master first: ioctl_tty(2). Raises OSError."""
        master = os.open("/dev/pts/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        fcntl.ioctl(master, _TIOCSPTLCK, struct.pack("i", 0))
        return master, fcntl.ioctl(master, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)

    def fill(self) -> None:
        """Mount /proc and /dev on the directories of these names, if there are any. Raises OSError."""
        if _is_directory("/proc"):
            # An ordinary user may not, if something is mounted over a part of the host's /proc: then there is none.
            with contextlib.suppress(PermissionError):
                mounting.mount(b"proc", b"/proc", b"proc", _SAFE | MS_RDONLY, b"")
                self._mask()
        if _is_directory("/dev"):
            self._fill_dev()
        for fd in (*_descriptors(self._devices), *_descriptors(self._masks), self._terminals):
            os.close(fd)

    def _mask(self) -> None:
        for path, fd in self._masks:
            confinement.attach_mount(fd, path)
        for path in filter(os.path.isdir, _MASKED_DIRECTORIES):
            mounting.mount(b"tmpfs", path, b"tmpfs", _SAFE | MS_RDONLY, b"size=0")

    def _fill_dev(self) -> None:
        mounting.mount(b"tmpfs", b"/dev", b"tmpfs", MS_NOSUID | MS_NOEXEC, b"mode=755,size=64k")
        for name, fd in self._devices:
            place = b"/dev/" + name
            os.close(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
            confinement.attach_mount(fd, place)
        for link, target in _LINKS.items():
            os.symlink(target, f"/dev/{link}")
        for directory in ("/dev/pts", "/dev/shm"):
            os.mkdir(directory)
        confinement.attach_mount(self._terminals, b"/dev/pts")
        mounting.mount(b"tmpfs", b"/dev/shm", b"tmpfs", _SAFE, b"mode=1777,size=64m")


def _descriptors(mounts: Sequence[tuple[bytes, int]]) -> list[int]:
    return [fd for _, fd in mounts]


def _is_directory(path: str) -> bool:
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except FileNotFoundError:
        return False
