"""Paths in option lines: how they are split, escaped and read.

The escapes are the kernel overlayfs's (fs/overlayfs/params.c): in a value `\\,` is a comma, and in `lowerdir` `\\:` is
a colon inside a path.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable


def split_escaped(text: str, separator: str) -> list[str]:
    """Split at each separator (one character, or the same twice) that no backslash escapes; the escapes stay."""
    parts = [""]
    for token in re.findall(rf"\\.|{re.escape(separator)}|.", text, re.DOTALL):
        if token == separator:
            parts.append("")
        else:
            parts[-1] += token
    return parts


def unescape(text: str) -> bytes:
    """The path that is meant: a backslash makes the next character an ordinary one."""
    return os.fsencode(re.sub(r"\\(.)", r"\1", text, flags=re.DOTALL))


def escape_path(path: bytes) -> str:
    """The inverse of `unescape`, for a path in any option, `lowerdir=` lists included."""
    return re.sub(r"([\\:,])", r"\\\1", os.fsdecode(path))


def lowerdir_option(directories: Iterable[bytes]) -> str:
    """The mount option that stacks these directories, the topmost first.

    The kernel's overlayfs understands it, too (overlayfs.rst, "Multiple lower layers").
    """
    return "lowerdir=" + ":".join(map(escape_path, directories))
