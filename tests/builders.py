"""How does a test say, in a few words, which layers it wants, and compare two trees?

`layers(path, {"a": "1", "d/": None}, {"a": WHITEOUT, "d": OPAQUE({"b": "2"})})` makes real directories,
bottom to top. A key is a path below the layer; directories on the way are made. A value is text (a
file), a mapping or None (a directory), or one of the classes here. Everything gets the time `MTIME`.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

MTIME = 1_600_000_000_123_456_789

Content = Mapping[str, Any] | Mapping[bytes, Any] | Mapping[str | bytes, Any]


@dataclass(frozen=True)
class Meta:
    """What any object of a layer may be given besides its content. None leaves it as it comes."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    mtime_ns: int = MTIME
    xattrs: Mapping[str, bytes] = field(default_factory=dict, kw_only=True)

    def make(self, path: bytes) -> None:
        raise NotImplementedError

    def dress(self, path: bytes) -> None:
        """Owner, mode, attributes and times, in the order that lets each stay."""
        if self.uid is not None or self.gid is not None:
            os.chown(
                path, -1 if self.uid is None else self.uid, -1 if self.gid is None else self.gid, follow_symlinks=False
            )
        if self.mode is not None:
            os.chmod(path, self.mode)
        for name, value in self.xattrs.items():
            os.setxattr(path, name, value, follow_symlinks=False)
        os.utime(path, ns=(self.mtime_ns, self.mtime_ns), follow_symlinks=False)


@dataclass(frozen=True)
class File(Meta):
    data: str | bytes = field(default=b"", kw_only=True)

    def make(self, path: bytes) -> None:
        Path(os.fsdecode(path)).write_bytes(self.data.encode() if isinstance(self.data, str) else self.data)


def file(data: str | bytes, **meta: Any) -> File:
    return File(data=data, **meta)


@dataclass(frozen=True)
class Sparse(Meta):
    """A file of `size` bytes with holes: `pieces` are its data, by offset."""

    size: int = field(default=0, kw_only=True)
    pieces: Mapping[int, bytes] = field(default_factory=dict, kw_only=True)

    def make(self, path: bytes) -> None:
        with Path(os.fsdecode(path)).open("wb") as real:
            for offset, data in self.pieces.items():
                real.seek(offset)
                real.write(data)
            real.truncate(self.size)


def sparse(size: int, pieces: Mapping[int, bytes], **meta: Any) -> Sparse:
    return Sparse(size=size, pieces=pieces, **meta)


@dataclass(frozen=True)
class Metacopy(Meta):
    """A file of metadata only, as the kernel leaves it: one hole with a mark."""

    size: int = field(default=0, kw_only=True)

    def make(self, path: bytes) -> None:
        with Path(os.fsdecode(path)).open("wb") as made:
            made.truncate(self.size)


def metacopy(size: int, redirect: str = "", **meta: Any) -> Metacopy:
    marks = {"trusted.overlay.metacopy": b""} | ({"trusted.overlay.redirect": redirect.encode()} if redirect else {})
    return Metacopy(size=size, xattrs=marks, **meta)


@dataclass(frozen=True)
class Symlink(Meta):
    target: str | bytes = field(default="", kw_only=True)

    def make(self, path: bytes) -> None:
        os.symlink(os.fsencode(self.target), path)


def symlink(target: str | bytes, **meta: Any) -> Symlink:
    return Symlink(target=target, **meta)


@dataclass(frozen=True)
class Special(Meta):
    """A fifo, a socket or a device, by its S_IFMT kind."""

    kind: int = field(default=stat.S_IFIFO, kw_only=True)
    device: tuple[int, int] = field(default=(0, 0), kw_only=True)

    def make(self, path: bytes) -> None:
        os.mknod(path, self.kind | 0o644, os.makedev(*self.device))


def fifo(**meta: Any) -> Special:
    return Special(kind=stat.S_IFIFO, **meta)


def device(major: int, minor: int, **meta: Any) -> Special:
    return Special(kind=stat.S_IFCHR, device=(major, minor), **meta)


@dataclass(frozen=True)
class Dir(Meta):
    content: Content = field(default_factory=dict, kw_only=True)

    def make(self, path: bytes) -> None:
        os.makedirs(path, exist_ok=True)
        fill(path, self.content)


def directory(content: Content | None = None, **meta: Any) -> Dir:
    return Dir(content=content or {}, **meta)


@dataclass(frozen=True)
class Hardlink(Meta):
    """A further name for a file made before it; `target` is a path below the layer of depth one."""

    target: str = field(default="", kw_only=True)

    def make(self, path: bytes) -> None:
        os.link(os.path.join(os.path.dirname(path), os.fsencode(self.target)), path, follow_symlinks=False)


def hardlink(target: str) -> Hardlink:
    return Hardlink(target=target)


# --- what is deleted, in every dialect ----------------------------------------------------------------


