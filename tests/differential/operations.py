"""Which operation comes next?

Operations are plain data, made by dice and by what the kernel's answers told about which paths exist; so
a sequence follows from its seed alone, and any part of it can be run again.
"""

from __future__ import annotations

import os
import random
import stat
from collections.abc import Callable
from typing import Any, NamedTuple

from overlayfs_demo.linux import syscalls
from tests.contract.subjects import USER
from tests.differential.sides import Outcome
from tests.differential.stacks import (
    CAPABILITY,
    DEVICES,
    DIRECTORY_MODES,
    FILE_MODES,
    NAMES,
    ODD_NAMES,
    OTHER_GROUP,
    TARGETS,
)

SLOTS = 5
LONG_AGO = 1_500_000_000 * 10**9


class Operation(NamedTuple):
    """One verb of a `Side`, and who calls it."""

    verb: str
    user: bool
    arguments: tuple[Any, ...]

    def __str__(self) -> str:
        words = [f"0o{word:o}" if self._is_mode(place) else brief(word) for place, word in enumerate(self.arguments)]
        who = "  # as the user" if self.user else ""
        return f"view.{self.verb}({', '.join(words)}){who}"

    def _is_mode(self, place: int) -> bool:
        return place == {"mkdir": 1, "mknod": 1, "chmod": 1, "fchmod": 1, "open": 3, "umask": 0}.get(self.verb)


