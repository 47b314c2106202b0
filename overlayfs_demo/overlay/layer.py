"""How is a layer's directory tree reached, safely and with few system calls?

A layer is hostile input: a symbolic link in it must never lead out of it. So every access starts at a
descriptor of a directory inside the layer, and directories are opened with RESOLVE_BENEATH. Somebody who can
reach the layer may also put another directory in the place of one that was looked up: a directory that is opened
again by its name must still be the same object. Descriptors are kept for directories only, in a bounded cache.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import deque

from overlayfs_demo.linux import syscalls
from overlayfs_demo.overlay.private_mount import Root
from overlayfs_demo.overlay.whiteout import (
    FUSE_OVERLAYFS_OPAQUE,
    IMAGE_OPAQUE,
    IMAGE_WHITEOUT_PREFIX,
    PrivateXattrs,
    is_whiteout,
)

# PATH_MAX (limits.h), which counts the NUL.
_LONGEST_PATH = 4095

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# To look into a directory is nobody's reading of it.
_QUIETLY = _DIRECTORY | os.O_NOATIME

# What opening a directory fails with if something else, or nothing, stands at its name now: open(2), openat2(2).
_MOVED = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV)

# The (device, inode) of a real object.
Key = tuple[int, int]


def key_of(status: os.stat_result) -> Key:
    """The identity of the real object with this status."""
    return status.st_dev, status.st_ino


def stale(name: bytes) -> OSError:
    """ESTALE, for a name behind which another object stands than the one that was looked up there.

    The kernel then walks the path again by itself, and asks for every name on it: path_resolution(7) calls retry
    with LOOKUP_REVAL (fs/namei.c, retry_estale).
    """
    return OSError(errno.ESTALE, os.strerror(errno.ESTALE), name)


class Descriptor:
    """A file descriptor that is closed when its last user lets go of it."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self) -> None:
        os.close(self.fd)


