"""Search for files of an image that have the same data.

Sizes are compared first, then the checksums in the recipes of the layers' tars (see `tarsplit`); only files that agree
in both are read. A temporary database on disk holds what is known of each file, so memory does not grow with the number
of files.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING

from overlayfs_demo.analysis.differing import blocks
from overlayfs_demo.analysis.inventory import Root, unreadable
from overlayfs_demo.errors import ImageError
from overlayfs_demo.images.progress import Progress
from overlayfs_demo.linux import syscalls

if TYPE_CHECKING:
    import sqlite3

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
_BATCH = 1000  # rows
_TABLES = """
    PRAGMA journal_mode = OFF;
    PRAGMA cache_size = -8000;
    CREATE TABLE known (key INTEGER PRIMARY KEY, layer INTEGER, size INTEGER, crc INTEGER);
    CREATE TABLE file (layer INTEGER, path BLOB, size INTEGER, live INTEGER, crc INTEGER);
    CREATE TABLE hashed (size INTEGER, hash BLOB, layer INTEGER, path BLOB, live INTEGER);
    BEGIN;
"""
_ENTER = "INSERT INTO file VALUES (?1, ?2, ?3, ?4, (SELECT crc FROM known WHERE key = ?5 AND size = ?3))"
_KNOWS = "SELECT 1 FROM known WHERE key = ? AND size = ?"
# Files of the same size. Where all files of that size have checksums, only those with the same checksum. Paths are
# joined last, because sorting them is what would take time.
_CANDIDATES = """
    CREATE TEMP TABLE alike (size INTEGER PRIMARY KEY, unsummed INTEGER);
    INSERT INTO alike SELECT size, count(*) - count(crc) FROM file GROUP BY size HAVING count(*) > 1;
    CREATE TEMP TABLE twin (size INTEGER, crc INTEGER, PRIMARY KEY (size, crc)) WITHOUT ROWID;
    INSERT INTO twin SELECT size, crc FROM file WHERE crc IS NOT NULL GROUP BY size, crc HAVING count(*) > 1;
    CREATE TABLE candidate AS
        SELECT layer, path, size, live FROM file JOIN alike USING (size)
        WHERE unsummed OR (size, crc) IN (SELECT size, crc FROM twin) ORDER BY layer, path;
"""
_FOUND = """
    SELECT size, hash, layer, path, live FROM (
        SELECT *, count(*) OVER (PARTITION BY size, hash) AS twins FROM hashed
    ) WHERE twins > 1 ORDER BY size, hash, layer, path
"""


@dataclass(frozen=True, slots=True)
class Copy:
    """One of several files with the same data: one of its names, its layer, and whether it is live."""

    path: bytes
    layer: int
    live: bool


@dataclass(frozen=True, slots=True)
class Duplicate:
    """Data that an image ships more than once, in files of `size` bytes; the copies are sorted by layer and name.

    Live copies do not count in `Analysis.wasted`, because nothing hides them.
    """

    size: int
    copies: tuple[Copy, ...]


Checksum = tuple[bytes, int, int]
"""The path of a file in a layer, its size in bytes, and the CRC-32 of its data."""


class SameData:
    """A collection of the files of layers, numbered from 1, which finds those with the same data."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database
        self._rows: list[tuple[int, bytes, int, bool, int]] = []

    def know(self, layer: int, checksums: Iterable[Checksum]) -> None:
        """Record a layer's checksums, or none if the iterator raises. Call it before `add`."""
        try:
            rows = ((_key(layer, path), layer, size, crc) for path, size, crc in checksums)
            self._database.executemany("INSERT OR REPLACE INTO known VALUES (?, ?, ?, ?)", rows)
        except BaseException:
            self._database.execute("DELETE FROM known WHERE layer = ?", (layer,))
            raise

    def add(self, layer: int, names: Sequence[bytes], size: int, live: bool) -> None:
        """Add a file with these names in a layer; the first name is the one reported. Empty files do not count."""
        if not size:
            return
        known = names[0]
        if len(names) > 1:
            # The recipe has the checksum under the name that came first in the tar.
            tried = (name for name in names if self._knows(layer, name, size))
            known = next(tried, known)
        self._rows.append((layer, names[0], size, live, _key(layer, known)))
        if len(self._rows) >= _BATCH:
            self._flush()

    def duplicates(self, roots: Sequence[Root], progress: Progress) -> tuple[Duplicate, ...]:
        """Return the duplicates, the costliest first. Raises ImageError.

        Files that may be the same are read, and `progress` gets their sizes in bytes.
        """
        self._flush()
        self._database.executescript(_CANDIDATES)
        [total] = self._database.execute("SELECT total(size) FROM candidate").fetchone()
        progress.step("comparing files of equal size", int(total))
        for layer, path, size, live in self._database.execute("SELECT layer, path, size, live FROM candidate"):
            digest = _digest(roots[layer - 1], path)
            self._database.execute("INSERT INTO hashed VALUES (?, ?, ?, ?, ?)", (size, digest, layer, path, live))
            progress.advance(size)
        found = [
            Duplicate(size, tuple(Copy(path, layer, bool(live)) for _, _, layer, path, live in rows))
            for (size, _), rows in itertools.groupby(self._database.execute(_FOUND), itemgetter(0, 1))
        ]
        return tuple(sorted(found, key=lambda same: (-same.size * (len(same.copies) - 1), same.copies[0].path)))

    def _knows(self, layer: int, name: bytes, size: int) -> bool:
        return self._database.execute(_KNOWS, (_key(layer, name), size)).fetchone() is not None

    def _flush(self) -> None:
        self._database.executemany(_ENTER, self._rows)
        self._rows.clear()


def _key(layer: int, path: bytes) -> int:
    """Return a number for a file of a layer, which takes less room and time than its path.

    Python's hash has 64 bits and a random key, so nobody can make two paths that have the same number.
    """
    return hash((layer, path))


@contextmanager
def same_data() -> Iterator[SameData]:
    """Make a new collection, in a temporary file that is gone at the end. Raises ImageError if there is no room."""
    # Here, because most commands that import this module compare no files.
    import sqlite3

    database = sqlite3.connect("")
    try:
        database.executescript(_TABLES)
        yield SameData(database)
    except sqlite3.Error as error:
        raise ImageError(
            f"the files cannot be compared: {error}",
            "free some space for temporary files, or set TMPDIR to another directory",
        ) from None
    finally:
        database.close()


def _digest(root: Root, path: bytes) -> bytes:
    label, root_fd = root
    hasher = hashlib.blake2b()
    try:
        fd = syscalls.open_beneath(root_fd, path, _READ)
        try:
            for offset, data in blocks(fd):
                hasher.update(offset.to_bytes(8, "big"))
                hasher.update(data)
        finally:
            os.close(fd)
    except OSError as error:
        raise unreadable(label, path, error) from None
    return hasher.digest()
