"""Answers to requests that another process read before it died.

The kernel sends them again (FUSE_NOTIFY_RESEND). That process may not have begun, or may have done everything but
answer; the engine makes sure that it did nothing by half. Most requests can simply be carried out once more. The others
would now fail because they were carried out, and such a failure is turned into the answer that was never sent. This
rests on a rule of the kernel: while a request about a name is unanswered, it sends no other one about that name, and it
has made sure before that the name existed, or did not.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable

from overlayfs_demo.fronts.kernel import wire
from overlayfs_demo.fronts.kernel.handlers import Requests
from overlayfs_demo.fronts.kernel.ledger import Ledger
from overlayfs_demo.fronts.kernel.request import Payload, Request
from overlayfs_demo.fronts.kernel.wire import Opcode
from overlayfs_demo.linux.failure import failure
from overlayfs_demo.overlay.engine import Overlay
from overlayfs_demo.overlay.node import DirNode

# A request that so many processes did not survive is not tried again.
_MOST_ATTEMPTS = 8

_Handler = Callable[[Request], Payload | None]


class Resent:
    """Answers the requests that a process before has read."""

    def __init__(self, requests: Requests, overlay: Overlay, ledger: Ledger) -> None:
        self._requests = requests
        self._overlay = overlay
        self._ledger = ledger
        self._special: dict[int, Callable[[Request, _Handler], Payload | None]] = {
            Opcode.MKDIR: self._make,
            Opcode.MKNOD: self._make,
            Opcode.SYMLINK: self._make,
            Opcode.LINK: self._link,
            Opcode.CREATE: self._create,
            Opcode.OPEN: self._open,
            Opcode.TMPFILE: self._open,
            Opcode.UNLINK: self._remove,
            Opcode.RMDIR: self._remove,
            Opcode.RENAME: self._rename,
            Opcode.RENAME2: self._rename,
            Opcode.SETXATTR: self._set_xattr,
            Opcode.REMOVEXATTR: self._remove_xattr,
            Opcode.RELEASE: self._release,
        }

    def answer(self, request: Request) -> Payload | None:
        """Carry a request out if it was not, and return the reply. Raises OSError, and what the handlers raise.

        EIO if it has ended too many processes.
        """
        if self._ledger.attempt(request.unique) > _MOST_ATTEMPTS:
            raise failure(errno.EIO)
        handler = self._requests.handlers[request.opcode]
        special = self._special.get(request.opcode)
        return handler(request) if special is None else special(request, handler)

    def _make(self, request: Request, handler: _Handler) -> Payload | None:
        try:
            return handler(request)
        except FileExistsError:
            name, kind = _made(request)
            parent = self._requests.nodes.directory(request.nodeid)
            if self._overlay.lookup(parent, name)[0].kind != kind:
                raise
            return self._requests.found(parent, name)

    def _link(self, request: Request, handler: _Handler) -> Payload | None:
        try:
            return handler(request)
        except FileExistsError:
            (old,) = wire.LINK_IN.unpack_from(request.body)
            parent, name = self._requests.nodes.directory(request.nodeid), request.name(wire.LINK_IN.size)
            if self._overlay.lookup(parent, name)[0] is not self._requests.nodes.node(old):
                raise
            return self._requests.found(parent, name)

    def _create(self, request: Request, handler: _Handler) -> Payload | None:
        self._requests.files.open_files.release_opens_of(request)
        try:
            return handler(request)
        except OSError as error:
            # ESTALE: without O_EXCL, `create` leaves a file that exists to the kernel.
            if error.errno not in (errno.EEXIST, errno.ESTALE):
                raise
            return self._requests.files.created(request)

    def _open(self, request: Request, handler: _Handler) -> Payload | None:
        self._requests.files.open_files.release_opens_of(request)
        return handler(request)

    @staticmethod
    def _remove(request: Request, handler: _Handler) -> Payload | None:
        try:
            return handler(request)
        except FileNotFoundError:
            return b""

    def _rename(self, request: Request, handler: _Handler) -> Payload | None:
        intended = self._ledger.intended(request.unique)
        if intended is not None:
            parent = self._requests.nodes.directory(request.nodeid)
            fixed = wire.RENAME_IN if request.opcode == Opcode.RENAME else wire.RENAME2_IN
            new_parent = self._requests.nodes.directory(fixed.unpack_from(request.body)[0])
            old, new = request.names(fixed.size)
            if self._ino(parent, old) != intended:
                self._requests.meet(parent, old)
                self._requests.meet(new_parent, new)
                return b""
        return handler(request)

    def _ino(self, parent: DirNode, name: bytes) -> int | None:
        try:
            return self._requests.ino_of(parent, name)
        except FileNotFoundError:
            return None

    def _set_xattr(self, request: Request, handler: _Handler) -> Payload | None:
        try:
            return handler(request)
        except FileExistsError:  # With XATTR_CREATE.
            size, _, _ = wire.SETXATTR_IN.unpack_from(request.body)
            name, _, rest = bytes(request.body[wire.SETXATTR_IN.size :]).partition(b"\0")
            if self._overlay.xattr(self._requests.nodes.node(request.nodeid), os.fsdecode(name)) != rest[:size]:
                raise
            return b""

    @staticmethod
    def _remove_xattr(request: Request, handler: _Handler) -> Payload | None:
        try:
            return handler(request)
        except OSError as error:
            if error.errno != errno.ENODATA:
                raise
            return b""

    @staticmethod
    def _release(request: Request, handler: _Handler) -> Payload | None:
        try:
            return handler(request)
        except KeyError:
            return b""


def _made(request: Request) -> tuple[bytes, int]:
    """Return the name and the S_IFMT kind of what a request makes."""
    if request.opcode == Opcode.SYMLINK:
        return request.names()[0], stat.S_IFLNK
    if request.opcode == Opcode.MKDIR:
        return request.name(wire.MKDIR_IN.size), stat.S_IFDIR
    mode, _, _ = wire.MKNOD_IN.unpack_from(request.body)
    return request.name(wire.MKNOD_IN.size), stat.S_IFMT(mode)
