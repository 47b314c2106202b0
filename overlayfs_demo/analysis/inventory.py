"""What one layer has at one path: its part in the merge, and its metadata.

A layer is in the kernel's format, as `unpack` makes it (Linux Documentation/filesystems/overlayfs.rst, "whiteouts
and opaque directories"), with attributes in either namespace. Metacopies and redirects are not read, because no image
holds any.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from overlayfs_demo.errors import ImageError, printable
from overlayfs_demo.linux import xattr
from overlayfs_demo.named_tuple import NamedTuple
from overlayfs_demo.overlay.layer_size import inode_size
from overlayfs_demo.overlay.merge import Says
from overlayfs_demo.overlay.whiteout import TRUSTED, USER, is_whiteout

# No O_NOFOLLOW: the caller may give a layer as a symbolic link to its directory.
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY

Root = tuple[str, int]
"""A layer's label, for messages, and the descriptor of its directory."""


class Thing(NamedTuple):
    """What one layer has at one path: its part in the merge, and its inode's metadata.

    `size` is what it adds to the size of its layer, in bytes: see `layer_size`. `links` is the number of the inode's
    names, in this layer or elsewhere.
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
        """Whether it is a regular file."""
        return stat.S_ISREG(self.mode)

    @property
    def ships(self) -> bool:
        """Whether an image ships bytes for it: the data of a regular file, the target of a symbolic link."""
        return self.regular or stat.S_ISLNK(self.mode)

    @property
    def directory(self) -> bool:
        """Whether it is a directory, opaque or not."""
        return stat.S_ISDIR(self.mode)


def unreadable(label: str, path: bytes, error: OSError) -> ImageError:
    """Return the error for a path of a layer that cannot be read."""
    return ImageError(
        f"{label}: '/{printable(path)}' cannot be read: {error.strerror}",
        "run this as root, or as the user who built the layers",
    )


@contextmanager
def opened(directories: Sequence[Path]) -> Iterator[list[Root]]:
    """Open the layers: yield each one's label and the descriptor of its root, closed at the end. Raises ImageError."""
    with ExitStack() as stack:
        found = []
        for directory in directories:
            label = f"layer {printable(str(directory))}"
            try:
                fd = os.open(directory, _DIRECTORY)
            except OSError as error:
                raise ImageError(f"{label}: {error.strerror}", "name the directories that were built") from None
            stack.callback(os.close, fd)
            found.append((label, fd))
        yield found


def as_thing(status: os.stat_result) -> Thing:
    """Return what a status says about an object; it does not say whether a directory is opaque."""
    mode = status.st_mode
    if stat.S_ISREG(mode):
        says = Says.FILE
    elif stat.S_ISDIR(mode):
        says = Says.DIRECTORY
    else:
        says = Says.WHITEOUT if is_whiteout(status) else Says.FILE
    return Thing(
        says,
        mode,
        status.st_uid,
        status.st_gid,
        inode_size(status),
        status.st_mtime_ns,
        status.st_rdev,
        status.st_ino,
        status.st_nlink,
    )


def is_opaque(directory: int | bytes) -> bool:
    """Return True if a directory (a descriptor, or a path to follow) is marked opaque. Raises OSError."""
    return any(xattr.get(directory, marks.opaque, follow=True) == b"y" for marks in (TRUSTED, USER))
