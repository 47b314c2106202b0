"""A stand-in for the kernel: a test sends requests to a session one by one, and looks at what comes back.

The device is a socket that keeps messages apart, as /dev/fuse does.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import NamedTuple

import pytest

from overlayfs_demo.fronts.front import View
from overlayfs_demo.fronts.kernel import wire
from overlayfs_demo.fronts.kernel.session import Session
from overlayfs_demo.fronts.kernel.wire import Opcode
from tests.conftest import PATIENCE
from tests.contract.engine_subject import Engine

# Seconds. So long a timeout says that nobody changes the layers: what the kernel caches stays right.
_AT_REST = 86400.0
_ALL_FEATURES = 0xFFFFFFFF & ~wire.INIT_EXT
# What the number of an INTERRUPT differs in from that of its request: FUSE_INT_REQ_BIT in fs/fuse/dev.c.
_INTERRUPT_BIT = 1
_INIT = struct.Struct("=4I")


class Reply(NamedTuple):
    """What came back for a request, or a notice. `code` is the errno, 0 for success; or the kind of the notice."""

    code: int
    body: bytes


class FakeKernel:
    """Asks, and keeps what comes back in `replies` by request, and in `notices`."""

    def __init__(self, end: socket.socket, session: Session) -> None:
        self.session = session
        self.replies: dict[int, Reply] = {}
        self.notices: list[Reply] = []
        self.interrupted: set[int] = set()
        self._end = end
        self._numbers = count(2, 2)

    def send(self, opcode: Opcode, nodeid: int, body: bytes = b"") -> int:
        """Send a request: its number."""
        unique = next(self._numbers)
        self._end.send(request(opcode, unique, nodeid, body))
        return unique

    def interrupt(self, unique: int) -> None:
        """Say that the caller of a request got a signal."""
        self.interrupted.add(unique)
        self._end.send(request(Opcode.INTERRUPT, unique | _INTERRUPT_BIT, 0, wire.INTERRUPT_IN.pack(unique)))

    def receive(self, seconds: float = PATIENCE) -> bool:
        """Take one message; False if none comes within that time."""
        self._end.settimeout(seconds)
        try:
            message = self._end.recv(1 << 20)
        except TimeoutError:
            return False
        size, code, unique = wire.REPLY.unpack_from(message)
        assert size == len(message)
        reply = Reply(abs(code), message[wire.REPLY.size :])
        if unique:
            # To a late answer the kernel says ENOENT.
            assert unique not in self.replies or unique in self.interrupted, "answered twice"
            self.replies.setdefault(unique, reply)
        else:
            self.notices.append(reply)
        return True

    def reply(self, unique: int) -> Reply:
        """The reply to a request, which must come."""
        deadline = time.monotonic() + PATIENCE
        while unique not in self.replies:
            assert self.receive(), "no answer"
            assert time.monotonic() < deadline, "no answer"
        return self.replies[unique]

    def ask(self, opcode: Opcode, nodeid: int, body: bytes = b"") -> bytes:
        """Send a request that must succeed: what the reply says."""
        code, said = self.reply(self.send(opcode, nodeid, body))
        assert code == 0, os.strerror(code)
        return said

    def lookup(self, name: str) -> int:
        """The id of a node in the root."""
        return int(struct.unpack_from("=Q", self.ask(Opcode.LOOKUP, wire.ROOT_ID, name.encode() + b"\0"))[0])

    def send_open(self, nodeid: int, flags: int) -> int:
        """Ask for the file to be opened: the request's number."""
        return self.send(Opcode.OPEN, nodeid, wire.OPEN_IN.pack(flags, 0))

    def open(self, nodeid: int, flags: int = os.O_RDONLY) -> int:
        """Open a file: the number of its handle."""
        code, said = self.reply(self.send_open(nodeid, flags))
        assert code == 0, os.strerror(code)
        return int(struct.unpack_from("=Q", said)[0])

    def release(self, nodeid: int, handle: int) -> None:
        """Close a file."""
        self.ask(Opcode.RELEASE, nodeid, wire.RELEASE_IN.pack(handle, 0, 0))


def request(opcode: Opcode, unique: int, nodeid: int, body: bytes) -> bytes:
    """A request by root."""
    size = wire.HEADER.size + len(body)
    return wire.HEADER.pack(size, opcode, unique, nodeid, 0, 0, os.getpid(), 0, 0) + body


@contextmanager
def serving(view: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKernel]:
    """A session of the kernel front that shows `view` to a stand-in for the kernel."""
    readv = os.readv

    def read_or_unmounted(fd: int, buffers: list[bytearray]) -> int:
        size = readv(fd, buffers)
        if not size:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        return size

    monkeypatch.setattr(os, "readv", read_or_unmounted)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        served = Session(theirs.fileno(), View(view.overlay, b"/nowhere", Counter(), timeout=_AT_REST))
        ours.send(request(Opcode.INIT, 1, 0, _INIT.pack(wire.MAJOR, wire.MINOR, 0, _ALL_FEATURES)))
        served.start()
        kernel = FakeKernel(ours, served)
        assert kernel.reply(1).code == 0
        try:
            yield kernel
        finally:
            ours.shutdown(socket.SHUT_WR)
            served.wait()
            served.close()
