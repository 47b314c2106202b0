"""Reading of the files that this program keeps for itself: records, names, configs, recipes."""

from __future__ import annotations

import os
import stat
from typing import BinaryIO

from overlayfs_demo.errors import ImageError, printable

# What was built in a directory of layers, see `build_record`.
LAYERS_RECORD = ".layers.json"


def open_file(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file for reading; the caller closes it. Raises OSError, and ImageError for any other file.

    A FIFO in its place would otherwise keep every command waiting for a writer, and a device could never end.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise ImageError(f"{printable(os.fspath(path))} is not a regular file", "move it away")
    return os.fdopen(fd, "rb")


def read_file(path: str | os.PathLike[str]) -> bytes:
    """Return the contents of a regular file. Raises OSError, and ImageError for any other file."""
    with open_file(path) as file:
        return file.read()
