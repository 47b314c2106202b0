"""The changes that tests of faults and kills make, and the layers that they make them in."""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Callable

import pytest

from overlayfs_demo.events import Action
from overlayfs_demo.linux.syscalls import RENAME_EXCHANGE
from overlayfs_demo.overlay.inode_flags import PLAIN
from overlayfs_demo.overlay.override_stat import OverrideStat
from overlayfs_demo.overlay.whiteout import TRUSTED
from tests.builders import WHITEOUT, Content, directory, file, hardlink
from tests.contract.engine_subject import Engine


def make_named(view: Engine, name: str) -> None:
    opened = view.open("d", os.O_TMPFILE | os.O_RDWR)
    try:
        opened.write(b"data")
        opened.link(name)
    finally:
        opened.close()


def while_read(view: Engine, act: Callable[[], object]) -> None:
    opened = view.open("a")
    try:
        act()
    finally:
        opened.close()


def write(view: Engine, path: str, data: bytes = b"+") -> None:
    opened = view.open(path, os.O_WRONLY)
    try:
        opened.write(data)
    finally:
        opened.close()


def allocate(view: Engine, path: str) -> None:
    opened = view.open(path, os.O_WRONLY)
    try:
        opened.allocate(0, 0, 99)
    finally:
        opened.close()


def cut(view: Engine, path: str) -> None:
    view.open(path, os.O_WRONLY | os.O_TRUNC).close()


# The flags that are changed here; a filesystem sets others as it likes. And the errors of one that has none.
IMMUTABLE, NODUMP = 0x10, 0x40
NO_FLAGS = (errno.ENOTTY, errno.EOPNOTSUPP)


def chattr(view: Engine, path: str, flags: int) -> None:
    node = view.node(path)
    try:
        others = int.from_bytes(view.overlay.get_flags(node, PLAIN), sys.byteorder) & ~(IMMUTABLE | NODUMP)
        view.overlay.set_flags(node, PLAIN, (others | flags).to_bytes(4, sys.byteorder), view.caller)
    except OSError as error:
        if error.errno in NO_FLAGS:
            pytest.skip(f"the filesystem has no inode flags: {error.strerror}")
        raise


def write_record(view: Engine, path: str, record: OverrideStat) -> None:
    """What chmod(2) and chown(2) do where layers keep owners in records."""
    upper, pinned = view.overlay._tree.writable(), view.node(path).pin()
    upper.set_override_stat(pinned, os.fsencode(path), record, Action.CHMOD, f"{record.mode:o}", view.caller)


Act = Callable[[Engine], object]

CHANGES: dict[str, Act] = {
    "create": lambda v: v.open("new", os.O_CREAT | os.O_WRONLY).close(),
    "create in a lower directory": lambda v: v.open("d/e/new", os.O_CREAT | os.O_WRONLY).close(),
    "create as another user": lambda v: v.run_as(5, 0o027, lambda: v.open("new", os.O_CREAT | os.O_WRONLY).close()),
    "create over a whiteout": lambda v: v.open("gone", os.O_CREAT | os.O_WRONLY).close(),
    "tmpfile that is named": lambda v: v.run_as(5, 0o027, lambda: make_named(v, "new")),
    "tmpfile that is named over a whiteout": lambda v: make_named(v, "gone"),
    "mkdir": lambda v: v.mkdir("d/new"),
    "mkdir over a whiteout": lambda v: v.mkdir("gone"),
    "mknod": lambda v: v.mknod("new", stat.S_IFIFO | 0o600),
    "symlink over a whiteout": lambda v: v.symlink("x", "gone"),
    "link": lambda v: v.link("a", "d/link"),
    "link over a whiteout": lambda v: v.link("a", "gone"),
    "unlink of upper": lambda v: v.unlink("up"),
    "unlink of lower": lambda v: v.unlink("d/x"),
    "unlink of copied up": lambda v: v.unlink("both"),
    "rmdir of lower": lambda v: v.rmdir("empty"),
    "rmdir of emptied": lambda v: v.rmdir("emptied"),
    "rename": lambda v: v.rename("a", "d/a"),
    "rename onto a file": lambda v: v.rename("a", "b"),
    "rename onto a whiteout": lambda v: v.rename("a", "gone"),
    "rename of a directory": lambda v: v.rename("d", "d2"),
    "rename of a directory far away": lambda v: v.rename("d/e", "updir/e2"),
    "rename of a directory onto a whiteout": lambda v: v.rename("d", "gone"),
    "rename of a directory onto an emptied one": lambda v: v.rename("d", "emptied"),
    "rename of a new directory onto a whiteout": lambda v: v.rename("updir", "gone"),
    "exchange": lambda v: v.rename("a", "d", RENAME_EXCHANGE),
    "copy-up": lambda v: v.open("a", os.O_RDWR).close(),
    "copy-up below lower directories": lambda v: v.open("d/e/f", os.O_RDWR).close(),
    "truncate": lambda v: v.truncate("a", 2),
    "extend": lambda v: v.truncate("a", 9),
    "open that truncates": lambda v: cut(v, "a"),
    "open that truncates while somebody reads": lambda v: while_read(v, lambda: cut(v, "a")),
    "copy-up while somebody reads": lambda v: while_read(v, lambda: v.chmod("a", 0o600)),
    "open that truncates an upper file": lambda v: cut(v, "up"),
    "chmod": lambda v: v.chmod("a", 0o600),
    "chown of a directory": lambda v: v.chown("d", 7, 8),
    "utime": lambda v: v.utime("d/x", 5, 6),
    "chattr of one flag": lambda v: chattr(v, "up", NODUMP),
    "chattr of a flag that forbids changes": lambda v: chattr(v, "up", IMMUTABLE),
    "chattr": lambda v: chattr(v, "up", NODUMP | IMMUTABLE),
    "chattr of a protected file": lambda v: chattr(v, "protected", NODUMP),
    "record of owner and mode": lambda v: write_record(v, "up", OverrideStat(7, 8, 0o4711)),
    "setxattr": lambda v: v.set_xattr("a", "user.k", b"v"),
    "removexattr": lambda v: v.remove_xattr("a", "user.own"),
    "copy-up of a linked file": lambda v: v.chmod("l1", 0o600),
    "unlink of a linked file": lambda v: v.unlink("l1"),
    "rename of a linked file": lambda v: v.rename("l1", "d/l"),
    "rename onto a linked file": lambda v: v.rename("up", "l1"),
    "link of a linked file": lambda v: v.link("l1", "gone"),
    "link of an upper file": lambda v: v.link("up", "new"),
    "rename of an upper directory into a merged one": lambda v: v.rename("updir", "d/updir"),
}


