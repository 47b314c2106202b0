"""Which names does a merged directory have?

The layers are read from the top down. The topmost layer that has a name, or a whiteout for it, decides.
Whiteouts are never listed, not even stray ones that hide nothing.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from overlayfs_demo.linux import proc
from overlayfs_demo.overlay.layer import LayerDir, UpperDir
from overlayfs_demo.overlay.whiteout import IMAGE_WHITEOUT_PREFIX


class Listed(NamedTuple):
    """A name, the topmost directory that has it, and its S_IFMT kind and inode number there.

    `certain` is False if the view may show another inode number (a merged directory shows its lower's).
    """

    name: bytes
    kind: int
    ino: int
    source: LayerDir
    certain: bool


class Snapshot(NamedTuple):
    """The names that a directory had, and what tells whether they were changed through the view since."""

    names: dict[bytes, Listed]
    sources: Sequence[LayerDir]
    changes: int

    def is_current(self, sources: Sequence[LayerDir]) -> bool:
        """Whether no name in this directory, now merged from `sources`, was changed through the view since."""
        return self.sources is sources and self.changes == _changes(sources)


class TooManyNamesError(Exception):
    """A directory has more names than the caller wanted to wait for."""


def snapshot(sources: Sequence[LayerDir], at_most: int = sys.maxsize, *, quietly: bool = False) -> Snapshot:
    """Return a snapshot of `merged_names`."""
    return Snapshot(merged_names(sources, at_most, quietly=quietly), sources, _changes(sources))


def note_reading(source: LayerDir) -> None:
    """Update the access time of a directory that was read quietly, by reading one entry. Raises OSError."""
    if not source.layer.reads_quietly:
        directory = source.open()
        with os.scandir(proc.fd_path(directory.fd)) as entries:
            next(entries, None)


def _changes(sources: Sequence[LayerDir]) -> int:
    first = sources[0]
    return first.changes if isinstance(first, UpperDir) else 0


def merged_names(
    sources: Sequence[LayerDir], at_most: int = sys.maxsize, *, quietly: bool = False
) -> dict[bytes, Listed]:
    """Return all names of the directory merged from `sources` (topmost first).

    `quietly` changes no access time. Raises OSError; TooManyNamesError if there are more than `at_most` names.
    """
    listed: dict[bytes, Listed] = {}
    hidden: set[bytes] = set()
    for source in sources:
        _read(source, listed, hidden, at_most, merged=len(sources) > 1, quietly=quietly)
    return listed


def _read(
    source: LayerDir, listed: dict[bytes, Listed], hidden: set[bytes], at_most: int, *, merged: bool, quietly: bool
) -> None:
    layer = source.layer
    suspicious = source.marks.has_xattr_whiteouts
    # A layer's whiteouts hide the layers below, not the layer's own object of that name.
    hidden_here: set[bytes] = set()
    directory = source.open()
    # Reading through the descriptor leaves the access time alone: it has O_NOATIME where that is allowed. Reading by
    # path opens the directory again, without O_NOATIME, and yields the names as bytes.
    quietly = quietly or layer.reads_quietly
    place: Any = directory.fd if quietly else proc.fd_path(directory.fd)
    with os.scandir(place) as entries:
        for entry in entries:
            name: bytes = os.fsencode(entry.name) if quietly else entry.name
            if name in listed or name in hidden:
                continue
            kind = _kind(entry)
            image_mark = layer.image_dialect and name.startswith(IMAGE_WHITEOUT_PREFIX)
            if kind == stat.S_IFCHR or suspicious or image_mark:
                status = source.stat(name)
                if status is None or layer.hides(name, status, source):
                    hidden_here.add(name)
                    continue
                if layer.is_image_mark(name, status):
                    hidden_here.add(name[len(IMAGE_WHITEOUT_PREFIX) :])
                    continue
            certain = not (merged and kind == stat.S_IFDIR) and not (layer.is_upper and source.marks.impure)
            listed[name] = Listed(name, kind, entry.inode(), source, certain)
            if len(listed) > at_most:
                raise TooManyNamesError
    hidden |= hidden_here


def _kind(entry: os.DirEntry[Any]) -> int:
    """Return the S_IFMT kind, from the directory entry's type if it has one, else from stat(2)."""
    if entry.is_file(follow_symlinks=False):
        return stat.S_IFREG
    if entry.is_dir(follow_symlinks=False):
        return stat.S_IFDIR
    if entry.is_symlink():
        return stat.S_IFLNK
    try:
        return stat.S_IFMT(entry.stat(follow_symlinks=False).st_mode)
    except FileNotFoundError:
        # Removed since the directory was read. The lookup that follows will find that out.
        return 0


def is_empty(sources: Sequence[LayerDir]) -> bool:
    """Return whether the merged directory has no names in the view."""
    try:
        return not merged_names(sources, at_most=0, quietly=True)
    except TooManyNamesError:
        return False
