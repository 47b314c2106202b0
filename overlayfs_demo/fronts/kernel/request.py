"""The parts that every FUSE request has in common."""

from __future__ import annotations

from collections.abc import Callable

from overlayfs_demo.fronts.kernel.ledger import RESENT
from overlayfs_demo.overlay.types import Caller

# The body of a reply, which follows the reply's header.
Payload = bytes | memoryview


class Request:
    """A request's decoded header and its body. `room` is this thread's buffer for file data.

    A handler may set `afterwards`. It is called after the reply was sent, unless all places for long requests are
    taken.
    """

    __slots__ = ("afterwards", "body", "gid", "nodeid", "opcode", "pid", "room", "uid", "unique")

    def __init__(self, header: tuple[int, ...], body: memoryview, room: memoryview) -> None:
        _, self.opcode, self.unique, self.nodeid, self.uid, self.gid, self.pid, _, _ = header
        self.body = body
        self.room = room
        self.afterwards: Callable[[], None] | None = None

    @property
    def is_resent(self) -> bool:
        """Whether another process has read the request before, and may have carried it out."""
        return self.unique >= RESENT

    def own_body(self) -> None:
        """Copy the body out of the buffer of the thread that read it."""
        self.body = memoryview(bytes(self.body))

    def caller(self, call: str, umask: int = 0) -> Caller:
        """Return the process that made the request, with the system call it used."""
        return Caller(self.uid, self.gid, self.pid, umask, call)

    def names(self, offset: int = 0) -> list[bytes]:
        """Return the NUL-terminated names after the first `offset` bytes of the body, its fixed part."""
        return bytes(self.body[offset:]).split(b"\0")[:-1]

    def name(self, offset: int = 0) -> bytes:
        """Return the only name after the first `offset` bytes of the body, its fixed part."""
        return bytes(self.body[offset:-1])