def _both(*acts: Act) -> Act:
    def act(view: Engine) -> None:
        for step in acts:
            step(view)

    return act


def _chmod(path: str) -> Act:
    return lambda v: v.chmod(path, 0o600)


# Changes of what an earlier change has left, which comes first.
LATER_CHANGES: dict[str, tuple[Act, Act]] = {
    "write to a metacopy": (_chmod("a"), lambda v: v.open("a", os.O_RDWR).close()),
    "truncate of a metacopy": (_chmod("a"), lambda v: v.truncate("a", 2)),
    "extend of a metacopy": (_chmod("a"), lambda v: v.truncate("a", 9)),
    "open that truncates a metacopy": (_chmod("a"), lambda v: cut(v, "a")),
    "open that truncates a metacopy while somebody reads": (_chmod("a"), lambda v: while_read(v, lambda: cut(v, "a"))),
    "write to a metacopy that moved": (lambda v: v.rename("a", "d/a"), lambda v: v.open("d/a", os.O_RDWR).close()),
    "rename of a metacopy": (_chmod("a"), lambda v: v.rename("a", "d/a")),
    "link of a metacopy": (_chmod("a"), lambda v: v.link("a", "d/a")),
    "write to a linked metacopy": (_chmod("l1"), lambda v: v.open("l2", os.O_RDWR).close()),
    "truncate of a linked metacopy": (_chmod("l1"), lambda v: v.truncate("l2", 0)),
    "unlink of a changed linked file": (_chmod("l1"), lambda v: v.unlink("l1")),
    "unlink of the other name of a changed linked file": (_chmod("l1"), lambda v: v.unlink("l2")),
    "unlink of the last name of a linked file": (lambda v: v.unlink("l1"), lambda v: v.unlink("l2")),
    "rename of the other name of a changed linked file": (_chmod("l1"), lambda v: v.rename("l2", "d/l")),
    "rename onto the last name of a linked file": (lambda v: v.unlink("l1"), lambda v: v.rename("up", "l2")),
    "rename onto the other name of a changed linked file": (_chmod("l1"), lambda v: v.rename("a", "l2")),
    "link of a changed linked file": (_chmod("l1"), lambda v: v.link("l2", "d/l")),
    "unlink of one of three names": (_both(_chmod("l1"), lambda v: v.link("l2", "d/l")), lambda v: v.unlink("l2")),
    "write to a copy": (_chmod("a"), lambda v: write(v, "a")),
    "allocation in a copy": (lambda v: write(v, "a"), lambda v: allocate(v, "a")),
    "rename of a moved directory": (lambda v: v.rename("d", "updir/d"), lambda v: v.rename("updir/d", "d2")),
    "rmdir of a directory that was moved away and emptied": (
        _both(
            lambda v: v.rename("d", "d2"),
            lambda v: v.unlink("d2/x"),
            lambda v: v.unlink("d2/e/f"),
            lambda v: v.rmdir("d2/e"),
        ),
        lambda v: v.rmdir("d2"),
    ),
}


def _nothing(_view: Engine) -> None:
    pass


# What comes first, and the change.
# A file with several names gets its data in place, which moves its time before the data counts, as in the kernel.
MOVE_THE_TIME = ("write to a linked metacopy", "truncate of a linked metacopy")
CASES: dict[str, tuple[Act, Act]] = {**{name: (_nothing, act) for name, act in CHANGES.items()}, **LATER_CHANGES}
MOUNTS: dict[str, tuple[Act, Act]] = {
    "mount": (_nothing, lambda v: v.remount()),
    "mount after a link": (_both(_chmod("l1"), lambda v: v.link("l2", "d/l")), lambda v: v.remount()),
}

# Where it matters whether a copy-up brings the data.
ABOUT_DATA = (
    "link",
    "rename",
    "exchange",
    "copy-up",
    "truncate",
    "chmod",
    "copy-up of a linked file",
    "unlink of a linked file",
    "rename of a linked file",
    "link of a linked file",
)


LOWER: Content = {
    "a": file("data", mode=0o4755, uid=3, gid=4, xattrs={"user.own": b"1"}),
    "b": "2",
    "gone": "1",
    "d": directory({"x": "1", "e": {"f": "deep"}}, mode=0o2755, gid=9),
    "both": "1",
    "empty/": None,
    "emptied/x": "1",
    "l1": "L",
    "l2": hardlink("l1"),
}
UPPER: Content = {
    "gone": WHITEOUT,
    "up": "1",
    "updir/own": "2",
    "both": "2",
    "emptied": directory({"x": WHITEOUT}, uid=5, mode=0o750, xattrs={"user.own": b"2"}),
    "protected": file("1", xattrs={TRUSTED.protattr: b"i"}),
}
