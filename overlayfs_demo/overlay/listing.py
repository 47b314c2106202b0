"""Which names does a merged directory have?

The layers are read from the top down. The topmost layer that has a name, or a whiteout for it, decides.
Whiteouts are never listed, not even stray ones that hide nothing.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections.abc import Sequence
from itertools import islice
from typing import Any

from overlayfs_demo.linux import proc
from overlayfs_demo.named_tuple import NamedTuple
from overlayfs_demo.overlay import questions
from overlayfs_demo.overlay.layer import Descriptor, LayerDir, UpperDir
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


def snapshot(
    sources: Sequence[LayerDir],
    at_most: int = sys.maxsize,
    *,
    quietly: bool = False,
    below: dict[bytes, Listed] | None = None,
) -> Snapshot:
    """Return a snapshot of `merged_names`."""
    return Snapshot(merged_names(sources, at_most, quietly=quietly, below=below), sources, _changes(sources))


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
    sources: Sequence[LayerDir],
    at_most: int = sys.maxsize,
    *,
    quietly: bool = False,
    below: dict[bytes, Listed] | None = None,
) -> dict[bytes, Listed]:
    """Return all names of the directory merged from `sources` (topmost first). The caller must not change the result.

    `quietly` changes no access time. `below` are the names that the lowers show, merged, if they are known: then only
    the upper is read. Raises OSError; TooManyNamesError if there are more than `at_most` names.
    """
    names = Names(at_most, merged=len(sources) > 1)
    for source in sources:
        if below is None or isinstance(source, UpperDir):
            names.read(source, quietly=quietly)
    if below is not None:
        names.add(below)
    return names.listed


class Names:
    """The names of a merged directory, as far as its sources have been read, from the topmost down.

    `merged`: it has several sources.
    """

    __slots__ = ("_at_most", "_hidden", "_merged", "listed")

    def __init__(self, at_most: int, *, merged: bool) -> None:
        """Begin. With more than `at_most` names, the methods raise TooManyNamesError."""
        self.listed: dict[bytes, Listed] = {}
        self._hidden: set[bytes] = set()
        self._at_most = at_most
        self._merged = merged

    def read(self, source: LayerDir, *, quietly: bool = False, most_entries: int | None = None) -> list[bytes]:
        """Add the names of the next source, and return all its entries. `quietly` changes no access time.

        Raises OSError; TooManyNamesError if it has more than `most_entries`.
        """
        layer, listed, hidden = source.layer, self.listed, self._hidden
        suspicious = source.marks.has_xattr_whiteouts
        # A layer's whiteouts hide the layers below, not the layer's own object of that name.
        hidden_here: set[bytes] = set()
        found: list[bytes] = []
        together = questions.Together()
        with _scan(source, quietly=quietly) as entries:
            for entry in islice(entries, None if most_entries is None else most_entries + 1):
                name = os.fsencode(entry.name)
                found.append(name)
                # A mark acts on the layers below even if a layer above has an object of the mark's own name.
                image_mark = layer.image_dialect and name.startswith(IMAGE_WHITEOUT_PREFIX)
                known = name in listed or name in hidden
                if known and not image_mark:
                    continue
                kind = entry.kind if isinstance(entry, _Entry) else _kind(entry)
                if kind == stat.S_IFCHR or suspicious or image_mark:
                    deleted = None
                    with together:
                        deleted = _deleted_by(source, name)
                    if deleted is not None:
                        hidden_here.add(deleted)
                        continue
                if known:
                    continue
                certain = not (self._merged and kind == stat.S_IFDIR) and not (layer.is_upper and source.marks.impure)
                listed[name] = Listed(name, kind, entry.inode(), source, certain)
                if len(listed) > self._at_most:
                    raise TooManyNamesError
        together.check()
        if most_entries is not None and len(found) > most_entries:
            raise TooManyNamesError
        hidden |= hidden_here
        return found

    def add(self, below: dict[bytes, Listed]) -> None:
        """Add the names that all remaining sources show, merged. The caller must not change them afterwards."""
        if not self.listed and not self._hidden:
            self.listed = below
        else:
            for name, entry in below.items():
                if name not in self.listed and name not in self._hidden:
                    self.listed[name] = entry
        if len(self.listed) > self._at_most:
            raise TooManyNamesError


def _scan(source: LayerDir, *, quietly: bool) -> Any:
    """Return the scandir iterator of a directory. The names are of type str if it is read quietly, else bytes."""
    directory = source.open()
    # Reading through the descriptor leaves the access time alone: it has O_NOATIME where that is allowed. Reading by
    # path opens the directory again, without O_NOATIME.
    by_descriptor = quietly or source.layer.reads_quietly
    if source.layer.may_stall:
        return contextlib.nullcontext(questions.ask(_read_entries, directory, by_descriptor))
    return os.scandir(directory.fd if by_descriptor else proc.fd_path(directory.fd))


class _Entry:
    """A directory entry that was read with all that a listing needs."""

    __slots__ = ("_ino", "kind", "name")

    def __init__(self, entry: os.DirEntry[Any]) -> None:
        self.name = entry.name
        self.kind = _kind(entry)
        self._ino = entry.inode()

    def inode(self) -> int:
        """Do the same as that of os.DirEntry."""
        return self._ino


def _read_entries(directory: Descriptor, by_descriptor: bool) -> list[_Entry]:
    with os.scandir(directory.fd if by_descriptor else proc.fd_path(directory.fd)) as entries:
        return [_Entry(entry) for entry in entries]


def _deleted_by(source: LayerDir, name: bytes) -> bytes | None:
    """Return the name that an entry deletes if it is a whiteout, its own if it is gone by now, else None."""
    status, layer = source.stat(name), source.layer
    if status is None or layer.hides(name, status, source):
        return name
    return name[len(IMAGE_WHITEOUT_PREFIX) :] if layer.is_image_mark(name, status) else None


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


def is_empty(sources: Sequence[LayerDir], below: dict[bytes, Listed] | None) -> bool:
    """Return whether the merged directory has no names in the view. `below` is that of `merged_names`."""
    try:
        return not merged_names(sources, at_most=0, quietly=True, below=below)
    except TooManyNamesError:
        return False
