"""Layers and their directories, reached safely and with few system calls.

A layer is hostile input: a symbolic link in it must never lead out of it. So every access starts at a
descriptor of a directory inside the layer, and directories are opened with RESOLVE_BENEATH. Anyone who can write
to the layer may also replace a directory after its lookup, so a directory that is opened again by its name must
still be the same object. Only directories stay open, in a cache of limited size.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from typing import TypeVar
from weakref import ref

from overlayfs_demo.linux import proc, syscalls, xattr
from overlayfs_demo.linux.failure import failure
from overlayfs_demo.named_tuple import NamedTuple
from overlayfs_demo.overlay import questions
from overlayfs_demo.overlay.private_mount import Root
from overlayfs_demo.overlay.whiteout import (
    FUSE_OVERLAYFS_OPAQUE,
    IMAGE_OPAQUE,
    IMAGE_WHITEOUT_PREFIX,
    PrivateXattrs,
    is_whiteout,
)

_T = TypeVar("_T")

# PATH_MAX (limits.h), which counts the NUL.
_LONGEST_PATH = 4095

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Looking up a name in a directory must not change its access time.
_QUIETLY = _DIRECTORY | os.O_NOATIME

# The errors of opening a directory whose name is gone or leads to something else now: open(2), openat2(2).
_MOVED = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV)

# The (device, inode) of a real object.
Key = tuple[int, int]


def key_of(status: os.stat_result) -> Key:
    """Return the identity of the real object with this status."""
    return status.st_dev, status.st_ino


def stale(name: bytes) -> OSError:
    """Return ESTALE for a name that leads to another object than the one that was looked up there.

    The kernel then resolves the path again by itself and asks for every name on it: path_resolution(7), calls retry
    with LOOKUP_REVAL (fs/namei.c, retry_estale).
    """
    return failure(errno.ESTALE, name)


class Descriptor:
    """A file descriptor that is closed when its last user lets go of it."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self) -> None:
        os.close(self.fd)


