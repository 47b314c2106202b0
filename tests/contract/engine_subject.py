"""How is the engine held to the contract, with no mount in between?"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable
from typing import Any

from overlayfs_demo.overlay.factory import open_overlay
from overlayfs_demo.overlay.handle import Handle
from overlayfs_demo.overlay.node import DirNode, FileNode, Node
from overlayfs_demo.overlay.types import AttrChange, Attrs, Caller
from tests.contract.subjects import Directory, File, Layers, Name, Subject


class Engine(Subject):
    """The verbs, called directly. What the kernel does before it asks a file system (symbolic links in a
    path, permissions, O_EXCL, ENOTDIR) is done here as far as the contract needs it."""

    kind = "engine"

    def __init__(self, layers: Layers) -> None:
        super().__init__(layers)
        self.caller = Caller(os.geteuid(), os.getegid(), os.getpid(), 0o022, "test")

    def start(self) -> None:
        self.overlay = open_overlay(self.layers.stack())
        self._umask = os.umask(0)  # As in a daemon: the callers' umasks count.

    def stop(self) -> None:
        self.overlay.close()
        os.umask(self._umask)

    def node(self, path: Name) -> Node:
        return self.overlay.walk(os.fsencode(path))

    def _place(self, path: Name) -> tuple[DirNode, bytes]:
        above, name = os.path.split(os.fsencode(path))
        return self._directory(above), name

    def _directory(self, path: Name) -> DirNode:
        node = self.node(path)
        if not isinstance(node, DirNode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return node

    def stat(self, path: Name) -> Attrs:
        return self.overlay.attrs(self.node(path))

    def listing(self, path: Name = "") -> list[tuple[bytes, int]]:
        return [(entry.name, entry.ino) for entry in self.overlay.entries(self._directory(path))]

    def open(self, path: Name, flags: int = os.O_RDONLY, mode: int = 0o644) -> File:
        parent, name = self._place(path)
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            return _Opened(self, *self.overlay.tmpfile(self._directory(path), mode, flags, self.caller))
        if flags & os.O_CREAT:
            try:
                return _Opened(self, *self.overlay.create(parent, name, mode, flags, self.caller))
            except FileExistsError:
                if flags & os.O_EXCL:
                    raise
        found, attrs = self.overlay.lookup(parent, name)
        handle = self.overlay.open(found, flags, self.caller)
        assert isinstance(found, FileNode)
        return _Opened(self, found, attrs, handle)

    def hold(self, path: Name) -> Directory:
        return _Held(self, self._directory(path))

    def mkdir(self, path: Name, mode: int = 0o755) -> None:
        self.overlay.mkdir(*self._place(path), mode, self.caller)

    def mknod(self, path: Name, mode: int, device: int = 0) -> None:
        self.overlay.mknod(*self._place(path), mode, device, self.caller)

    def symlink(self, target: Name, path: Name) -> None:
        self.overlay.symlink(*self._place(path), os.fsencode(target), self.caller)

    def readlink(self, path: Name) -> bytes:
        return self.overlay.readlink(self.node(path))

    def link(self, old: Name, new: Name) -> None:
        self.overlay.link(self.node(old), *self._place(new), self.caller)

    def unlink(self, path: Name) -> None:
        self.overlay.unlink(*self._place(path), self.caller)

    def rmdir(self, path: Name) -> None:
        self.overlay.rmdir(*self._place(path), self.caller)

    def rename(self, old: Name, new: Name, flags: int = 0) -> None:
        self.overlay.rename(*self._place(old), *self._place(new), flags, self.caller)

    def truncate(self, path: Name, size: int) -> None:
        self._change(path, size=size, by_path=True)

    def chmod(self, path: Name, mode: int) -> None:
        self._change(path, mode=mode)

    def chown(self, path: Name, uid: int, gid: int) -> None:
        # The kernel turns chown(2) of a file with set-id bits into one request that drops them, too.
        status = self.stat(path)
        kill = not stat.S_ISDIR(status.mode)
        self._change(path, uid=uid, gid=gid, kill_privileges=kill)

    def utime(self, path: Name, atime_ns: int, mtime_ns: int) -> None:
        self._change(path, atime_ns=atime_ns, mtime_ns=mtime_ns)

    def _change(self, path: Name, **what: Any) -> None:
        self.overlay.set_attrs(self.node(path), AttrChange(**what), self.caller)

    def set_xattr(self, path: Name, name: str, value: bytes, flags: int = 0) -> None:
        self.overlay.set_xattr(self.node(path), name, value, flags, self.caller)

    def xattr(self, path: Name, name: str) -> bytes:
        return self.overlay.xattr(self.node(path), name)

    def xattrs(self, path: Name) -> list[str]:
        return sorted(self.overlay.xattrs(self.node(path), self.caller))

    def remove_xattr(self, path: Name, name: str) -> None:
        self.overlay.remove_xattr(self.node(path), name, self.caller)

    def statvfs(self) -> os.statvfs_result:
        return self.overlay.statfs()

    def run_as(self, uid: int, umask: int, action: Callable[[], Any]) -> None:
        before = self.caller
        self.caller = Caller(uid, uid, os.getpid(), umask, "test")
        try:
            action()
        finally:
            self.caller = before


class EngineWithTables(Engine):
    """The same with a table of the lowers' names for each directory that is merged from several, see `lower_names`."""

    def start(self) -> None:
        super().start()
        assert self.overlay.external_changes.start()

    def node(self, path: Name) -> Node:
        node: Node = self.overlay.root
        for name in os.fsencode(path).split(b"/"):
            self._read(node)
            if name:
                if not isinstance(node, DirNode):
                    raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
                node, _ = self.overlay.lookup(node, name)
        self._read(node)
        return node

    def _read(self, node: Node) -> None:
        """Make the table of a directory, as a front does whose caller lists it."""
        if isinstance(node, DirNode) and len(node.lowers) > 1:
            with contextlib.suppress(OSError):
                self.overlay.external_changes.watch(node)
                self.overlay.names(node, quietly=True)