def brief(word: Any) -> str:
    """As Python, with repetitions as multiplication."""
    if isinstance(word, bytes) and len(word) > 60:
        for length in (1, 4, 8):
            if word == word[:length] * (len(word) // length):
                return f"{word[:length]!r} * {len(word) // length}"
    return repr(word)


Arguments = tuple[Any, ...]


class Dice:
    """Draws operations. `directories` and `others` are the paths that exist in the kernel's view."""

    def __init__(self, dice: random.Random) -> None:
        self._dice = dice
        self.directories: set[bytes] = set()
        self.others: set[bytes] = set()
        self._names = [*NAMES, *NAMES, *dice.sample(ODD_NAMES, 3), b"new1", b"new2"]
        self._user_share = dice.choice((0.0, 0.2, 0.5))
        self._weights = [weight * dice.choice((0.3, 1, 1, 2)) for weight, _ in _VERBS.values()]

    def saw(self, path: bytes, mode: str) -> None:
        """A path exists."""
        (self.directories if mode.startswith("d") else self.others).add(path)

    def next(self) -> Operation:
        verb = self._dice.choices(list(_VERBS), self._weights)[0]
        return Operation(verb, self._dice.random() < self._user_share, _VERBS[verb][1](self))

    # --- parts of operations ------------------------------------------------------------------------

    def pick(self, values: Any) -> Any:
        return self._dice.choice(values)

    def chance(self, probability: float) -> bool:
        return self._dice.random() < probability

    def name(self) -> bytes:
        if self.chance(0.005):
            return b"n" * 256
        return bytes(self.pick(self._names))

    def directory(self) -> bytes:
        if self.chance(0.1):
            return b""
        return bytes(self.pick(sorted(self.directories | {b""})))

    def other(self) -> bytes:
        return bytes(self.pick(sorted(self.others))) if self.others else self.name()

    def fresh(self) -> bytes:
        """Mostly a name that does not exist, in a directory that does."""
        above = self.other() if self.chance(0.03) else self.directory()
        if above.count(b"/") > 6:
            above = b""
        return os.path.join(above, self.name())

    def path(self) -> bytes:
        """Mostly what exists."""
        roll = self._dice.random()
        if roll < 0.5:
            return self.other()
        return self.directory() if roll < 0.8 else self.fresh()

    def file(self) -> bytes:
        return self.other() if self.chance(0.85) else self.path()

    def slot(self) -> int:
        return self._dice.randrange(SLOTS)

    def data(self) -> bytes:
        return self._dice.randbytes(4).hex().encode() * int(self.pick((0, 1, 1, 5, 1000)))

    def size(self) -> int:
        return int(self.pick((0, 0, 1, 3, 8, 100, 4096, 5000, 20000)))

    def open_flags(self) -> int:
        flags = int(self.pick((os.O_RDONLY, os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR)))
        for flag, chance in (
            (os.O_CREAT, 0.4),
            (os.O_EXCL, 0.1),
            (os.O_TRUNC, 0.2),
            (os.O_APPEND, 0.2),
            (os.O_NOFOLLOW, 0.15),
            (os.O_DIRECTORY, 0.06),
            (os.O_SYNC, 0.03),
            (os.O_NOATIME, 0.02),
            (os.O_PATH, 0.01),
        ):
            if self.chance(chance):
                flags |= flag
        return flags

    def owner(self) -> tuple[int, int]:
        return self.pick((-1, 0, USER, 777)), self.pick((-1, 0, USER, OTHER_GROUP, 777))

    def xattr_name(self) -> str:
        return str(self.pick(_XATTR_NAMES))

    # --- what has happened --------------------------------------------------------------------------

    def happened(self, operation: Operation, outcome: Outcome) -> None:
        """Follow what the kernel's view now holds; roughly is enough."""
        if outcome[0] != "ok":
            return
        verb, _, arguments = operation
        if verb == "mkdir":
            self.directories.add(arguments[0])
        elif verb == "mknod":
            self.others.add(arguments[0])
        elif verb in ("symlink", "link", "open") and arguments[1] not in self.directories:
            self.others.add(arguments[1])
        elif verb in ("unlink", "rmdir"):
            self.others.discard(arguments[0])
            self.directories.discard(arguments[0])
        elif verb == "rename":
            self._moved(*arguments)

    def _moved(self, old: bytes, new: bytes, flags: int) -> None:
        if flags & syscalls.RENAME_EXCHANGE:
            for one in (self.directories, self.others):
                renamed = {_swap(path, old, new) for path in one}
                one.clear()
                one.update(renamed)
            return
        self.others.discard(new)
        for one in (self.directories, self.others):
            renamed = {_rebase(path, old, new) for path in one}
            one.clear()
            one.update(renamed)


def _rebase(path: bytes, old: bytes, new: bytes) -> bytes:
    return new + path[len(old) :] if path == old or path.startswith(old + b"/") else path


def _swap(path: bytes, old: bytes, new: bytes) -> bytes:
    moved = _rebase(path, old, new)
    return moved if moved != path else _rebase(path, new, old)


_XATTR_NAMES = (
    "user.one",
    "user.two",
    "user.new",
    "trusted.x",
    "trusted.overlay.x",
    "trusted.overlay.opaque",
    "trusted.overlay.overlay.x",
    "security.x",
    "user.overlay.opaque",
    "security.capability",
    "user." + "n" * 251,
    "nonsense.x",
    "system.x",
)


def _acl(*entries: tuple[int, int, int]) -> bytes:
    undefined = 0xFFFFFFFF
    packed = (2).to_bytes(4, "little")
    for tag, permissions, who in entries:
        packed += tag.to_bytes(2, "little") + permissions.to_bytes(2, "little")
        packed += (undefined if who < 0 else who).to_bytes(4, "little")
    return packed


_ACLS = (
    _acl((1, 7, -1), (2, 7, USER), (4, 5, -1), (0x10, 7, -1), (0x20, 5, -1)),
    _acl((1, 6, -1), (4, 4, -1), (8, 6, OTHER_GROUP), (0x10, 6, -1), (0x20, 0, -1)),
    _acl((1, 7, -1), (4, 5, -1), (0x20, 5, -1)),
    _acl((1, 7, -1), (2, 7, USER)),
    b"",
)


def _mode(d: Dice) -> int:
    return int(d.pick((*FILE_MODES, *DIRECTORY_MODES)))


def _set_xattr(d: Dice) -> Arguments:
    if d.chance(0.12):
        return d.path(), d.pick(("system.posix_acl_access", "system.posix_acl_default")), d.pick(_ACLS), 0
    name = d.xattr_name()
    value = d.pick((b"", b"1", b"value\0", b"x" * 900))
    if name == "security.capability" and d.chance(0.9):
        value = CAPABILITY
    return d.path(), name, value, d.pick((0, 0, 0, os.XATTR_CREATE, os.XATTR_REPLACE))


def _mknod(d: Dice) -> Arguments:
    kind = d.pick((stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFREG, stat.S_IFCHR, stat.S_IFBLK))
    device = d.pick((0, *(os.makedev(*one) for one in DEVICES))) if kind in (stat.S_IFCHR, stat.S_IFBLK) else 0
    if kind == stat.S_IFBLK:
        device = os.makedev(42, 7)  # Nothing is behind it, whoever opens it.
    return d.fresh(), kind | _mode(d), device


def _rename(d: Dice) -> Arguments:
    flags = d.pick((0, 0, 0, 0, syscalls.RENAME_NOREPLACE, syscalls.RENAME_EXCHANGE, syscalls.RENAME_EXCHANGE))
    if d.chance(0.01):
        flags = d.pick((3, syscalls.RENAME_WHITEOUT, 8))
    old = d.directory() if d.chance(0.5) else d.file()
    if d.chance(0.04):
        return old, os.path.join(old, d.name()), flags
    new = d.fresh() if d.chance(0.6) else (d.directory() if d.chance(0.5) else d.file())
    return old, new, flags


def _long_ago(d: Dice) -> int:
    return LONG_AGO + int(d.pick((0, 1, 123_456_789, 10**9)))


_VERBS: dict[str, tuple[float, Callable[[Dice], Arguments]]] = {
    "stat": (4, lambda d: (d.path(),)),
    "stat_followed": (2, lambda d: (d.path(),)),
    "listing": (4, lambda d: (d.directory() if d.chance(0.9) else d.path(),)),
    "access": (2, lambda d: (d.path(), d.pick((os.R_OK, os.W_OK, os.X_OK, os.W_OK | os.X_OK)))),
    "readlink": (1, lambda d: (d.other(),)),
    "open": (12, lambda d: (d.slot(), d.file() if d.chance(0.7) else d.fresh(), d.open_flags(), _mode(d))),
    "close": (2, lambda d: (d.slot(),)),
    "pread": (5, lambda d: (d.slot(), 1 << 16, d.pick((0, 0, 3, 5000)))),
    "pwrite": (5, lambda d: (d.slot(), d.data(), d.size())),
    "write_on": (4, lambda d: (d.slot(), d.data())),
    "fstat": (3, lambda d: (d.slot(),)),
    "ftruncate": (2, lambda d: (d.slot(), d.size())),
    "fchmod": (1, lambda d: (d.slot(), _mode(d))),
    "fchown": (1, lambda d: (d.slot(), *d.owner())),
    "futime": (0.5, lambda d: (d.slot(), _long_ago(d), _long_ago(d))),
    "fset_xattr": (0.5, lambda d: (d.slot(), "user.one", d.data()[:50])),
    "fsync": (0.5, lambda d: (d.slot(),)),
    "allocate": (1, lambda d: (d.slot(), d.pick((0, 0, 1, 3, 16)), d.size(), d.size())),
    "copy_range": (1, lambda d: (d.slot(), d.slot(), d.size(), d.size())),
    "seek_data": (0.5, lambda d: (d.slot(), d.size())),
    "truncate": (3, lambda d: (d.file(), d.size())),
    "mkdir": (6, lambda d: (d.fresh(), d.pick(DIRECTORY_MODES))),
    "mknod": (3, _mknod),
    "symlink": (3, lambda d: (d.pick(TARGETS), d.fresh())),
    "link": (5, lambda d: (d.file(), d.fresh())),
    "unlink": (7, lambda d: (d.file(),)),
    "rmdir": (5, lambda d: (d.directory() if d.chance(0.9) else d.path(),)),
    "rename": (14, _rename),
    "chmod": (4, lambda d: (d.path(), _mode(d))),
    "chown": (4, lambda d: (d.path(), *d.owner())),
    "utime": (3, lambda d: (d.path(), _long_ago(d), _long_ago(d))),
    "set_xattr": (4, _set_xattr),
    "xattr": (2, lambda d: (d.path(), d.xattr_name())),
    "xattrs": (2, lambda d: (d.path(),)),
    "remove_xattr": (2, lambda d: (d.path(), d.xattr_name())),
    "umask": (0.5, lambda d: (d.pick((0, 0o022, 0o077)),)),
    "hold": (3, lambda d: (d.slot(), d.directory())),
    "held_names": (2, lambda d: (d.slot(),)),
    "held_create": (2, lambda d: (d.slot(), d.name())),
    "held_mkdir": (1, lambda d: (d.slot(), d.name())),
    "held_unlink": (2, lambda d: (d.slot(), d.name())),
    "held_rename": (1, lambda d: (d.slot(), d.name(), d.fresh())),
    "held_parent": (1, lambda d: (d.slot(), b"")),
}
