"""The names in a directory of the stack, including those that a layer hides, and the search for names."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from overlayfs_demo.errors import printable
from overlayfs_demo.named_tuple import NamedTuple
from overlayfs_demo.overlay.layer_statements import Statement
from overlayfs_demo.web.subject import Ask, LayerRoot, Subject, is_directory, key_of

# How many names of one directory are shown.
MOST_NAMES = 5000
MOST_FOUND = 100
# How many names a search looks at.
_MOST_WALKED = 200_000


class Row(NamedTuple):
    """One name. `layer` is the key of the topmost layer that has it; `hidden_by` that of the one that hides it.

    `key` is the path as in a URL, `size` in bytes, `said` the number of layers that say something about it.
    """

    name: str
    key: str
    kind: str
    size: int
    layer: str
    hidden_by: str | None
    said: int


@dataclass(frozen=True, slots=True)
class Listing:
    """The names of a directory, directories first; `left_out` are not looked at, because there are too many."""

    rows: tuple[Row, ...]
    left_out: int


def listing(subject: Subject, ask: Ask, path: bytes) -> Listing:
    """Return what is or was in a directory, whose path is checked. Raises OverlayError, FileNotFoundError, OSError."""
    statements = ask(path).statements
    if path != b"/" and not any(map(is_directory, statements)):
        raise FileNotFoundError(f"no layer has a directory {printable(path)}")
    names: set[bytes] = set()
    for layer, statement in zip(subject.layers, statements, strict=False):
        if path == b"/" or is_directory(statement):
            names |= _names(layer, b"" if path == b"/" else statement.stored_at)
    wanted = sorted(names)
    rows = [row(subject, ask, os.path.join(path, name)) for name in wanted[:MOST_NAMES]]
    found = sorted(filter(None, rows), key=lambda row: row.kind != "directory")
    return Listing(tuple(found), len(wanted[MOST_NAMES:]))


def _names(layer: LayerRoot, directory: bytes) -> set[bytes]:
    """Return every name in a directory of a layer, including whiteouts."""
    fd = layer.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return {os.fsencode(name) for name in os.listdir(fd)}
    finally:
        os.close(fd)


def row(subject: Subject, ask: Ask, path: bytes) -> Row | None:
    """Return the row of one path; None if no layer has anything there."""
    statements = ask(path).statements
    having = [
        (depth, statement, statement.mode)
        for depth, statement in enumerate(statements)
        if statement.mode is not None and not statement.deleted_at
    ]
    if not having:
        return None
    winner = next((has for has in having if has[1].wins), None)
    depth, topmost, mode = winner or having[0]
    return Row(
        printable(os.path.basename(path)),
        key_of(path),
        _kind(mode),
        topmost.size or 0 if stat.S_ISREG(mode) else 0,
        _key(subject, depth),
        None if winner else _hider(subject, topmost),
        len(having) + sum(bool(statement.deleted_at) for statement in statements),
    )


def _key(subject: Subject, depth: int) -> str:
    return subject.layers[depth].key if depth < len(subject.layers) else "data"


def _hider(subject: Subject, statement: Statement) -> str:
    layer = subject.layer_of(statement.hidden_by)
    return layer.key if layer else ""


def _kind(mode: int) -> str:
    kinds = {stat.S_IFDIR: "directory", stat.S_IFREG: "file", stat.S_IFLNK: "symbolic link"}
    return kinds.get(stat.S_IFMT(mode), "special file")


# --- searching -------------------------------------------------------------------------------------


def search(subject: Subject, ask: Ask, words: str) -> Listing:
    """Return the paths whose printable text contains `words`, ignoring case. Raises OverlayError, OSError."""
    wanted = words.casefold()
    rows: dict[bytes, Row] = {}
    for number, path in enumerate(_walk(subject)):
        if number >= _MOST_WALKED or len(rows) >= MOST_FOUND:
            break
        if path not in rows and wanted in printable(path).casefold() and (found := row(subject, ask, path)):
            rows[path] = found
    return Listing(tuple(rows[path] for path in sorted(rows)), 0)


def _walk(subject: Subject) -> Iterator[bytes]:
    """Yield the paths of every layer, as they are stored there. Links are not followed."""
    for layer in subject.layers:
        root = os.fsencode(layer.directory)
        for above, directories, files in os.walk(root):
            directories.sort()
            for name in sorted(directories + files):
                yield os.path.join(above, name)[len(root) :]
