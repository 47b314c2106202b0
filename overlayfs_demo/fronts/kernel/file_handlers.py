"""Handlers of the FUSE requests about open files and their data.

As in `handlers`, there is one method for each request. Where a file's opens pass through (see `io_modes`), the kernel
uses the real file and asks for no data. Elsewhere it caches the data's pages itself: it asks for what it has not
cached, and writes through. It also handles byte-range locks and flock(2) itself.
"""

from __future__ import annotations

import errno
import logging
import os
import threading

from overlayfs_demo.fronts.front import NO_READING_NOTED, View, reading_is_noted
from overlayfs_demo.fronts.keeper import Keeper
from overlayfs_demo.fronts.kernel import wire
from overlayfs_demo.fronts.kernel.cache_policy import SET_ID, Trust
from overlayfs_demo.fronts.kernel.ledger import Ledger
from overlayfs_demo.fronts.kernel.node_table import NodeTable
from overlayfs_demo.fronts.kernel.open_files import OpenFiles
from overlayfs_demo.fronts.kernel.request import Request
from overlayfs_demo.fronts.kernel.services import Services
from overlayfs_demo.linux.failure import failure
from overlayfs_demo.linux.passthrough import accepts_direct
from overlayfs_demo.overlay.engine import Overlay
from overlayfs_demo.overlay.handle import Handle
from overlayfs_demo.overlay.layer import stale
from overlayfs_demo.overlay.node import DirNode, FileNode
from overlayfs_demo.overlay.types import Attrs

_log = logging.getLogger(__name__)

# Bytes. Up to this size, copying a file into the kernel's cache is cheaper than answering a request for it.
_SMALL = 64 * 1024


