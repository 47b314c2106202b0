"""What does one layer say about one path?

A layer is in the kernel's format, as `unpack` makes it (Linux Documentation/filesystems/overlayfs.rst, "whiteouts
and opaque directories"), with either namespace of attributes. No image holds metacopies or redirects, so they are
not read.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from overlayfs_demo.errors import ImageError, printable
from overlayfs_demo.linux import syscalls
from overlayfs_demo.overlay.merge import Says
from overlayfs_demo.overlay.whiteout import TRUSTED, USER, is_whiteout

# No O_NOFOLLOW: see `tree`.
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY

Root = tuple[str, int]
"""A layer's label, for messages, and the descriptor of its directory."""


class Thing(NamedTuple):
    """What one layer has at one path: its word in the merge, and its inode's numbers.

    `size` is in bytes, and 0 for anything but a regular file: only those have data that an image ships. `links`:
    the inode's names, in this layer or elsewhere.
    """

    says: Says
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    device: int
    inode: int
    links: int

    @property
    def regular(self) -> bool:
        """True for a regular file."""
        return stat.S_ISREG(self.mode)

    @property
    def directory(self) -> bool:
        """True for a directory, opaque or not."""
        return stat.S_ISDIR(self.mode)


def unreadable(label: str, path: bytes, error: OSError) -> ImageError:
    """What to tell of a layer that cannot be read."""
    return ImageError(
        f"{label}: '/{printable(path)}' cannot be read: {error.strerror}",
        "read the layers as root, or as the user who built them",
    )


@contextmanager
def opened(directories: Sequence[Path]) -> Iterator[list[Root]]:
    """Each layer's label and its root's descriptor, which is closed in the end. Raises ImageError."""
    with ExitStack() as stack:
        found = []
        for directory in directories:
            label = f"layer {printable(str(directory))}"
            try:
                fd = os.open(directory, _DIRECTORY)
            except OSError as error:
                raise ImageError(f"{label}: {error.strerror}", "give the directories that were built") from None
            stack.callback(os.close, fd)
            found.append((label, fd))
        yield found


def as_thing(status: os.stat_result) -> Thing:
    """What a status says; whether a directory is opaque it does not say."""
    mode = status.st_mode
    kind, size, says = stat.S_IFMT(mode), 0, Says.FILE
    if kind == stat.S_IFREG:
        size = status.st_size
    elif kind == stat.S_IFDIR:
        says = Says.DIRECTORY
    elif is_whiteout(status):
        says = Says.WHITEOUT
    return Thing(
        says,
        mode,
        status.st_uid,
        status.st_gid,
        size,
        status.st_mtime_ns,
        status.st_rdev,
        status.st_ino,
        status.st_nlink,
    )


def is_opaque(directory: int | bytes) -> bool:
    """True if a directory (a descriptor, or a path to follow) is marked opaque. Raises OSError."""
    return any(syscalls.get_xattr(directory, marks.opaque, follow=True) == b"y" for marks in (TRUSTED, USER))
