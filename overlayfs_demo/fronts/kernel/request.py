"""What does every FUSE request carry, whatever it asks for?"""

from __future__ import annotations

from collections.abc import Callable

from overlayfs_demo.overlay.types import Caller

# What a request is answered with, behind the reply's header.
Payload = bytes | memoryview


class Request:
    """One decoded request header, and its body. `room` is a buffer of this thread's for file data.

    `afterwards`, if a handler sets it, is called when the reply is on its way, unless too much else is going on.
    """

    __slots__ = ("afterwards", "body", "gid", "nodeid", "opcode", "pid", "room", "uid", "unique")

    def __init__(self, header: tuple[int, ...], body: memoryview, room: memoryview) -> None:
        _, self.opcode, self.unique, self.nodeid, self.uid, self.gid, self.pid, _, _ = header
        self.body = body
        self.room = room
        self.afterwards: Callable[[], None] | None = None

    def own_body(self) -> None:
        """Copy the body out of the buffer of the thread that read it."""
        self.body = memoryview(bytes(self.body))

    def caller(self, call: str, umask: int = 0) -> Caller:
        """The process that made the request, for the verb it used."""
        return Caller(self.uid, self.gid, self.pid, umask, call)

    def names(self, offset: int = 0) -> list[bytes]:
        """The NUL-terminated names after the fixed part of the body."""
        return bytes(self.body[offset:]).split(b"\0")[:-1]

    def name(self, offset: int = 0) -> bytes:
        """The one name after the fixed part of the body."""
        return bytes(self.body[offset:-1])