class Files:
    """Answers the requests about the open files of one mount. Safe to use from several threads."""

    def __init__(
        self, view: View, nodes: NodeTable, trust: Trust, services: Services, ledger: Ledger, keeper: Keeper
    ) -> None:
        """Set up the handlers of one mount."""
        self._overlay: Overlay = view.overlay
        self._nodes = nodes
        self._services = services
        self._modes = services.io_modes
        self._trust = trust
        self._flags = view.flags
        self._always = os.O_NOATIME if view.flags & NO_READING_NOTED else 0
        self.open_files = OpenFiles(view.overlay, nodes, services.io_modes, ledger, keeper, self._always)
        self._storing = threading.Lock()

    def _given(
        self, request: Request, node: FileNode, handle: Handle, flags: int, reply: int, backing: int | None = None
    ) -> bytes:
        """Return the reply that gives out a handle, which was opened with these flags of open(2).

        It has FOPEN_* flags, and the id of the real file if the file passes.
        """
        self.wait_for_store()
        number = self.open_files.note(request, node, handle, flags, backing)
        if handle.append_only:
            # Each write must be checked. It follows that the file cannot be mapped: a changed page would arrive as a
            # write.
            reply = reply & wire.FOPEN_PASSTHROUGH | wire.FOPEN_DIRECT_IO
        return wire.open_reply(number, reply, backing or 0)

    def open(self, request: Request) -> bytes:
        flags, open_flags = wire.OPEN_IN.unpack_from(request.body)
        node, caller = self._nodes.node(request.nodeid), request.caller("open")
        kill_privileges = bool(open_flags & wire.OPEN_KILL_SUIDGID)
        handle = self._overlay.open(node, flags | self._always, caller, kill_privileges=kill_privileges)
        assert isinstance(node, FileNode)
        try:
            return self._give_out(request, node, handle, flags)
        except BaseException:
            self._overlay.files.release(node, handle)
            raise

    def _give_out(self, request: Request, node: FileNode, handle: Handle, flags: int) -> bytes:
        """Return OPEN's reply, in the mode that the node has or gets now."""
        nodeid = request.nodeid
        opened = handle.opened
        status = os.fstat(opened.fd) if handle.in_upper or self._overlay.is_read_only else None
        may_pass = status is not None and self._may_pass(handle, status.st_mode, status.st_size)
        may_pass = may_pass and not (handle.in_upper and self._overlay.files.is_append_only(node, handle))
        backing = self._backing(nodeid, node, handle, flags, may_pass)
        try:
            if backing is None:
                return self._cached(request, node, handle, flags, status)
            if self._let_write(node, handle, flags, request, status.st_mode if status else 0):
                self._services.refresh(node)
            return self._given(request, node, handle, flags, wire.FOPEN_PASSTHROUGH, backing)
        except BaseException:
            self._modes.release(nodeid, passed=backing is not None)
            raise

    def _backing(self, nodeid: int, node: FileNode, handle: Handle, flags: int, may_pass: bool) -> int | None:
        """Note an open, and return the id of the real file if it passes, see `IoModes.open`.

        Raises OSError if the file already passes, but the kernel cannot or must not use the real file for this open.
        """
        opened = handle.opened
        # The kernel opens the real file again with the caller's flags.
        fits = not flags & os.O_DIRECT or accepts_direct(opened.fd)
        backing = self._modes.open(nodeid, opened.fd, may_pass=may_pass and fits)
        if backing is None:
            return None
        # If it became append-only while it passes: the kernel would map the real file without asking anyone, and what
        # is mapped can be overwritten.
        forbidden = handle.append_only and flags & os.O_ACCMODE == os.O_RDWR
        if fits and not forbidden:
            return backing
        self._modes.release(nodeid, passed=True)
        raise failure(errno.EPERM if forbidden else errno.EINVAL, node.name)

    def _let_write(self, node: FileNode, handle: Handle, flags: int, request: Request, mode: int) -> bool:
        """Tell the engine of a handle that passes through, if the caller can write.

        Return whether the kernel must not trust the attributes it has: it does not notice that a mapping sets the
        times, and that set-id bits go. See `cache_policy` for later answers.
        """
        if not handle.writable or handle.append_only:
            return False
        # mmap(2) always needs a file that is open for reading.
        maps = flags & os.O_ACCMODE == os.O_RDWR
        self._overlay.files.let_pass(node, handle, request.caller("write"), maps=maps)
        return maps or bool(mode & SET_ID)

    def _may_pass(self, handle: Handle, mode: int, size: int) -> bool:
        """Whether the kernel may use the real file of a handle, which has this mode and size.

        A lower's file may be copied up while it is open, and the kernel would go on using the lower's; so it passes
        only in a view that never copies up, and only if it is not small, because then storing it is cheaper. While
        somebody watches, each write is to be seen. Writes to a program with set-id bits must arrive here: who may keep
        the bits is for the engine to decide.
        """
        if not handle.in_upper:
            return self._overlay.is_read_only and size > _SMALL
        return not (handle.append_only or self._overlay.events.listening or mode & SET_ID)

    def _cached(
        self, request: Request, node: FileNode, handle: Handle, flags: int, status: os.stat_result | None
    ) -> bytes:
        """Return the reply that lets the kernel ask for the data, and cache it."""
        keep = self._trust.keeps(node)
        if keep and not handle.in_upper:
            self._store_small(request, node, handle)
        # Nobody says that a mapping past us has changed the real file's pages.
        keeps_pages = not node.mapped_past and self._keeps_pages(request.nodeid, handle, flags, keep, status)
        return self._given(request, node, handle, flags, wire.FOPEN_KEEP_CACHE if keeps_pages else 0)

    def _keeps_pages(self, nodeid: int, handle: Handle, flags: int, keep: bool, status: os.stat_result | None) -> bool:
        """Return whether the kernel may read its cached pages of the file, which has this status, without asking us.

        With `keep` it is told of changes. A read that changes the access time must reach the real file.
        """
        may_be_noted = handle.in_upper and flags & os.O_ACCMODE != os.O_WRONLY and not self._always
        if keep and not may_be_noted:
            return True
        if status is None:
            status = os.fstat(handle.opened.fd)
        is_same = keep or self._nodes.is_same(nodeid, _stamp(status))
        return is_same and not (may_be_noted and reading_is_noted(self._flags, status))

    def _store_small(self, request: Request, node: FileNode, handle: Handle) -> None:
        """Send a small file's data along with the first open, so that the read that follows needs no request."""
        # To store a page, the kernel waits for the page's lock. The holder of that lock may be waiting for an answer
        # of ours (a READ, or a WRITE of mapped pages), so a thread that answers must not wait for it: a few such opens
        # would hang the mount for ever. Invariant: the kernel locks pages for a request only with an open file of this
        # node, keeps the file until the request is answered, and only then sends RELEASE, which removes the handle
        # from `node.handles`. So no page is locked that way if the only handle is that of this open, which the kernel
        # does not know of yet; and none will be during the store, because every other reply that gives out a handle
        # waits for it.
        if node.handles != [handle] or not self._nodes.first_store(request.nodeid):
            return
        # Read without the lock, because a slow layer must not keep other files from being opened.
        size = handle.read_into(request.room[: _SMALL + 1], 0)
        if not 0 < size <= _SMALL:
            return
        with self._storing:
            # A copy-up switches the handle to the upper, and the data just read may be outdated by then.
            if node.handles == [handle] and not handle.in_upper:
                self._services.store(request.nodeid, request.room[:size])

    def wait_for_store(self) -> None:
        """Wait until no file is being stored.

        Call it before a reply that lets the kernel use a handle, or that gives it a file's new size.
        """
        with self._storing:
            pass

    def create(self, request: Request) -> bytes:
        flags, mode, umask, _ = wire.CREATE_IN.unpack_from(request.body)
        name = request.name(wire.CREATE_IN.size)
        parent, caller = self._nodes.directory(request.nodeid), request.caller("create", umask)
        try:
            return self._made(request, flags, parent, *self._overlay.create(parent, name, mode, flags, caller))
        except FileExistsError:
            if flags & os.O_EXCL:
                raise
            # Another process was quicker. The kernel has not checked whether the caller may open that file, and would
            # not do so after this reply, so this error makes it look the name up again and open that file.
            raise stale(name) from None

    def created(self, request: Request) -> bytes:
        """Return CREATE's reply for a file that the process before has created. Raises OSError if it was not that one.

        Nobody has checked whether the caller may open any other file there: see `create`.
        """
        flags, _, umask, _ = wire.CREATE_IN.unpack_from(request.body)
        parent, caller = self._nodes.directory(request.nodeid), request.caller("create", umask)
        name = request.name(wire.CREATE_IN.size)
        node, attrs = self._overlay.lookup(parent, name)
        if not isinstance(node, FileNode) or not node.in_upper or attrs.size or attrs.uid != request.uid:
            raise failure(errno.EEXIST, name) if flags & os.O_EXCL else stale(name)
        try:
            handle = self._overlay.open(node, flags & ~os.O_TRUNC, caller)
        except PermissionError:
            # An ordinary user's daemon can make a file that it cannot open again. Nobody else knows of this one.
            self._overlay.unlink(parent, name, caller)
            return self.create(request)
        return self._made(request, flags, parent, node, attrs, handle)

    def tmpfile(self, request: Request) -> bytes:
        flags, mode, umask, _ = wire.CREATE_IN.unpack_from(request.body)
        parent, caller = self._nodes.directory(request.nodeid), request.caller("tmpfile", umask)
        return self._made(request, flags, parent, *self._overlay.tmpfile(parent, mode, flags, caller))

    def _made(
        self, request: Request, flags: int, parent: DirNode, node: FileNode, attrs: Attrs, handle: Handle
    ) -> bytes:
        (nodeid,) = self._nodes.remember((node,))
        try:
            backing = self._backing(nodeid, node, handle, flags, self._may_pass(handle, attrs.mode, 0))
            try:
                reply_flags = wire.FOPEN_KEEP_CACHE
                if backing is not None:
                    reply_flags = wire.FOPEN_PASSTHROUGH
                    self._let_write(node, handle, flags, request, attrs.mode)
                valid = self._trust.entry(self._trust.inside(parent), node, attrs)
                entry = wire.entry_reply(nodeid, attrs, valid)
                given = self._given(request, node, handle, flags, reply_flags, backing)
                self.open_files.keep_if_closed(node, attrs.mode)
                return entry + given
            except BaseException:
                self._modes.release(nodeid, passed=backing is not None)
                raise
        except BaseException:
            self._overlay.files.release(node, handle)
            raise

    def read(self, request: Request) -> memoryview:
        number, offset, size, _ = wire.READ_IN.unpack_from(request.body)
        room = request.room[:size]
        return room[: self.open_files[number].handle.read_into(room, offset)]

    def write(self, request: Request) -> bytes:
        number, offset, size, flags = wire.WRITE_IN.unpack_from(request.body)
        start = wire.WRITE_IN.size
        opened = self.open_files[number]
        written = self._overlay.files.write(
            opened.node,
            opened.handle,
            request.body[start : start + size],
            offset,
            request.caller("write"),
            kill_privileges=bool(flags & wire.WRITE_KILL_SUIDGID),
        )
        return wire.WRITE_OUT.pack(written)

    def release(self, request: Request) -> bytes:
        number, _, _ = wire.RELEASE_IN.unpack_from(request.body)
        self.open_files.release(number)
        return b""

    def fsync(self, request: Request) -> bytes:
        number, flags = wire.FSYNC_IN.unpack_from(request.body)
        opened = self.open_files[number]
        if self._overlay.files.syncs_slowly or self._services.any_long():
            self._services.pass_on()
        self._overlay.files.sync_file(opened.node, opened.handle, bool(flags & wire.FSYNC_FDATASYNC))
        return b""

    def fallocate(self, request: Request) -> bytes:
        number, offset, length, mode = wire.FALLOCATE_IN.unpack_from(request.body)
        opened = self.open_files[number]
        self._services.pass_on()
        self._overlay.files.allocate(opened.node, opened.handle, mode, offset, length, request.caller("fallocate"))
        return b""

    def lseek(self, request: Request) -> bytes:
        number, offset, whence = wire.LSEEK_IN.unpack_from(request.body)
        opened = self.open_files[number].handle.opened
        return wire.LSEEK_OUT.pack(os.lseek(opened.fd, offset, whence))

    def copy_file_range(self, request: Request) -> bytes:
        return wire.WRITE_OUT.pack(self._copy_range(request))

    def copy_file_range_64(self, request: Request) -> bytes:
        return wire.COPY_FILE_RANGE_OUT.pack(self._copy_range(request))

    def _copy_range(self, request: Request) -> int:
        from_number, from_offset, _, number, offset, length, _ = wire.COPY_FILE_RANGE_IN.unpack_from(request.body)
        target = self.open_files[number]
        self._services.pass_on()
        return self._overlay.files.copy_range(
            self.open_files[from_number].handle,
            from_offset,
            target.node,
            target.handle,
            offset,
            length,
            request.caller("copy_file_range"),
        )

    def syncfs(self, request: Request) -> bytes:
        self._services.pass_on()
        self._overlay.files.sync()
        return b""


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    """Return a value that differs once somebody has changed the file's data."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
