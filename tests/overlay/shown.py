"""What a view shows of every file, as our engine and the kernel's overlayfs answer it, in one form."""

from __future__ import annotations

import os
import stat
import sys
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from overlayfs_demo.overlay import inode_flags
from overlayfs_demo.overlay.inode_flags import PLAIN
from overlayfs_demo.overlay.node import DirNode, FileNode, Node
from overlayfs_demo.overlay.types import Attrs, Caller
from tests.contract.engine_subject import Engine
from tests.overlay.changes import IMMUTABLE, NO_FLAGS, NODUMP

# In nanoseconds since the epoch: no layer has later times, and no test ran earlier.
FRESH = 1_700_000_000_000_000_000
_MOST_DATA = 64
# Root, and no process that exists, so that no time goes into asking what it is.
_NOBODY = Caller(0, 0)


class Seen(NamedTuple):
    """One object. A directory has no link count and no time here, because changes of its names move them.

    `content` is a file's data, a directory's names, a symbolic link's target or a device's number.
    """

    ino: int
    mode: int
    uid: int
    gid: int
    nlink: int
    mtime_ns: int
    content: object
    xattrs: tuple[tuple[str, bytes], ...]
    flags: int


Shown = dict[bytes, Seen]


def settled(shown: Shown, *, links: bool = True, times: bool = True) -> dict[bytes, tuple[object, ...]]:
    """The same without what differs from run to run, and from overlay to overlay.

    Instead of its inode number, an object has the first of its names. Fresh times are 0, and all without `times`.
    Without `links`, nothing tells which names are one file.
    """
    first: dict[int, bytes] = {}
    for path, seen in sorted(shown.items()):
        first.setdefault(seen.ino, path)
    return {
        path: (
            first[seen.ino] if links else b"",
            seen.mode,
            seen.uid,
            seen.gid,
            seen.nlink if links else 0,
            seen.mtime_ns if times and seen.mtime_ns < FRESH else 0,
            *seen[6:],
        )
        for path, seen in shown.items()
    }


def all_names_are_counted(shown: Shown) -> bool:
    """Whether each file has as many links as names."""
    names = Counter(seen.ino for seen in shown.values())
    return all(seen.nlink == names[seen.ino] for seen in shown.values() if not stat.S_ISDIR(seen.mode))


def difference(one: dict[bytes, tuple[object, ...]], other: dict[bytes, tuple[object, ...]]) -> str:
    """Say what differs, for a message."""
    paths = sorted({*one, *other})
    return ", ".join(
        f"{path!r}: {one.get(path)} {other.get(path)}" for path in paths if one.get(path) != other.get(path)
    )


# --- by the engine --------------------------------------------------------------------------------------


def seen_by_engine(view: Engine) -> Shown:
    """Return everything in the view."""
    root = view.overlay.root
    return dict(_seen_below(view, b"", root, view.overlay.attrs(root)))


def _seen_below(view: Engine, path: bytes, node: Node, attrs: Attrs) -> Iterator[tuple[bytes, Seen]]:
    overlay = view.overlay
    names: list[bytes] = []
    content: object = attrs.rdev
    flags = 0
    if isinstance(node, DirNode):
        content = names = sorted(overlay.names(node).names)
    elif isinstance(node, FileNode) and stat.S_ISREG(attrs.mode):
        content, flags = _data(view, node), _flags(view, node)
    elif stat.S_ISLNK(attrs.mode):
        content = overlay.readlink(node)
    listed = sorted(overlay.xattrs(node, _NOBODY))
    xattrs = tuple((name, overlay.xattr(node, name)) for name in listed)
    yield path, _seen(attrs, content, xattrs, flags)
    for name in names:
        assert isinstance(node, DirNode)
        yield from _seen_below(view, os.path.join(path, name), *overlay.lookup(node, name))


def _seen(attrs: Attrs, content: object, xattrs: tuple[tuple[str, bytes], ...], flags: int) -> Seen:
    moves = stat.S_ISDIR(attrs.mode)
    nlink, mtime_ns = (0, 0) if moves else (attrs.nlink, attrs.mtime_ns)
    return Seen(attrs.ino, attrs.mode, attrs.uid, attrs.gid, nlink, mtime_ns, content, xattrs, flags)


def _data(view: Engine, node: FileNode) -> bytes:
    handle = view.overlay.open(node, os.O_RDONLY, view.caller)
    try:
        buffer = memoryview(bytearray(_MOST_DATA))
        return bytes(buffer[: handle.read_into(buffer, 0)])
    finally:
        view.overlay.files.release(node, handle)


def _flags(view: Engine, node: FileNode) -> int:
    try:
        return _shown_flags(view.overlay.get_flags(node, PLAIN))
    except OSError as error:
        assert error.errno in NO_FLAGS
        return 0


def _shown_flags(value: bytes) -> int:
    return int.from_bytes(value[:4], sys.byteorder) & (IMMUTABLE | NODUMP)


# --- by the kernel --------------------------------------------------------------------------------------


def seen_by_kernel(mountpoint: bytes) -> Shown:
    """Return everything in a mounted view."""
    return dict(_seen_in(mountpoint, b""))


def _seen_in(mountpoint: bytes, path: bytes) -> Iterator[tuple[bytes, Seen]]:
    real = os.path.join(mountpoint, path) if path else mountpoint
    status = os.lstat(real)
    names: list[bytes] = []
    content: object = status.st_rdev
    flags = 0
    if stat.S_ISDIR(status.st_mode):
        content = names = sorted(name for name in os.listdir(real) if os.path.lexists(os.path.join(real, name)))
    elif stat.S_ISREG(status.st_mode):
        content, flags = _data_and_flags(real)
    elif stat.S_ISLNK(status.st_mode):
        content = os.readlink(real)
    listed = sorted(os.listxattr(real, follow_symlinks=False))
    xattrs = tuple((name, os.getxattr(real, name, follow_symlinks=False)) for name in listed)
    yield path, _seen(Attrs.of(status, status.st_ino, status.st_nlink), content, xattrs, flags)
    for name in names:
        yield from _seen_in(mountpoint, os.path.join(path, name))


def _data_and_flags(path: bytes) -> tuple[bytes, int]:
    fd = os.open(path, os.O_RDONLY)
    try:
        data = os.read(fd, _MOST_DATA)
        try:
            return data, _shown_flags(inode_flags.ask(fd, PLAIN))
        except OSError as error:
            assert error.errno in NO_FLAGS
            return data, 0
    finally:
        os.close(fd)