class _Deletion:
    """A mark that something below is not part of the view; `write` gets where the name would stand."""

    def __init__(self, name: str, write: Callable[[bytes, bytes], None]) -> None:
        self._name = name
        self.write = write

    def __repr__(self) -> str:
        return self._name


def _xattr_whiteout(parent: bytes, name: bytes) -> None:
    path = os.path.join(parent, name)
    os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    os.setxattr(path, "trusted.overlay.whiteout", b"y")
    os.setxattr(parent, "trusted.overlay.opaque", b"x")


WHITEOUT = _Deletion("WHITEOUT", lambda parent, name: os.mknod(os.path.join(parent, name), stat.S_IFCHR, 0))
IMAGE_WHITEOUT = _Deletion(
    "IMAGE_WHITEOUT", lambda parent, name: os.close(os.open(os.path.join(parent, b".wh." + name), os.O_CREAT))
)
XATTR_WHITEOUT = _Deletion("XATTR_WHITEOUT", _xattr_whiteout)


def OPAQUE(content: Content | None = None, **meta: Any) -> Dir:
    """A directory that hides all below it, in the kernel's dialect."""
    return directory(content, xattrs={"trusted.overlay.opaque": b"y"}, **meta)


def IMAGE_OPAQUE(content: Content | None = None) -> Dir:
    """The same in the image format's dialect."""
    whole: dict[Any, Any] = dict(content or {})
    return directory(whole | {".wh..wh..opq": ""})


def FUSE_OVERLAYFS_OPAQUE(content: Content | None = None) -> Dir:
    """The same in fuse-overlayfs's dialect."""
    return directory(content, xattrs={"user.fuseoverlayfs.opaque": b"y"})


# --- making layers ------------------------------------------------------------------------------------


def layers(where: Path, *contents: Content) -> list[Path]:
    """One directory below `where` for each mapping, bottom to top."""
    made = []
    for number, content in enumerate(contents):
        path = where / f"layer{number}"
        directories(where, path.name)
        fill(os.fsencode(path), content)
        made.append(path)
    return made


@contextmanager
def usual_umask() -> Iterator[None]:
    """What is made meanwhile does not depend on this process's umask."""
    before = os.umask(0o022)
    try:
        yield
    finally:
        os.umask(before)


def directories(where: Path, *names: str) -> None:
    """Make empty directories below `where`, which is made if missing."""
    with usual_umask():
        for name in names:
            (where / name).mkdir(parents=True)


def fill(root: bytes, content: Content) -> None:
    """Make what `content` describes in the directory `root`."""
    with usual_umask():
        _fill(root, content)


def _fill(root: bytes, content: Content) -> None:
    for key, value in content.items():
        path = os.path.join(root, os.fsencode(key).rstrip(b"/"))
        _make_above(root, os.path.dirname(path))
        if isinstance(value, _Deletion):
            value.write(*os.path.split(path))
            continue
        thing = _described(value)
        thing.make(path)
        thing.dress(path)
    # What was made in a directory changed its times.
    for above, _, _ in os.walk(root, topdown=False):
        os.utime(above, ns=(MTIME, MTIME))


def _make_above(root: bytes, directory: bytes) -> None:
    if directory != root:
        os.makedirs(directory, exist_ok=True)


def _described(value: Any) -> Meta:
    if value is None:
        return Dir()
    if isinstance(value, Mapping):
        return Dir(content=value)
    if isinstance(value, str | bytes):
        return File(data=value)
    assert isinstance(value, Meta)
    return value


# --- comparing trees ----------------------------------------------------------------------------------


class Seen(NamedTuple):
    """What can be seen of one object. `detail` is a file's data, a link's target or a device's number."""

    kind: str
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    detail: bytes | int | None
    xattrs: tuple[tuple[str, bytes], ...]


_KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "link",
    stat.S_IFIFO: "fifo",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
    stat.S_IFSOCK: "socket",
}


def tree(root: Path | bytes, *, times: bool = True) -> dict[bytes, Seen]:
    """Everything below a directory, and itself as b"". Without `times` all modification times are 0."""
    top = os.fsencode(root)
    found = {b"": _seen(top, times)}
    for above, directories, files in os.walk(top):
        for name in directories + files:
            path = os.path.join(above, name)
            found[os.path.relpath(path, top)] = _seen(path, times)
    return found


def _seen(path: bytes, times: bool) -> Seen:
    status = os.lstat(path)
    kind = stat.S_IFMT(status.st_mode)
    detail: bytes | int | None = None
    if kind == stat.S_IFREG:
        detail = Path(os.fsdecode(path)).read_bytes()
    elif kind == stat.S_IFLNK:
        detail = os.readlink(path)
    elif kind in (stat.S_IFCHR, stat.S_IFBLK):
        detail = status.st_rdev
    names = sorted(os.listxattr(path, follow_symlinks=False))
    xattrs = tuple((name, os.getxattr(path, name, follow_symlinks=False)) for name in names)
    mtime = status.st_mtime_ns if times else 0
    return Seen(_KINDS[kind], stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, mtime, detail, xattrs)