class DescriptorCache:
    """The open directories of one mount, at most `limit`; the one opened first is let go first.

    A caller that still uses a descriptor when the cache drops it keeps it alive by holding it.
    """

    __slots__ = ("_holders", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._holders: deque[LayerDir] = deque()

    def opened(self, holder: LayerDir) -> None:
        """Note that `holder` now keeps a descriptor."""
        self._holders.append(holder)
        if len(self._holders) > self.limit:
            self._holders.popleft().release()

    def close(self) -> None:
        """Let go of every descriptor."""
        while self._holders:
            self._holders.popleft().release()


class Marks:
    """What the private attributes of one real directory say about the layers below it."""

    __slots__ = ("has_xattr_whiteouts", "impure", "opaque", "redirect")

    def __init__(
        self, opaque: bool, has_xattr_whiteouts: bool = False, redirect: bytes | None = None, impure: bool = False
    ) -> None:
        self.opaque = opaque
        self.has_xattr_whiteouts = has_xattr_whiteouts
        self.redirect = redirect
        self.impure = impure


_NO_MARKS = Marks(False)


class Layer:
    """One directory of the stack. `number` is 0 for the upper, then 1, 2, ... from the top lower down; `label` is
    how messages and events name the layer.

    `path` is how the user named it. `root` is the directory, which this owns until `close`. `image_dialect` says
    whether zero-length `.wh.NAME` files are whiteouts here. `last` says that nothing lies below, so that few marks are
    read. `metacopies`: there may be some. `told` is what `faults` has logged.
    """

    __slots__ = (
        "cache",
        "device",
        "image_dialect",
        "label",
        "last",
        "metacopies",
        "number",
        "path",
        "reads_quietly",
        "root_fd",
        "told",
        "xattrs",
    )

    def __init__(
        self,
        path: bytes,
        root: Root,
        number: int,
        label: str,
        xattrs: PrivateXattrs,
        cache: DescriptorCache,
        *,
        image_dialect: bool,
        last: bool,
        metacopies: bool = False,
    ) -> None:
        self.path = path
        self.number = number
        self.label = label
        self.xattrs = xattrs
        self.cache = cache
        self.image_dialect = image_dialect
        self.last = last
        self.metacopies = metacopies
        self.told: set[tuple[bytes, str]] = set()
        self.root_fd, self.reads_quietly = root
        self.device = os.fstat(self.root_fd).st_dev

    @property
    def is_upper(self) -> bool:
        """Whether this is the one writable layer."""
        return self.number == 0

    def close(self) -> None:
        """Close the root descriptor; the layer is not used afterwards."""
        os.close(self.root_fd)

    def hides(self, name: bytes, status: os.stat_result, parent: LayerDir) -> bool:
        """Is this object, found as `name`, a whiteout (in any dialect this layer may speak)?"""
        if is_whiteout(status):
            return True
        if status.st_size or not stat.S_ISREG(status.st_mode) or not parent.marks.has_xattr_whiteouts:
            return False
        path = syscalls.path_of(parent.open().fd, name)
        return syscalls.get_xattr(path, self.xattrs.whiteout) is not None

    def is_metacopy(self, name: bytes, status: os.stat_result, parent: LayerDir) -> bool:
        """Does this regular file hold metadata only (overlayfs.rst, "Metadata only copy up")?

        Such a file is one hole, or stands beside other copied-up objects; the rest need not be asked. Where there
        may be metacopies all are asked: long attributes take a block, and then a small hole looks like data.
        """
        if not stat.S_ISREG(status.st_mode):
            return False
        if status.st_blocks * 512 >= status.st_size and not (self.metacopies or parent.marks.impure):
            return False
        path = syscalls.path_of(parent.open().fd, name)
        return syscalls.get_xattr(path, self.xattrs.metacopy) is not None

    def is_image_mark(self, name: bytes, status: os.stat_result) -> bool:
        """Is this object one of the image format's marks, which are never part of the view?"""
        return (
            self.image_dialect
            and name.startswith(IMAGE_WHITEOUT_PREFIX)
            and not status.st_size
            and stat.S_ISREG(status.st_mode)
        )

    def has_image_mark(self, dir_fd: int, mark: bytes) -> bool:
        """Does the image format's `mark` (such as `.wh.NAME`) stand in this directory?"""
        if not self.image_dialect:
            return False
        try:
            status = os.stat(mark, dir_fd=dir_fd, follow_symlinks=False)
        except OSError as error:
            # A mark for a name of more than 251 bytes would itself be too long to exist.
            if error.errno in (errno.ENOENT, errno.ENAMETOOLONG):
                return False
            raise
        return self.is_image_mark(mark, status)

    def redirect(self, path: bytes | int) -> bytes | None:
        """The object's `overlay.redirect`, not checked. It ends where a C string ends, as the kernel reads it."""
        value = syscalls.get_xattr(path, self.xattrs.redirect)
        return value if value is None else value.partition(b"\0")[0]

    def read_marks(self, dir_fd: int) -> Marks:
        """Read the marks of the directory open as `dir_fd`. Raises OSError."""
        names = syscalls.list_xattrs(dir_fd)
        opaque = not self.last and self.has_image_mark(dir_fd, IMAGE_OPAQUE)
        if not names and not opaque:
            return _NO_MARKS
        xattrs = self.xattrs
        value = syscalls.get_xattr(dir_fd, xattrs.opaque) if xattrs.opaque in names else None
        if FUSE_OVERLAYFS_OPAQUE in names:
            opaque = opaque or syscalls.get_xattr(dir_fd, FUSE_OVERLAYFS_OPAQUE) == b"y"
        return Marks(
            opaque or value == b"y",
            value == b"x",
            self.redirect(dir_fd) if xattrs.redirect in names else None,
            xattrs.impure in names,
        )


class LayerDir:
    """A directory of one layer. It is opened when needed, and closed again when others are: all that opens one is
    called with the tree's lock held.

    `key` is its identity; None for a layer's root, which is always open and so can be no other.
    """

    __slots__ = ("_descriptor", "_marks", "key", "layer")

    def __init__(self, layer: Layer, key: Key | None = None) -> None:
        self.layer = layer
        self.key = key
        self._descriptor: Descriptor | None = None
        self._marks: Marks | None = None

    def path(self) -> bytes:
        """The path below the layer's root, without a leading slash; empty for the root itself."""
        raise NotImplementedError

    def open(self) -> Descriptor:
        """The directory, open. Hold the result while using its `fd`.

        Raises OSError, ESTALE if another object stands at its path now.
        """
        descriptor = self._descriptor
        if descriptor is None:
            path = self.path()
            try:
                fd = _open_directory(self.layer.root_fd, path)
            except OSError as error:
                raise stale(path) if error.errno in _MOVED else error from None
            descriptor = self.keep(fd)
        return descriptor

    def adopt(self, parent: LayerDir, name: bytes) -> Descriptor:
        """Like `open`, by one step from the parent, which is cheaper when that is open anyway."""
        if self._descriptor is not None:
            return self._descriptor
        above = parent.open().fd
        try:
            try:
                fd = os.open(name, _QUIETLY, dir_fd=above)
            except PermissionError:  # Only the owner and root may ask for O_NOATIME: open(2).
                fd = os.open(name, _DIRECTORY, dir_fd=above)
        except OSError as error:
            raise stale(name) if error.errno in _MOVED else error from None
        return self.keep(fd)

    def keep(self, fd: int) -> Descriptor:
        """Take over `fd`, on which this directory was opened. ESTALE if it is another one."""
        descriptor = Descriptor(fd)
        if self.key is not None and key_of(os.fstat(fd)) != self.key:
            raise stale(self.path())
        self.hold(descriptor)
        return descriptor

    def hold(self, descriptor: Descriptor) -> None:
        """Keep the directory open by this descriptor, which is known to be its own."""
        self._descriptor = descriptor
        self.layer.cache.opened(self)

    def release(self) -> None:
        """Let go of the descriptor; the next `open` makes a new one."""
        self._descriptor = None

    @property
    def marks(self) -> Marks:
        """The directory's marks, read once. A change through the view must call `forget_marks`."""
        marks = self._marks
        if marks is None:
            self._marks = marks = self.layer.read_marks(self.open().fd)
        return marks

    def child(self, name: bytes, key: Key) -> LayerDir:
        """The directory `name` in this one, which the caller has found to be the directory with this identity."""
        raise NotImplementedError

    def forget_marks(self) -> None:
        """Read the marks anew next time."""
        self._marks = None

    def stat(self, name: bytes) -> os.stat_result | None:
        """The object called `name`, links not followed; None where there is none. Raises other OSErrors."""
        descriptor = self._descriptor or self.open()
        try:
            return os.stat(name, dir_fd=descriptor.fd, follow_symlinks=False)
        except FileNotFoundError:
            return None


def _open_directory(root_fd: int, path: bytes) -> int:
    """Open a directory of a layer, which may lie deeper than a path can name: then in several steps."""
    held = None
    while len(path) > _LONGEST_PATH:
        cut = path.rindex(b"/", 0, _LONGEST_PATH)
        held = Descriptor(syscalls.open_beneath(held.fd if held else root_fd, path[:cut], _DIRECTORY))
        path = path[cut + 1 :]
    fd = held.fd if held else root_fd
    try:
        return syscalls.open_beneath(fd, path or b".", _QUIETLY)
    except PermissionError:  # As in `adopt`.
        return syscalls.open_beneath(fd, path or b".", _DIRECTORY)


class LowerDir(LayerDir):
    """A directory of a read-only layer; its path never changes."""

    __slots__ = ("_path",)

    def __init__(self, layer: Layer, path: bytes, key: Key | None = None) -> None:
        super().__init__(layer, key)
        self._path = path

    def path(self) -> bytes:
        return self._path

    def child(self, name: bytes, key: Key) -> LowerDir:
        return LowerDir(self.layer, b"%s/%s" % (self._path, name) if self._path else name, key)


class UpperDir(LayerDir):
    """A directory of the upper. Renames move it, so its path follows from its parent's.

    `changes` counts the changes of its names, so that what was read before one is known to be old. `impure_name` is
    one that `impure` found to be so.
    """

    __slots__ = ("changes", "impure_name", "name", "parent")

    def __init__(self, layer: Layer, parent: UpperDir | None, name: bytes, key: Key | None = None) -> None:
        super().__init__(layer, key)
        self.parent = parent
        self.name = name
        self.changes = 0
        self.impure_name: bytes | None = None

    def path(self) -> bytes:
        names = []
        directory = self
        while directory.parent is not None:
            names.append(directory.name)
            directory = directory.parent
        return b"/".join(reversed(names))

    def child(self, name: bytes, key: Key) -> UpperDir:
        return UpperDir(self.layer, self, name, key)
