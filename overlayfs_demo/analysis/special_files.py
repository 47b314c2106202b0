"""Search for files in layers that give rights to anyone who can reach them: set-id programs, capabilities, devices."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from overlayfs_demo.analysis.inventory import opened
from overlayfs_demo.analysis.layer_walk import Place, walk
from overlayfs_demo.linux import proc, xattr
from overlayfs_demo.overlay.merge import Says

# xattr(7), capabilities(7): "File capabilities".
_CAPABILITIES = "security.capability"


def powers(directories: Sequence[Path]) -> list[Path]:
    """Return the files of these layers that give rights to any user who can reach them. Raises ImageError."""
    found: list[list[bytes]] = [[] for _ in directories]
    with opened(directories) as roots, closing(walk(roots)) as places:
        for place in places:
            for number in place.things:
                if _gives_rights(place, number):
                    found[number - 1].append(place.path)
    return [
        directory / os.fsdecode(path)
        for directory, paths in zip(directories, found, strict=True)
        for path in sorted(paths)
    ]


def _gives_rights(place: Place, number: int) -> bool:
    thing = place.things[number]
    if not thing.regular:
        return (stat.S_ISCHR(thing.mode) or stat.S_ISBLK(thing.mode)) and thing.says is not Says.WHITEOUT
    if not thing.mode & 0o111:
        return False
    # Without the group's execute bit, set-group-ID does not give a program any rights: inode(7).
    set_id = thing.mode & stat.S_ISUID or (thing.mode & stat.S_ISGID and thing.mode & stat.S_IXGRP)
    return bool(set_id) or _has_capabilities(place, number)


def _has_capabilities(place: Place, number: int) -> bool:
    fd = place.open(number, os.O_PATH)
    try:
        return xattr.get(proc.fd_path(fd), _CAPABILITIES, follow=True) is not None
    finally:
        os.close(fd)
