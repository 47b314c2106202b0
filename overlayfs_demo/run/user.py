"""The user of a process, found in the container's own /etc/passwd and /etc/group as Docker finds it: passwd(5)."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

# In bytes. Whoever made the image wrote these files.
_LONGEST = 1 << 22
_NONE = (1 << 32) - 1
_DIGITS = 20


@dataclass(frozen=True, slots=True)
class User:
    """A user's numbers, all their groups, and their home directory."""

    uid: int
    gid: int
    groups: list[int]
    home: str


def find_user(text: str) -> User:
    """Return the user that USER[:GROUP] means, names or numbers, in the tree that is our root.

    A number needs no entry. Raises LookupError for an unknown name, OSError.
    """
    name, colon, group = text.partition(":")
    rows = list(_rows("/etc/passwd", 7))
    name = name or "0"
    row = next((row for row in rows if row[0] == name or (_is_number(name) and row[2] == name)), None)
    if row is None and not _is_number(name):
        raise LookupError("the container's /etc/passwd has no such user")
    uid = _number(name if row is None else row[2])
    gid = 0 if row is None else _number(row[3])
    home = (row[5] if row is not None else "") or "/"
    groups = list(_rows("/etc/group", 4))
    if colon:
        gid = _group(group, groups)
        return User(uid, gid, [gid], home)
    member = [] if row is None else [_number(entry[2]) for entry in groups if row[0] in entry[3].split(",")]
    return User(uid, gid, [gid, *member], home)


def _group(name: str, rows: list[list[str]]) -> int:
    row = next((row for row in rows if row[0] == name), None)
    if row is not None:
        return _number(row[2])
    if not _is_number(name):
        raise LookupError("the container's /etc/group has no such group")
    return _number(name)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= _DIGITS


def _number(text: str) -> int:
    # To setuid(2) and chown(2), the highest one means none.
    if not _is_number(text) or int(text) >= _NONE:
        raise LookupError(f"'{text}' is not a number that a user or group can have")
    return int(text)


def _rows(path: str, columns: int) -> Iterator[list[str]]:
    """Yield the rows of a file with this many columns; none if it does not exist, or is not a regular file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return
    with os.fdopen(fd, encoding="utf-8", errors="surrogateescape") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return
        for line in file.read(_LONGEST).splitlines():
            row = line.split(":")
            if len(row) >= columns:
                yield row