class _Opened:
    def __init__(self, subject: Engine, node: FileNode, _attrs: Attrs, handle: Handle) -> None:
        self._subject = subject
        self._overlay = subject.overlay
        self._node = node
        self._handle = handle

    def read(self, size: int = 1 << 20, offset: int = 0) -> bytes:
        buffer = memoryview(bytearray(size))
        return bytes(buffer[: self._handle.read_into(buffer, offset)])

    def write(self, data: bytes, offset: int = 0) -> int:
        return self._overlay.files.write(self._node, self._handle, data, offset, self._subject.caller)

    def stat(self) -> Attrs:
        return self._overlay.attrs(self._node)

    def chmod(self, mode: int) -> None:
        self._overlay.set_attrs(self._node, AttrChange(mode=mode), self._subject.caller)

    def allocate(self, mode: int, offset: int, length: int) -> None:
        self._overlay.files.allocate(self._node, self._handle, mode, offset, length, self._subject.caller)

    def seek(self, offset: int, whence: int) -> int:
        return os.lseek(self._handle.opened.fd, offset, whence)

    def copy_to(self, target: _Opened, length: int, offset: int = 0, target_offset: int = 0) -> int:
        to, caller = target._handle, self._subject.caller
        return self._overlay.files.copy_range(self._handle, offset, target._node, to, target_offset, length, caller)

    def link(self, path: Name) -> None:
        self._overlay.link(self._node, *self._subject._place(path), self._subject.caller)

    def close(self) -> None:
        self._overlay.files.release(self._node, self._handle)


class _Held:
    def __init__(self, subject: Engine, node: DirNode) -> None:
        self._subject = subject
        self._node = node

    def names(self) -> list[bytes]:
        return sorted(entry.name for entry in self._subject.overlay.entries(self._node))

    def create(self, name: Name, data: bytes) -> None:
        overlay, caller = self._subject.overlay, self._subject.caller
        node, _, handle = overlay.create(self._node, os.fsencode(name), 0o644, os.O_WRONLY, caller)
        overlay.files.write(node, handle, data, 0, caller)
        overlay.files.release(node, handle)

    def parent_ino(self) -> int:
        assert self._node.parent is not None
        return self._node.parent.ino

    def close(self) -> None:
        pass
