"""What does the view show when a change fails half-way?

Each change is tried again and again, and each time another system call of a kind fails: one that writes (the
disk is full), one that opens (there are no descriptors left), one that reads (the disk is broken). Then the view
must show the old state or the new one, here and after a remount, nothing may be left over, and what was not done
can be done after all.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest

from overlayfs_demo.events import Action
from overlayfs_demo.linux import file_handle, syscalls
from overlayfs_demo.linux.syscalls import RENAME_EXCHANGE
from overlayfs_demo.overlay.inode_flags import PLAIN
from overlayfs_demo.overlay.node import DirNode, FileNode, Node
from overlayfs_demo.overlay.override_stat import OverrideStat
from overlayfs_demo.overlay.types import AttrChange, Attrs
from overlayfs_demo.overlay.whiteout import TRUSTED
from tests.builders import WHITEOUT, directory, file, hardlink
from tests.contract.engine_subject import Engine
from tests.overlay.conftest import Make

Calls = Mapping[Any, tuple[str, ...]]

WRITING: Calls = {
    os: (
        "mkdir",
        "mknod",
        "symlink",
        "unlink",
        "rmdir",
        "chmod",
        "chown",
        "utime",
        "setxattr",
        "removexattr",
        "ftruncate",
        "copy_file_range",
        "pwrite",
        "fsync",
        "link",
        "fchown",
        "fchmod",
    ),
    syscalls: ("rename", "link_path", "clone_file"),
    fcntl: ("ioctl",),
}
OPENING: Calls = {os: ("open", "dup"), syscalls: ("open_beneath",), file_handle: ("open_handle",)}
READING: Calls = {
    os: ("stat", "fstat", "listxattr", "getxattr", "readlink", "scandir", "lseek", "pread"),
    file_handle: ("handle_of",),
    syscalls: ("statx",),
}


def _creates(_path: object, flags: int, *_: object, **__: object) -> bool:
    return bool(flags & os.O_CREAT) or flags & os.O_TMPFILE == os.O_TMPFILE


def _always(*_: object, **__: object) -> bool:
    return True


@dataclass(frozen=True)
class Kind:
    """System calls that fail alike, and how. Opening is also writing when it creates."""

    calls: Calls
    code: int
    open_counts: Callable[..., bool] = _always


KINDS = {
    "writing": Kind({**WRITING, os: (*WRITING[os], "open")}, errno.ENOSPC, _creates),
    "opening": Kind(OPENING, errno.EMFILE),
    "reading": Kind(READING, errno.EIO),
}


class Faults:
    """Lets the n-th system call of a kind fail."""

    def __init__(self, patch: pytest.MonkeyPatch, kind: Kind) -> None:
        self.remaining: int | None = None
        self.failed = ""
        self._code = kind.code
        for module, names in kind.calls.items():
            for name in names:
                counts = kind.open_counts if name == "open" else _always
                patch.setattr(module, name, self._wrapped(name, getattr(module, name), counts))

    def _wrapped(self, name: str, real: Callable[..., Any], counts: Callable[..., bool]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if self.remaining is not None and counts(*arguments, **options):
                if self.remaining == 0:
                    self.remaining = None
                    self.failed = name
                    raise OSError(self._code, os.strerror(self._code))
                self.remaining -= 1
            return real(*arguments, **options)

        return call


def make_named(view: Engine, name: str) -> None:
    opened = view.open("d", os.O_TMPFILE | os.O_RDWR)
    try:
        opened.write(b"data")
        opened.link(name)
    finally:
        opened.close()


def truncate_while_read(view: Engine) -> None:
    view.open("a")
    view.open("a", os.O_WRONLY | os.O_TRUNC).close()


def chmod_while_read(view: Engine) -> None:
    view.open("a")
    view.chmod("a", 0o600)


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


def write_record(view: Engine, path: str) -> None:
    """What chmod(2) and chown(2) do where layers keep owners in records."""
    upper = view.overlay._tree.writable()
    upper.set_override_stat(
        view.node(path).pin(), b"/up", OverrideStat(7, 8, 0o4711), Action.CHMOD, "4711", view.caller
    )


CHANGES: dict[str, Callable[[Engine], object]] = {
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
    "open that truncates": lambda v: v.open("a", os.O_WRONLY | os.O_TRUNC).close(),
    "open that truncates while somebody reads": truncate_while_read,
    "copy-up while somebody reads": chmod_while_read,
    "open that truncates an upper file": lambda v: v.open("up", os.O_WRONLY | os.O_TRUNC).close(),
    "chmod": lambda v: v.chmod("a", 0o600),
    "chown of a directory": lambda v: v.chown("d", 7, 8),
    "utime": lambda v: v.utime("d/x", 5, 6),
    "chattr": lambda v: chattr(v, "up", NODUMP | IMMUTABLE),
    "chattr of a protected file": lambda v: chattr(v, "protected", NODUMP),
    "record of owner and mode": lambda v: write_record(v, "up"),
    "setxattr": lambda v: v.set_xattr("a", "user.k", b"v"),
    "removexattr": lambda v: v.remove_xattr("a", "user.own"),
    "copy-up of a linked file": lambda v: v.chmod("l1", 0o600),
    "unlink of a linked file": lambda v: v.unlink("l1"),
    "rename of a linked file": lambda v: v.rename("l1", "d/l"),
    "rename onto a linked file": lambda v: v.rename("up", "l1"),
    "link of a linked file": lambda v: v.link("l1", "gone"),
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

# What may fail while something is taken away that was replaced: the next mount does it.
CLEANING = ("unlink", "rmdir", "scandir", "open", "stat", "fstat", "lstat")

Shown = dict[str, tuple[Any, ...]]


def flags_of(view: Engine, node: FileNode) -> int:
    try:
        value = view.overlay.get_flags(node, PLAIN)
    except OSError as error:
        assert error.errno in NO_FLAGS
        return 0
    return int.from_bytes(value, sys.byteorder) & (IMMUTABLE | NODUMP)


def data_of(view: Engine, node: FileNode) -> bytes:
    handle = view.overlay.open(node, os.O_RDONLY, view.caller)
    try:
        buffer = memoryview(bytearray(64))
        return bytes(buffer[: handle.read_into(buffer, 0)])
    finally:
        view.overlay.files.release(node, handle)


def view_of_everything(view: Engine) -> Shown:
    """What can be seen, without the times that any change moves."""
    root = view.overlay.root
    return dict(seen_below(view, b"", root, view.overlay.attrs(root)))


def seen_below(view: Engine, path: bytes, node: Node, status: Attrs) -> Iterator[tuple[str, tuple[Any, ...]]]:
    overlay = view.overlay
    names: list[bytes] = []
    flags = 0
    if isinstance(node, DirNode):
        content: object = (names := sorted(entry.name for entry in overlay.entries(node)))
    elif isinstance(node, FileNode) and stat.S_ISREG(status.mode):
        content, flags = data_of(view, node), flags_of(view, node)
    else:
        content = status.rdev
    mtime = 0 if isinstance(node, DirNode) else status.mtime_ns
    xattrs = sorted(overlay.xattrs(node, view.caller))
    yield (
        os.fsdecode(path),
        (
            status.ino,
            status.mode,
            status.uid,
            status.gid,
            status.size * (not mtime),
            mtime,
            content,
            tuple((name, overlay.xattr(node, name)) for name in xattrs),
            flags,
        ),
    )
    for name in names:
        assert isinstance(node, DirNode)
        yield from seen_below(view, os.path.join(path, name), *overlay.lookup(node, name))


def make(overlaid: Make, metacopy: bool = False) -> Engine:
    return overlaid(
        {
            "a": file("data", mode=0o4755, uid=3, gid=4, xattrs={"user.own": b"1"}),
            "b": "2",
            "gone": "1",
            "d": directory({"x": "1", "e": {"f": "deep"}}, mode=0o2755, gid=9),
            "both": "1",
            "empty/": None,
            "emptied/x": "1",
            "l1": "L",
            "l2": hardlink("l1"),
        },
        upper={
            "gone": WHITEOUT,
            "up": "1",
            "updir/own": "2",
            "both": "2",
            "emptied": {"x": WHITEOUT},
            "protected": file("1", xattrs={TRUSTED.protattr: b"i"}),
        },
        metacopy=metacopy,
    )


def settled(shown: Shown) -> Shown:
    """Without what differs between two runs of the same change: inode numbers of new files and fresh times."""
    return {
        path: (*one[1:4], one[5] if one[5] < 1_700_000_000_000_000_000 else 0, *one[6:]) for path, one in shown.items()
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("change", "metacopy"), [(change, False) for change in CHANGES] + [(change, True) for change in ABOUT_DATA]
)
def test_failed_change_leaves_old_or_new(
    overlaid: Make, monkeypatch: pytest.MonkeyPatch, change: str, metacopy: bool, kind: str
) -> None:
    whole = make(overlaid, metacopy)
    old = settled(view_of_everything(whole))
    CHANGES[change](whole)
    new = settled(view_of_everything(whole))
    faults = Faults(monkeypatch, KINDS[kind])
    for number in range(300):
        view = make(overlaid, metacopy)
        faults.failed, faults.remaining = "", number
        try:
            CHANGES[change](view)
        except OSError as error:
            assert error.errno == KINDS[kind].code
        faults.remaining = None
        where = f"call {number + 1}, {faults.failed}"
        after = view_of_everything(view)
        assert settled(after) in (old, new), where
        assert view.work_is_empty() or faults.failed in CLEANING, where
        if settled(after) != new:
            CHANGES[change](view)
            after = view_of_everything(view)
            assert settled(after) == new, where
        view.remount()
        assert view_of_everything(view) == after, where
        assert view.work_is_empty(), where
        if not faults.failed:
            assert settled(after) == new
            return
    pytest.fail("there was no end of system calls")


def test_filesystem_without_unnamed_files_says_so(overlaid: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    view = overlaid({})
    real = os.open

    def refuse(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return real(path, flags, *arguments, **options)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(OSError) as failure:
        view.open("", os.O_TMPFILE | os.O_RDWR)
    assert failure.value.errno == errno.EOPNOTSUPP


def _held_create(view: Engine, name: bytes) -> Callable[[], object]:
    parent = view.node("d/e")
    assert isinstance(parent, DirNode)
    return lambda: view.overlay.mkdir(parent, name, 0o755, view.caller)


HELD: dict[str, Callable[[Engine], Callable[[], object]]] = {
    "mkdir in a directory": lambda v: _held_create(v, b"new"),
    **{
        f"chmod of {path}": lambda v, path=path: partial(  # type: ignore[misc]
            v.overlay.set_attrs, v.node(path), AttrChange(mode=0o700), v.caller
        )
        for path in ("a", "d", "d/e", "d/e/f", "l1", "both")
    },
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("held", HELD)
def test_failed_change_can_be_made_by_whoever_holds_the_node(
    overlaid: Make, monkeypatch: pytest.MonkeyPatch, held: str, kind: str
) -> None:
    """As the kernel does, which looks nothing up again: what memory says must be what is on disk."""
    faults = Faults(monkeypatch, KINDS[kind])
    for number in range(300):
        act = HELD[held](make(overlaid))
        faults.failed, faults.remaining = "", number
        try:
            act()
        except OSError as error:
            faults.remaining = None
            assert error.errno == KINDS[kind].code
            act()  # Not EEXIST: what was half done is gone, or is taken up.
        faults.remaining = None
        if not faults.failed:
            return
    pytest.fail("there was no end of system calls")
