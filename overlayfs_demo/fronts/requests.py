"""What does each FUSE request ask of the engine?

One method a request: decode, call a verb of the engine, encode. A method returns the reply's payload,
or None for a request that gets no reply, and raises OSError for one that fails.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable
from functools import partial
from itertools import count

from overlayfs_demo import syscalls
from overlayfs_demo.fronts import wire
from overlayfs_demo.fronts.base import View, now_ns
from overlayfs_demo.fronts.directories import Directories, Portion
from overlayfs_demo.fronts.node_table import NodeTable
from overlayfs_demo.fronts.trust import Trust
from overlayfs_demo.fronts.wire import Opcode
from overlayfs_demo.overlay.engine import Overlay
from overlayfs_demo.overlay.handle import Handle
from overlayfs_demo.overlay.node import DirNode, FileNode, Node
from overlayfs_demo.overlay.types import Attrs, Caller, Change

Payload = bytes | memoryview
_EMPTY = b""

# Bytes: up to here, copying a file into the kernel's cache is cheaper than being asked for it.
_SMALL = 64 * 1024


class Request:
    """One decoded request header, and its body. `room` is a buffer of this thread's for file data.

    `afterwards`, if a handler sets it, is called when the reply is on its way.
    """

    __slots__ = ("afterwards", "body", "gid", "nodeid", "opcode", "pid", "room", "uid", "unique")

    def __init__(self, header: tuple[int, ...], body: memoryview, room: memoryview) -> None:
        _, self.opcode, self.unique, self.nodeid, self.uid, self.gid, self.pid, _, _ = header
        self.body = body
        self.room = room
        self.afterwards: Callable[[], None] | None = None

    def caller(self, call: str, umask: int = 0) -> Caller:
        """The process that made the request, for the verb it used."""
        return Caller(self.uid, self.gid, self.pid, umask, call)

    def names(self, offset: int = 0) -> list[bytes]:
        """The NUL-terminated names after the fixed part of the body."""
        return bytes(self.body[offset:]).split(b"\0")[:-1]

    def name(self, offset: int = 0) -> bytes:
        """The one name after the fixed part of the body."""
        return bytes(self.body[offset:-1])


class _OpenFile:
    __slots__ = ("handle", "node")

    def __init__(self, node: FileNode, handle: Handle) -> None:
        self.node = node
        self.handle = handle


class Requests:
    """Answers the requests of one mount. Safe to use from several threads."""

    def __init__(
        self, view: View, pass_on: Callable[[], None], store: Callable[[int, memoryview], None]
    ) -> None:
        """`pass_on` is called before a request that may take long, see `kernel_front.Turn`; `store` puts the
        beginning of a file, given by its id, into the kernel's cache."""
        self._overlay: Overlay = view.overlay
        self._store = store
        self._overlay.before_wait = pass_on
        self._pass_on = pass_on
        self._always = os.O_NOATIME if view.flags & syscalls.MS_NOATIME else 0
        self._trust = Trust(view.overlay, view.timeout)
        self.nodes = NodeTable(view.overlay.root)
        self.directories = Directories(view.overlay, self.nodes, self._trust)
        self._serial = count(1)
        self._files: dict[int, _OpenFile] = {}
        self._lock = threading.Lock()
        self.handlers: dict[int, Callable[[Request], Payload | None]] = {
            opcode.value: getattr(self, opcode.name.lower())
            for opcode in Opcode
            if hasattr(self, opcode.name.lower())
        }

    def close(self) -> None:
        """Close the files that the kernel did not release (after a forced unmount)."""
        while self._files:
            _, opened = self._files.popitem()
            self._overlay.release(opened.node, opened.handle)

    def _node(self, request: Request) -> Node:
        return self.nodes.node(request.nodeid)

    def _directory(self, nodeid: int) -> DirNode:
        node = self.nodes.node(nodeid)
        if not isinstance(node, DirNode):
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return node

    def _entry(self, parent: DirNode, node: Node, attrs: Attrs) -> bytes:
        (nodeid,) = self.nodes.remember((node,))
        return wire.entry_reply(nodeid, attrs, self._trust.entry(self._trust.inside(parent), node))

    # --- find and ask ------------------------------------------------------------------------------

    def lookup(self, request: Request) -> bytes:
        parent = self._directory(request.nodeid)
        valid = self._trust.inside(parent)
        try:
            node, attrs = self._overlay.lookup(parent, request.name())
        except FileNotFoundError:
            return wire.negative_entry(valid)
        return self._entry(parent, node, attrs)

    def forget(self, request: Request) -> None:
        self.nodes.forget(request.nodeid, *wire.FORGET_IN.unpack_from(request.body))

    def batch_forget(self, request: Request) -> None:
        number, _ = wire.BATCH_FORGET_IN.unpack_from(request.body)
        start = wire.BATCH_FORGET_IN.size
        ones = request.body[start : start + number * wire.FORGET_ONE.size]
        for nodeid, lookups in wire.FORGET_ONE.iter_unpack(ones):
            self.nodes.forget(nodeid, lookups)

    def getattr(self, request: Request) -> bytes:
        node = self._node(request)
        return wire.attr_reply(self._overlay.attrs(node), self._trust.attributes(node))

    def readlink(self, request: Request) -> bytes:
        return self._overlay.readlink(self._node(request))

    def statfs(self, request: Request) -> bytes:
        return wire.statfs_reply(self._overlay.statfs())

    def getxattr(self, request: Request) -> bytes:
        (size,) = wire.GETXATTR_IN.unpack_from(request.body)
        name = os.fsdecode(request.name(wire.GETXATTR_IN.size))
        return _sized(self._overlay.xattr(self._node(request), name), size)

    def listxattr(self, request: Request) -> bytes:
        (size,) = wire.GETXATTR_IN.unpack_from(request.body)
        names = self._overlay.xattrs(self._node(request), request.caller("listxattr"))
        return _sized(b"".join(os.fsencode(name) + b"\0" for name in names), size)

    # --- change names ------------------------------------------------------------------------------

    def mknod(self, request: Request) -> bytes:
        mode, rdev, umask = wire.MKNOD_IN.unpack_from(request.body)
        name = request.name(wire.MKNOD_IN.size)
        parent = self._directory(request.nodeid)
        return self._entry(parent, *self._overlay.mknod(
            parent, name, mode, wire.decode_device(rdev), request.caller("mknod", umask)
        ))

    def mkdir(self, request: Request) -> bytes:
        mode, umask = wire.MKDIR_IN.unpack_from(request.body)
        name = request.name(wire.MKDIR_IN.size)
        parent = self._directory(request.nodeid)
        return self._entry(parent, *self._overlay.mkdir(parent, name, mode, request.caller("mkdir", umask)))

    def symlink(self, request: Request) -> bytes:
        name, target = request.names()
        parent = self._directory(request.nodeid)
        return self._entry(parent, *self._overlay.symlink(parent, name, target, request.caller("symlink")))

    def link(self, request: Request) -> bytes:
        (old,) = wire.LINK_IN.unpack_from(request.body)
        node = self.nodes.node(old)
        name = request.name(wire.LINK_IN.size)
        parent = self._directory(request.nodeid)
        return self._entry(parent, node, self._overlay.link(node, parent, name, request.caller("link")))

    def unlink(self, request: Request) -> bytes:
        self._overlay.unlink(self._directory(request.nodeid), request.name(), request.caller("unlink"))
        return _EMPTY

    def rmdir(self, request: Request) -> bytes:
        self._overlay.rmdir(self._directory(request.nodeid), request.name(), request.caller("rmdir"))
        return _EMPTY

    def rename(self, request: Request) -> bytes:
        (new_parent,) = wire.RENAME_IN.unpack_from(request.body)
        return self._move(request, new_parent, 0, wire.RENAME_IN.size)

    def rename2(self, request: Request) -> bytes:
        new_parent, flags = wire.RENAME2_IN.unpack_from(request.body)
        return self._move(request, new_parent, flags, wire.RENAME2_IN.size)

    def _move(self, request: Request, new_parent: int, flags: int, offset: int) -> bytes:
        old, new = request.names(offset)
        self._overlay.rename(
            self._directory(request.nodeid), old, self._directory(new_parent), new, flags, request.caller("rename")
        )
        return _EMPTY

    # --- change a node -----------------------------------------------------------------------------

    def setattr(self, request: Request) -> bytes:
        valid, _, size, _, atime, mtime, ansec, mnsec, mode, uid, gid = wire.SETATTR_IN.unpack_from(request.body)
        change = Change(
            mode=stat.S_IMODE(mode) if valid & wire.FATTR_MODE else None,
            uid=uid if valid & wire.FATTR_UID else None,
            gid=gid if valid & wire.FATTR_GID else None,
            size=size if valid & wire.FATTR_SIZE else None,
            atime_ns=_time(valid, wire.FATTR_ATIME, wire.FATTR_ATIME_NOW, atime, ansec),
            mtime_ns=_time(valid, wire.FATTR_MTIME, wire.FATTR_MTIME_NOW, mtime, mnsec),
            kill_privileges=bool(valid & wire.FATTR_KILL_SUIDGID),
        )
        node = self._node(request)
        attrs = self._overlay.set_attrs(node, change, request.caller(_setattr_call(valid)))
        return wire.attr_reply(attrs, self._trust.attributes(node))

    def setxattr(self, request: Request) -> bytes:
        size, flags, extra = wire.SETXATTR_IN.unpack_from(request.body)
        name, _, rest = bytes(request.body[wire.SETXATTR_IN.size :]).partition(b"\0")
        node, caller = self._node(request), request.caller("setxattr")
        self._overlay.set_xattr(node, os.fsdecode(name), rest[:size], flags, caller)
        if extra & wire.SETXATTR_ACL_KILL_SGID:
            mode = self._overlay.attrs(node).mode & ~stat.S_ISGID
            self._overlay.set_attrs(node, Change(mode=stat.S_IMODE(mode)), caller)
        return _EMPTY

    def removexattr(self, request: Request) -> bytes:
        name = os.fsdecode(request.name())
        self._overlay.remove_xattr(self._node(request), name, request.caller("removexattr"))
        return _EMPTY

    # --- files -------------------------------------------------------------------------------------

    def _opened(self, node: FileNode, handle: Handle, keep: bool) -> bytes:
        """`keep` says that the pages of the file that the kernel has are still right."""
        number = next(self._serial)
        self._files[number] = _OpenFile(node, handle)
        return wire.open_reply(number, wire.FOPEN_KEEP_CACHE if keep else 0)

    def open(self, request: Request) -> bytes:
        flags, open_flags = wire.OPEN_IN.unpack_from(request.body)
        node, caller = self._node(request), request.caller("open")
        handle = self._overlay.open(node, flags | self._always, caller)
        assert isinstance(node, FileNode)
        if open_flags & wire.OPEN_KILL_SUIDGID:
            self._overlay.set_attrs(node, Change(kill_privileges=True), caller)
        followed = self._trust.is_followed(node)
        if followed and not handle.in_upper and not open_flags & wire.OPEN_KILL_SUIDGID:
            self._store_small(request, handle)
        return self._opened(node, handle, followed or self.nodes.is_same(request.nodeid, _stamp(handle)))

    def _store_small(self, request: Request, handle: Handle) -> None:
        """Send a small file's data along with the first open: the read that follows needs no request then."""
        if self.nodes.first_store(request.nodeid):
            size = handle.read_into(request.room[: _SMALL + 1], 0)
            if 0 < size <= _SMALL:
                self._store(request.nodeid, request.room[:size])

    def create(self, request: Request) -> bytes:
        flags, mode, umask, _ = wire.CREATE_IN.unpack_from(request.body)
        name = request.name(wire.CREATE_IN.size)
        parent, caller = self._directory(request.nodeid), request.caller("create", umask)
        node: Node
        try:
            node, attrs, handle = self._overlay.create(parent, name, mode, flags, caller)
        except FileExistsError:
            if flags & os.O_EXCL:
                raise
            # Somebody else was quicker: open(2) without O_EXCL takes what is there.
            node, attrs = self._overlay.lookup(parent, name)
            handle = self._overlay.open(node, flags, caller)
        assert isinstance(node, FileNode)
        return self._entry(parent, node, attrs) + self._opened(node, handle, True)

    def read(self, request: Request) -> memoryview:
        number, offset, size, _ = wire.READ_IN.unpack_from(request.body)
        room = request.room[:size]
        return room[: self._files[number].handle.read_into(room, offset)]

    def write(self, request: Request) -> bytes:
        number, offset, size, flags = wire.WRITE_IN.unpack_from(request.body)
        start = wire.WRITE_IN.size
        opened = self._files[number]
        written = self._overlay.write(
            opened.node, opened.handle, request.body[start : start + size], offset, request.caller("write"),
            kill_privileges=bool(flags & wire.WRITE_KILL_SUIDGID),
        )
        return wire.WRITE_OUT.pack(written)

    def release(self, request: Request) -> bytes:
        number, _, _ = wire.RELEASE_IN.unpack_from(request.body)
        opened = self._files.pop(number)
        self._overlay.release(opened.node, opened.handle)
        return _EMPTY

    def fsync(self, request: Request) -> bytes:
        number, flags = wire.FSYNC_IN.unpack_from(request.body)
        handle = self._files[number].handle
        self._pass_on()
        self._overlay.sync_file(handle, bool(flags & wire.FSYNC_FDATASYNC))
        return _EMPTY

    def fallocate(self, request: Request) -> bytes:
        number, offset, length, mode = wire.FALLOCATE_IN.unpack_from(request.body)
        opened = self._files[number]
        self._pass_on()
        self._overlay.allocate(opened.node, opened.handle, mode, offset, length, request.caller("fallocate"))
        return _EMPTY

    def lseek(self, request: Request) -> bytes:
        number, offset, whence = wire.LSEEK_IN.unpack_from(request.body)
        return wire.LSEEK_OUT.pack(os.lseek(self._files[number].handle.fd, offset, whence))

    def copy_file_range(self, request: Request) -> bytes:
        from_number, from_offset, _, number, offset, length, _ = wire.COPY_FILE_RANGE_IN.unpack_from(request.body)
        target = self._files[number]
        self._pass_on()
        done = self._overlay.copy_range(
            self._files[from_number].handle, from_offset, target.node, target.handle, offset, length,
            request.caller("copy_file_range"),
        )
        return wire.WRITE_OUT.pack(done)

    def syncfs(self, request: Request) -> bytes:
        self._pass_on()
        self._overlay.sync()
        return _EMPTY

    # --- directories -------------------------------------------------------------------------------
    # OPENDIR gets ENOSYS: the kernel then reads directories by node alone, without opening them.

    def fsyncdir(self, request: Request) -> bytes:
        self._pass_on()
        self._overlay.sync_directory(self._directory(request.nodeid))
        return _EMPTY

    def readdir(self, request: Request) -> bytes:
        return self._list(request, self.directories.readdir)

    def readdirplus(self, request: Request) -> bytes:
        return self._list(request, self.directories.readdirplus)

    def _list(self, request: Request, read: Callable[[DirNode, int, int, int], Portion]) -> bytes:
        _, offset, size, _ = wire.READ_IN.unpack_from(request.body)
        directory = self._directory(request.nodeid)
        payload, is_last = read(directory, request.nodeid, offset, size)
        if is_last:
            request.afterwards = partial(self.directories.read_ahead, directory)
        return payload


def _sized(value: bytes, size: int) -> bytes:
    """An xattr reply: the value, or its size when `size` is 0. ERANGE when it does not fit."""
    if size == 0:
        return wire.XATTR_SIZE.pack(len(value))
    if len(value) > size:
        raise OSError(errno.ERANGE, os.strerror(errno.ERANGE))
    return value


def _stamp(handle: Handle) -> tuple[int, ...]:
    """What differs once somebody changed the file's data."""
    status = os.fstat(handle.fd)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _time(valid: int, flag: int, now: int, seconds: int, nanoseconds: int) -> int | None:
    if valid & now:
        return now_ns()
    return seconds * 1_000_000_000 + nanoseconds if valid & flag else None


def _setattr_call(valid: int) -> str:
    """The system call behind a SETATTR, for events."""
    for flags, call in (
        (wire.FATTR_SIZE, "truncate"),
        (wire.FATTR_MODE, "chmod"),
        (wire.FATTR_UID | wire.FATTR_GID, "chown"),
    ):
        if valid & flags:
            return call
    return "utimensat"
