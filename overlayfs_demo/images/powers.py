"""What in layers gives rights to whoever may reach it: set-id programs, file capabilities, devices."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from overlayfs_demo import syscalls
from overlayfs_demo.images.survey import SurveyedLayer, Thing, surveyed
from overlayfs_demo.overlay.merge import Says

# xattr(7), capabilities(7): "File capabilities".
_CAPABILITIES = "security.capability"


def powers(directories: Sequence[Path]) -> list[Path]:
    """The files of these layers that give rights to any user who reaches them. Raises ImageError."""
    with surveyed(directories) as layers:
        return [
            directory / os.fsdecode(path)
            for directory, layer in zip(directories, layers, strict=True)
            for path, thing in sorted(layer.things.items()) if _gives_rights(layer, path, thing)
        ]


def _gives_rights(layer: SurveyedLayer, path: bytes, thing: Thing) -> bool:
    if not thing.regular:
        return (stat.S_ISCHR(thing.mode) or stat.S_ISBLK(thing.mode)) and thing.says is not Says.WHITEOUT
    if not thing.mode & 0o111:
        return False
    # Without the group's execute bit set-group-ID does not make a program a privileged one: inode(7).
    set_id = thing.mode & stat.S_ISUID or (thing.mode & stat.S_ISGID and thing.mode & stat.S_IXGRP)
    return bool(set_id) or _has_capabilities(layer, path)


def _has_capabilities(layer: SurveyedLayer, path: bytes) -> bool:
    fd = layer.open(path, os.O_PATH)
    try:
        return syscalls.get_xattr(syscalls.fd_path(fd), _CAPABILITIES, follow=True) is not None
    finally:
        os.close(fd)
