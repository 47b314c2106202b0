"""Extended attributes, where a missing one is an answer: xattr(7)."""

from __future__ import annotations

import errno
import os


def get(path: bytes | int, name: str, follow: bool = False) -> bytes | None:
    """Return the attribute's value, or None if there is none or the filesystem has no such attributes."""
    try:
        if isinstance(path, int):
            return os.getxattr(path, name)
        return os.getxattr(path, name, follow_symlinks=follow)
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
            return None
        raise


def names(path: bytes | int, follow: bool = False) -> list[str]:
    """Return the attribute names; the list is empty if the filesystem has no extended attributes."""
    try:
        if isinstance(path, int):
            return os.listxattr(path)
        return os.listxattr(path, follow_symlinks=follow)
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return []
        raise
