"""The size of a layer, the same number wherever one is shown: what Docker calls SIZE.

Everything except directories counts with its size from lstat(2), so a symbolic link has the length of its target, and
a file with several names counts once (moby pkg/directory/directory_unix.go).
"""

from __future__ import annotations

import os
import stat


def inode_size(status: os.stat_result) -> int:
    """Return how many bytes one inode adds to the size of its layer."""
    return 0 if stat.S_ISDIR(status.st_mode) else status.st_size