class DescriptorCache:
    """The open directories of one mount, at most `limit`. The one opened first is released first.

    A caller that still uses a descriptor when the cache releases it keeps it open by holding it. A directory that
    nobody needs any more leaves the cache by itself, in any thread.
    """

    __slots__ = ("_holders", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        # By the id of the holder, in the order in which they were opened.
        self._holders: dict[int, ref[LayerDir]] = {}

    def opened(self, holder: LayerDir) -> None:
        """Record that `holder` now keeps a descriptor."""
        number, holders = id(holder), self._holders
        holders.pop(number, None)
        holders[number] = ref(holder, lambda _: holders.pop(number, None))
        if len(holders) > self.limit:
            self._release_first()

    def close(self) -> None:
        """Release all descriptors."""
        while self._holders:
            self._release_first()

    def _release_first(self) -> None:
        reference = self._holders.pop(next(iter(self._holders), 0), None)
        holder = reference() if reference is not None else None
        if holder is not None:
            holder.release()


class Marks:
    """The private attributes of one real directory, which control how it merges with the layers below."""

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
    """One layer of the stack.

    `depth` is 0 for the upper, then 1, 2, ... from the top lower down. `label` is the layer's name in messages and
    events, `path` the path that the user gave. Its directory, `root`, stays open as long as the layer. `image_dialect`:
    zero-length `.wh.NAME` files are whiteouts here. `last`: no layer is below, so few marks need to be read.
    `metacopies`: the layer may hold metacopies. `told` records what `faults` has logged. `may_stall`: another program
    or machine answers for its filesystem, so it is asked through `questions`.
    """

    __slots__ = (
        "cache",
        "depth",
        "device",
        "image_dialect",
        "label",
        "last",
        "may_stall",
        "metacopies",
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
        depth: int,
        label: str,
        xattrs: PrivateXattrs,
        cache: DescriptorCache,
        *,
        image_dialect: bool,
        last: bool,
        metacopies: bool = False,
    ) -> None:
        self.path = path
        self.depth = depth
        self.label = label
        self.xattrs = xattrs
        self.cache = cache
        self.image_dialect = image_dialect
        self.last = last
        self.metacopies = metacopies
        self.told: set[tuple[bytes, str]] = set()
        self.root_fd, self.reads_quietly = root
        self.device = os.fstat(self.root_fd).st_dev
        self.may_stall = depth > 0 and syscalls.is_answered_elsewhere(self.root_fd)

    @property
    def is_upper(self) -> bool:
        """Whether this is the one writable layer."""
        return self.depth == 0

    def hides(self, name: bytes, status: os.stat_result, parent: LayerDir) -> bool:
        """Whether this object, found as `name`, is a whiteout in one of the kernel's forms: a device or an xattr."""
        if is_whiteout(status):
            return True
        if status.st_size or not stat.S_ISREG(status.st_mode) or not parent.marks.has_xattr_whiteouts:
            return False
        return parent.xattr(name, self.xattrs.whiteout) is not None

    def is_metacopy(self, name: bytes, status: os.stat_result, parent: LayerDir) -> bool:
        """Whether this regular file holds metadata only (overlayfs.rst, "Metadata only copy up").

        A metacopy is one big hole, or its directory holds copied-up objects; the attribute of any other file need not
        be read. Where metacopies are expected, it is read for all files: long attributes take a block, and then a
        small hole looks like data.
        """
        if not stat.S_ISREG(status.st_mode):
            return False
        if status.st_blocks * 512 >= status.st_size and not (self.metacopies or parent.marks.impure):
            return False
        return parent.xattr(name, self.xattrs.metacopy) is not None

    def is_image_mark(self, name: bytes, status: os.stat_result) -> bool:
        """Whether this object is one of the image format's marks, which are never part of the view."""
        return (
            self.image_dialect
            and name.startswith(IMAGE_WHITEOUT_PREFIX)
            and not status.st_size
            and stat.S_ISREG(status.st_mode)
        )

    def has_image_mark(self, directory: Descriptor, mark: bytes) -> bool:
        """Whether this directory holds the image format's `mark` (such as `.wh.NAME`)."""
        if not self.image_dialect:
            return False
        try:
            status = os.stat(mark, dir_fd=directory.fd, follow_symlinks=False)
        except OSError as error:
            # A mark for a name of more than 251 bytes would itself be too long to exist.
            if error.errno in (errno.ENOENT, errno.ENAMETOOLONG):
                return False
            raise
        return self.is_image_mark(mark, status)

    def read_marks(self, directory: Descriptor) -> Marks:
        """Read the marks of an open directory. Raises OSError."""
        dir_fd = directory.fd
        names = xattr.names(dir_fd)
        opaque = not self.last and self.has_image_mark(directory, IMAGE_OPAQUE)
        if not names and not opaque:
            return _NO_MARKS
        xattrs = self.xattrs
        value = xattr.get(dir_fd, xattrs.opaque) if xattrs.opaque in names else None
        if FUSE_OVERLAYFS_OPAQUE in names:
            opaque = opaque or xattr.get(dir_fd, FUSE_OVERLAYFS_OPAQUE) == b"y"
        return Marks(
            opaque or value == b"y",
            value == b"x",
            redirect_in(xattr.get(dir_fd, xattrs.redirect)) if xattrs.redirect in names else None,
            xattrs.impure in names,
        )


class LayerDir:
    """A directory of one layer.

    It is opened when needed, and closed when the cache needs room. Call all methods that open it with the tree's lock
    held. `key` is its identity; None for a layer's root, which is always open and so cannot be replaced.
    """

    __slots__ = ("__weakref__", "_descriptor", "_marks", "key", "layer")

    def __init__(self, layer: Layer, key: Key | None = None) -> None:
        self.layer = layer
        self.key = key
        self._descriptor: Descriptor | None = None
        self._marks: Marks | None = None

    def path(self) -> bytes:
        """Return the path below the layer's root, without a leading slash; empty for the root itself."""
        raise NotImplementedError

    def open(self) -> Descriptor:
        """Return the directory, open. Hold the result while using its `fd`.

        Raises OSError, ESTALE if another object is at its path now.
        """
        descriptor = self._descriptor
        if descriptor is None:
            path = self.path()
            descriptor = self._opened(path, _open_directory, self.layer.root_fd, path)
        return descriptor

    def adopt(self, parent: LayerDir, name: bytes) -> Descriptor:
        """Like `open`, but relative to the parent, which is cheaper if the parent is open anyway."""
        if self._descriptor is not None:
            return self._descriptor
        return self._opened(name, _open_inside, parent.open(), name)

    def _opened(self, where: bytes, opening: Callable[[_T, bytes], Opened], above: _T, path: bytes) -> Descriptor:
        """Open the directory at its name and keep it. ESTALE if another object is there; `where` is for the message."""
        try:
            opened = questions.ask(opening, above, path) if self.layer.may_stall else opening(above, path)
        except OSError as error:
            raise stale(where) if error.errno in _MOVED else error from None
        if self.key is not None and opened.key != self.key:
            raise stale(self.path())
        self.hold(opened.descriptor)
        return opened.descriptor

    def hold(self, descriptor: Descriptor) -> None:
        """Keep the directory open by this descriptor, which the caller has verified to be the directory's."""
        self._descriptor = descriptor
        self.layer.cache.opened(self)

    def release(self) -> None:
        """Release the descriptor. The next `open` opens a new one."""
        self._descriptor = None

    @property
    def marks(self) -> Marks:
        """The directory's marks, read once. Code that changes them must call `forget_marks`."""
        marks = self._marks
        if marks is None:
            layer, descriptor = self.layer, self.open()
            read = layer.read_marks
            self._marks = marks = questions.ask(read, descriptor) if layer.may_stall else read(descriptor)
        return marks

    def child(self, name: bytes, key: Key) -> LayerDir:
        """Return the subdirectory `name`, which the caller has found to have this identity."""
        raise NotImplementedError

    def forget_marks(self) -> None:
        """Read the marks again next time."""
        self._marks = None

    def stat(self, name: bytes) -> os.stat_result | None:
        """Return the status of the object called `name`, without following links; None if there is none.

        Raises other OSErrors.
        """
        descriptor = self._descriptor or self.open()
        if self.layer.may_stall:
            return questions.ask(_stat, descriptor, name)
        try:
            return os.stat(name, dir_fd=descriptor.fd, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def xattr(self, name: bytes, attribute: str) -> bytes | None:
        """Return an extended attribute of the object called `name`; None if it has none. Raises OSError."""
        descriptor = self._descriptor or self.open()
        if self.layer.may_stall:
            return questions.ask(_xattr, descriptor, name, attribute)
        return _xattr(descriptor, name, attribute)

    def has_image_mark(self, mark: bytes) -> bool:
        """Whether the directory holds the image format's `mark`, see `Layer.has_image_mark`."""
        layer = self.layer
        if not layer.image_dialect:
            return False
        if layer.may_stall:
            return questions.ask(layer.has_image_mark, self.open(), mark)
        return layer.has_image_mark(self.open(), mark)


def redirect_in(value: bytes | None) -> bytes | None:
    """Return an object's `overlay.redirect`, unchecked, up to the first NUL, which is how the kernel reads it."""
    return value if value is None else value.partition(b"\0")[0]


def _stat(directory: Descriptor, name: bytes) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=directory.fd, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _xattr(directory: Descriptor, name: bytes, attribute: str) -> bytes | None:
    return xattr.get(proc.path_of(directory.fd, name), attribute)


class Opened(NamedTuple):
    """An open directory and its identity."""

    descriptor: Descriptor
    key: Key

    @classmethod
    def of(cls, fd: int) -> Opened:
        """Take ownership of a descriptor."""
        descriptor = Descriptor(fd)
        return cls(descriptor, key_of(os.fstat(fd)))


def _open_inside(directory: Descriptor, name: bytes) -> Opened:
    """Open a directory inside another one."""
    try:
        return Opened.of(os.open(name, _QUIETLY, dir_fd=directory.fd))
    except PermissionError:  # Only the owner and root may ask for O_NOATIME: open(2).
        return Opened.of(os.open(name, _DIRECTORY, dir_fd=directory.fd))


def _open_directory(root_fd: int, path: bytes) -> Opened:
    """Open a directory of a layer, in several steps if its path is longer than PATH_MAX."""
    held = None
    while len(path) > _LONGEST_PATH:
        cut = path.rindex(b"/", 0, _LONGEST_PATH)
        held = Descriptor(syscalls.open_beneath(held.fd if held else root_fd, path[:cut], _DIRECTORY))
        path = path[cut + 1 :]
    fd = held.fd if held else root_fd
    try:
        return Opened.of(syscalls.open_beneath(fd, path or b".", _QUIETLY))
    except PermissionError:  # O_NOATIME is refused, as in `_open_inside`.
        return Opened.of(syscalls.open_beneath(fd, path or b".", _DIRECTORY))


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
    """A directory of the upper. Renames move it, so its path is derived from its parent's.

    `changes` counts the changes of names in it, so that an older listing is known to be out of date. `impure_name` is
    a name that `impure` found to be impure.
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
