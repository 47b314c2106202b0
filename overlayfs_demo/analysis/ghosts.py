"""Extraction of files that an image still ships but no longer shows.

What a later layer deletes is still in the layer that shipped it: a password, a key, a cache. To show this, such files
are copied out of the layer directories.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Sequence
from pathlib import Path

from overlayfs_demo.analysis.accounts import Hidden
from overlayfs_demo.analysis.inventory import opened, unreadable
from overlayfs_demo.errors import ImageError, printable
from overlayfs_demo.images.layer_tree import LayerTree
from overlayfs_demo.linux import syscalls
from overlayfs_demo.overlay.copy_data import copy_data

_SHORT = 12  # the usual number of digits in a layer's short name


def extract_ghosts(ghosts: Sequence[Hidden], directories: Sequence[Path], target: Path) -> list[Path]:
    """Copy hidden files out of the layers (given from the bottom up), and return the copies in the ghosts' order.

    A file of layer 3 lands at TARGET/03-SHORTNAME/PATH, where the short name is that of the layer's directory.
    `target` must be empty or must not exist. It and all directories in it are private (mode 0700), because a deleted
    file may be a secret. A copy has the data and the permissions but no set-id bits, because it belongs to us and not
    to its first owner. Raises ImageError. After an error, and if there are no ghosts, `target` is empty, or gone if it
    did not exist before.
    """
    made = _make_target(target)
    try:
        target_fd = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            return _fill(ghosts, directories, target, target_fd)
        finally:
            os.close(target_fd)
    except OSError as error:
        raise ImageError(
            f"{printable(str(target))} cannot be used: {error.strerror}", "choose another directory"
        ) from None
    finally:
        if made and not os.listdir(target):
            target.rmdir()


def _make_target(target: Path) -> bool:
    """Make sure that `target` is an empty directory; return True if it had to be made. Raises ImageError."""
    try:
        target.mkdir(mode=0o700)
        return True
    except FileExistsError:
        if target.is_dir() and not target.is_symlink() and not os.listdir(target):
            return False
        raise ImageError(f"{printable(str(target))} is not an empty directory", "choose another") from None
    except OSError as error:
        raise ImageError(
            f"{printable(str(target))} cannot be created: {error.strerror}", "choose another directory"
        ) from None


def _fill(ghosts: Sequence[Hidden], directories: Sequence[Path], target: Path, target_fd: int) -> list[Path]:
    tree = LayerTree(target_fd, target_fd)
    try:
        with opened(directories) as layers:
            copies = []
            for ghost in ghosts:
                label, root_fd = layers[ghost.shipped_by - 1]
                path = os.fsencode(_short_name(ghost.shipped_by, directories)) + b"/" + ghost.path
                try:
                    _copy(root_fd, ghost.path, tree, path)
                except OSError as error:
                    raise _explained(label, ghost.path, error) from None
                copies.append(target / os.fsdecode(path))
            return copies
    except BaseException:
        for path in [path for path in tree.made if path and b"/" not in path]:
            tree.remove(path, tree.inside(path))
        raise
    finally:
        tree.close()


def _short_name(number: int, directories: Sequence[Path]) -> str:
    """Return the layer's number, as wide as `build_layers` writes it, and its directory's name without its number."""
    width = max(2, len(str(len(directories))))
    return f"{number:0{width}}-{re.sub('^[0-9]+-', '', directories[number - 1].name)[:_SHORT]}"


def _copy(root_fd: int, source: bytes, tree: LayerTree, path: bytes) -> None:
    reading = syscalls.open_beneath(root_fd, source, os.O_RDONLY)
    try:
        status = os.fstat(reading)
        parent, _, name = path.rpartition(b"/")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        writing = os.open(name, flags, 0o600, dir_fd=tree.directory(parent))
        try:
            copy_data(reading, writing, status.st_size)
            os.fchmod(writing, status.st_mode & 0o777)
        finally:
            os.close(writing)
    finally:
        os.close(reading)


def _explained(label: str, path: bytes, error: OSError) -> ImageError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
        return ImageError(
            f"{label}: '/{printable(path)}' cannot be copied: {error.strerror}", "choose another directory"
        )
    return unreadable(label, path, error)
