"""Files that the kernel reads and writes itself for a FUSE mount.

See Documentation/filesystems/fuse/fuse-passthrough.rst and include/uapi/linux/fuse.h (Linux 6.9).
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from overlayfs_demo.linux import capabilities, proc

_BACKING_OPEN = 0x4010E501
_BACKING_CLOSE = 0x4004E502
_BACKING_MAP = struct.Struct("=iI8x")
_BACKING_ID = struct.Struct("=i")

_CAP_FSETID = 4


class Passthrough:
    """Gives the kernel files to use for the FUSE connection `device`, each by an id.

    The kernel uses such a file with the rights that the thread which gave it had, whoever writes. With CAP_FSETID a
    write would leave the set-id bits of the file, so the files are given without it.
    """

    __slots__ = ("_device", "_full", "_reduced")

    def __init__(self, device: int) -> None:
        self._device = device
        effective, *others = capabilities.present()
        self._full = capabilities.packed((effective, *others))
        self._reduced = capabilities.packed((effective & ~(1 << _CAP_FSETID), *others))

    def give(self, fd: int) -> int:
        """Give the regular file open as `fd`, and return its id, to be taken back with `take_back`.

        Raises OSError: EPERM without CAP_SYS_ADMIN in the first user namespace, ELOOP if the file's filesystem is
        stacked as high as is allowed.
        """
        argument = bytearray(_BACKING_MAP.pack(fd, 0))
        capabilities.apply(self._reduced)
        try:
            backing: int = fcntl.ioctl(self._device, _BACKING_OPEN, argument, True)
            return backing
        finally:
            capabilities.apply(self._full)

    def take_back(self, backing: int) -> None:
        """Forget an id. Open files that use it keep the file. Raises OSError."""
        fcntl.ioctl(self._device, _BACKING_CLOSE, _BACKING_ID.pack(backing))


def accepts_direct(fd: int) -> bool:
    """Whether the regular file open as `fd` can be opened with O_DIRECT: open(2).

    It is opened again for that, because others may use the descriptor at the same time.
    """
    try:
        os.close(os.open(proc.fd_path(fd), os.O_RDONLY | os.O_DIRECT | os.O_NOATIME | os.O_CLOEXEC))
    except OSError as error:
        return error.errno != errno.EINVAL
    return True
