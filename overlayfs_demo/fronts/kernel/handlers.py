"""Handlers of the FUSE requests, except those about file data, which are in `file_handlers`.

There is one method for each request: it decodes the request, calls a verb of the engine, and encodes the reply. It
returns the reply's payload, or None for a request that gets no reply, and raises OSError for a request that fails.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable
from functools import partial

from overlayfs_demo.fronts.front import View, now_ns
from overlayfs_demo.fronts.keeper import Keeper
from overlayfs_demo.fronts.kernel import wire
from overlayfs_demo.fronts.kernel.cache_policy import Trust
from overlayfs_demo.fronts.kernel.file_handlers import Files
from overlayfs_demo.fronts.kernel.ledger import Ledger
from overlayfs_demo.fronts.kernel.node_table import NodeTable
from overlayfs_demo.fronts.kernel.readdir import Directories, Portion
from overlayfs_demo.fronts.kernel.request import Payload, Request
from overlayfs_demo.fronts.kernel.services import Services
from overlayfs_demo.fronts.kernel.wire import Opcode
from overlayfs_demo.linux import mounting
from overlayfs_demo.linux.failure import failure
from overlayfs_demo.overlay import acl, inode_flags
from overlayfs_demo.overlay.engine import Overlay
from overlayfs_demo.overlay.node import DirNode, Node
from overlayfs_demo.overlay.types import AttrChange, Attrs

_EMPTY = b""

_TOUCH = wire.FATTR_ATIME | wire.FATTR_MTIME | wire.FATTR_ATIME_NOW | wire.FATTR_MTIME_NOW
_CHANGES = _TOUCH | wire.FATTR_MODE | wire.FATTR_UID | wire.FATTR_GID | wire.FATTR_SIZE


class Requests:
    """Answers the requests of one mount. Safe to use from several threads."""

    def __init__(self, view: View, services: Services, ledger: Ledger, keeper: Keeper) -> None:
        """Set up the handlers of one mount, which go on where the ledger ends."""
        self._overlay: Overlay = view.overlay
        self._services = services
        self._overlay.hooks.before_copy = services.pass_on
        self._overlay.hooks.before_wait = services.postpone
        self._overlay.hooks.changed = services.refresh
        strict = bool(view.flags & mounting.MS_STRICTATIME)
        self._trust = trust = Trust(view.overlay, view.timeout, notes_all_reading=strict)
        self._ledger = ledger
        self.nodes = NodeTable(view.overlay.root, view.overlay.prune, ledger, view.overlay.lookup)
        self.directories = Directories(view.overlay, self.nodes, trust)
        self.files = Files(view, self.nodes, trust, services, ledger, keeper)
        self._overlay.hooks.moved = self.nodes.moved
        self._overlay.hooks.renumbered = self.nodes.renumbered
        self._overlay.hooks.losing_name = self.files.open_files.keep
        self._overlay.hooks.lost_name = self._lost_name
        self.handlers: dict[int, Callable[[Request], Payload | None]] = {
            opcode.value: getattr(owner, opcode.name.lower())
            for opcode in Opcode
            for owner in (self, self.files)
            if hasattr(owner, opcode.name.lower())
        }
        if trust.keeps_listings:
            # OPENDIR then gets ENOSYS, and the kernel opens directories without us and caches their listings.
            del self.handlers[Opcode.OPENDIR]

    def close(self) -> None:
        """Release the files that the kernel did not release (after a forced unmount)."""
        self.files.open_files.close()

    def _lost_name(self, node: Node) -> None:
        # Once more, for a file that was being opened: its thread sees that the node is gone, or we see the handle.
        self.files.open_files.keep(node)
        self.nodes.lost_name(node)

    def _node(self, request: Request) -> Node:
        return self.nodes.node(request.nodeid)

    def _entry(self, parent: DirNode, node: Node, attrs: Attrs) -> bytes:
        (nodeid,) = self.nodes.remember((node,))
        return wire.entry_reply(nodeid, attrs, self._trust.entry(self._trust.inside(parent), node, attrs))

    # --- find and ask ------------------------------------------------------------------------------

    def lookup(self, request: Request) -> bytes:
        parent = self.nodes.directory(request.nodeid)
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
        items = request.body[start : start + number * wire.FORGET_ONE.size]
        for nodeid, lookups in wire.FORGET_ONE.iter_unpack(items):
            self.nodes.forget(nodeid, lookups)

    def getattr(self, request: Request) -> bytes:
        node = self._node(request)
        attrs = self._overlay.attrs(node)
        return wire.attr_reply(attrs, self._trust.attributes(node, attrs))

    def statx(self, request: Request) -> bytes:
        """Answer STATX, which the kernel sends if somebody asks for the time of birth."""
        node = self._node(request)
        attrs, birth = self._overlay.attrs(node), self._overlay.birth_time(node)
        return wire.statx_reply(attrs, birth, self._trust.attributes(node, attrs))

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

    def ino_of(self, parent: DirNode, name: bytes) -> int:
        """Return the inode number of what has a name now. Raises OSError like `Overlay.lookup`.

        Its node then has its id, so that the ledger learns where it goes.
        """
        node = parent.children.get(name) or self._overlay.lookup(parent, name)[0]
        self.nodes.meet_again([node])
        return node.ino

    def found(self, parent: DirNode, name: bytes) -> bytes:
        """Return the reply about a name that must be there. Raises OSError like `Overlay.lookup`."""
        return self._entry(parent, *self._overlay.lookup(parent, name))

    def meet(self, parent: DirNode, name: bytes) -> None:
        """Note where a node is that the process before may have moved, if anything has this name."""
        with contextlib.suppress(FileNotFoundError):
            self.nodes.meet(self._overlay.lookup(parent, name)[0])

    # --- change names ------------------------------------------------------------------------------

    def mknod(self, request: Request) -> bytes:
        mode, rdev, umask = wire.MKNOD_IN.unpack_from(request.body)
        name = request.name(wire.MKNOD_IN.size)
        parent = self.nodes.directory(request.nodeid)
        return self._entry(
            parent, *self._overlay.mknod(parent, name, mode, wire.decode_device(rdev), request.caller("mknod", umask))
        )

    def mkdir(self, request: Request) -> bytes:
        mode, umask = wire.MKDIR_IN.unpack_from(request.body)
        name = request.name(wire.MKDIR_IN.size)
        parent = self.nodes.directory(request.nodeid)
        return self._entry(parent, *self._overlay.mkdir(parent, name, mode, request.caller("mkdir", umask)))

    def symlink(self, request: Request) -> bytes:
        name, target = request.names()
        parent = self.nodes.directory(request.nodeid)
        return self._entry(parent, *self._overlay.symlink(parent, name, target, request.caller("symlink")))

    def link(self, request: Request) -> bytes:
        (old,) = wire.LINK_IN.unpack_from(request.body)
        node = self.nodes.node(old)
        name = request.name(wire.LINK_IN.size)
        parent = self.nodes.directory(request.nodeid)
        return self._entry(parent, node, self._overlay.link(node, parent, name, request.caller("link")))

    def unlink(self, request: Request) -> bytes:
        self._overlay.unlink(self.nodes.directory(request.nodeid), request.name(), request.caller("unlink"))
        return _EMPTY

    def rmdir(self, request: Request) -> bytes:
        self._overlay.rmdir(self.nodes.directory(request.nodeid), request.name(), request.caller("rmdir"))
        return _EMPTY

    def rename(self, request: Request) -> bytes:
        (new_parent,) = wire.RENAME_IN.unpack_from(request.body)
        return self._move(request, new_parent, 0, wire.RENAME_IN.size)

    def rename2(self, request: Request) -> bytes:
        new_parent, flags = wire.RENAME2_IN.unpack_from(request.body)
        return self._move(request, new_parent, flags, wire.RENAME2_IN.size)

    def _move(self, request: Request, new_parent: int, flags: int, offset: int) -> bytes:
        old, new = request.names(offset)
        above_old, above_new = self.nodes.directory(request.nodeid), self.nodes.directory(new_parent)
        self._ledger.intend(request.unique, self.ino_of(above_old, old))
        if not self.nodes.all_met:
            with contextlib.suppress(FileNotFoundError):
                self.ino_of(above_new, new)
        self._overlay.rename(above_old, old, above_new, new, flags, request.caller("rename"))
        return _EMPTY

    # --- change a node -----------------------------------------------------------------------------

    def setattr(self, request: Request) -> bytes:
        valid, _, size, _, atime, mtime, ansec, mnsec, mode, uid, gid = wire.SETATTR_IN.unpack_from(request.body)
        change = AttrChange(
            mode=stat.S_IMODE(mode) if valid & wire.FATTR_MODE else None,
            uid=uid if valid & wire.FATTR_UID else None,
            gid=gid if valid & wire.FATTR_GID else None,
            size=size if valid & wire.FATTR_SIZE else None,
            atime_ns=_time(valid, wire.FATTR_ATIME, wire.FATTR_ATIME_NOW, atime, ansec),
            mtime_ns=_time(valid, wire.FATTR_MTIME, wire.FATTR_MTIME_NOW, mtime, mnsec),
            kill_privileges=bool(valid & wire.FATTR_KILL_SUIDGID),
            by_path=not valid & wire.FATTR_FH,
            only_touches=valid & _CHANGES == _TOUCH,
        )
        node = self._node(request)
        if change.mode is not None:
            self.files.open_files.keep_if_closed(node, change.mode)
        attrs = self._overlay.set_attrs(node, change, request.caller(_setattr_call(valid)))
        if change.size is not None:
            self.files.wait_for_store()
        return wire.attr_reply(attrs, self._trust.attributes(node, attrs))

    def setxattr(self, request: Request) -> bytes:
        size, flags, extra = wire.SETXATTR_IN.unpack_from(request.body)
        name, _, rest = bytes(request.body[wire.SETXATTR_IN.size :]).partition(b"\0")
        node, caller = self._node(request), request.caller("setxattr")
        self._overlay.set_xattr(node, os.fsdecode(name), rest[:size], flags, caller)
        # The kernel also sends this flag with a default ACL, which does not affect the directory's own mode.
        if extra & wire.SETXATTR_ACL_KILL_SGID and name == acl.ACCESS.encode():
            mode = self._overlay.attrs(node).mode & ~stat.S_ISGID
            self._overlay.set_attrs(node, AttrChange(mode=stat.S_IMODE(mode)), caller)
        return _EMPTY

    def removexattr(self, request: Request) -> bytes:
        name = os.fsdecode(request.name())
        self._overlay.remove_xattr(self._node(request), name, request.caller("removexattr"))
        return _EMPTY

    def ioctl(self, request: Request) -> bytes:
        """Get or set inode flags. As on the kernel's own overlay, other ioctls get ENOTTY."""
        _, _, command, _, in_size, out_size = wire.IOCTL_IN.unpack_from(request.body)
        node = self._node(request)
        for form in (inode_flags.PLAIN, inode_flags.EXTENDED):
            if command == form.get:
                value = self._overlay.get_flags(node, form)
                return wire.IOCTL_OUT.pack(0) + value.ljust(out_size, b"\0")[:out_size]
            if command == form.set and in_size >= form.size:
                start = wire.IOCTL_IN.size
                value = bytes(request.body[start : start + form.size])
                self._overlay.set_flags(node, form, value, request.caller("chattr"))
                return wire.IOCTL_OUT.pack(0)
        raise failure(errno.ENOTTY)

    # --- directories -------------------------------------------------------------------------------
    # The node alone is enough to read a directory, so there is nothing to open and release.

    def opendir(self, _request: Request) -> bytes:
        return wire.open_reply(0, 0)

    def releasedir(self, _request: Request) -> bytes:
        return _EMPTY

    def fsyncdir(self, request: Request) -> bytes:
        if self._overlay.files.syncs_slowly or self._services.any_long():
            self._services.pass_on()
        self._overlay.files.sync_directory(self.nodes.directory(request.nodeid))
        return _EMPTY

    def readdir(self, request: Request) -> bytes:
        return self._list(request, self.directories.readdir)

    def readdirplus(self, request: Request) -> bytes:
        return self._list(request, self.directories.readdirplus)

    def _list(self, request: Request, read: Callable[[DirNode, int, int, int], Portion]) -> bytes:
        _, offset, size, _ = wire.READ_IN.unpack_from(request.body)
        directory = self.nodes.directory(request.nodeid)
        payload, is_last = read(directory, request.nodeid, offset, size)
        if self._trust.keeps_listings and not self._trust.keeps(directory):
            self._services.distrust(request.nodeid)
        if is_last:
            request.afterwards = partial(self.directories.read_ahead, directory)
        return payload


def _sized(value: bytes, size: int) -> bytes:
    """Return an xattr reply: the value, or its size if `size` is 0. Raises OSError (ERANGE) if it does not fit."""
    if size == 0:
        return wire.XATTR_SIZE.pack(len(value))
    if len(value) > size:
        raise failure(errno.ERANGE)
    return value


def _time(valid: int, flag: int, now: int, seconds: int, nanoseconds: int) -> int | None:
    if valid & now:
        return now_ns()
    return seconds * 1_000_000_000 + nanoseconds if valid & flag else None


def _setattr_call(valid: int) -> str:
    """Return the name of the system call behind a SETATTR, for events."""
    for flags, call in (
        (wire.FATTR_SIZE, "truncate"),
        (wire.FATTR_MODE, "chmod"),
        (wire.FATTR_UID | wire.FATTR_GID, "chown"),
    ):
        if valid & flags:
            return call
    return "utimensat"
