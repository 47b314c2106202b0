"""What outlives a daemon, and how a daemon hands it to its supervisor.

The supervisor is the daemon's parent process, see `mounts.supervisor`. It keeps descriptors: the kernel's connection,
the memory of the ledger (`fronts.kernel.ledger`), and open files that have no name, which no other process could open.
If the daemon dies, the next one inherits them. A daemon sends short messages over a socket, with the descriptor that
each is about: unix(7), SCM_RIGHTS.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType

from overlayfs_demo.errors import MountError
from overlayfs_demo.named_tuple import NamedTuple

_MESSAGE = struct.Struct("=cQ")
# In bytes: an error message may name a few long paths.
_LONGEST = 1 << 16


class UselessError(MountError):
    """What the daemon before has left cannot be used: the view must be mounted again."""


class Kind(Enum):
    """What a daemon says."""

    DEVICE = b"d"
    SERVING = b"s"
    FILE = b"f"
    RELEASED = b"r"
    FAILED = b"e"


class Message(NamedTuple):
    """One message.

    DEVICE comes with the descriptor of the connection. SERVING has 1 if another process can take the connection over.
    FILE has the number of an open file and comes with its descriptor, RELEASED has the number of such a file. FAILED
    has the text of a `MountError`, and 1 if what the daemon before left is of no use. Whoever receives a descriptor
    (-1: none) owns it.
    """

    kind: Kind
    number: int
    fd: int
    text: bytes

    @property
    def error(self) -> MountError:
        """The error of a daemon that FAILED."""
        return MountError(*json.loads(self.text))


class Keeper:
    """A daemon's end. Without a channel nothing outlives the daemon, and nothing is sent.

    `device` is the connection of the daemon before, None for the first one. `files` are its open files without a name,
    by number; anyone who takes one out owns it. These descriptors and `memory` stay open in the supervisor, whatever
    this process does.
    """

    def __init__(
        self,
        channel: socket.socket | None = None,
        memory: int | None = None,
        device: int | None = None,
        files: Mapping[int, int] = MappingProxyType({}),
    ) -> None:
        self._channel = channel
        self.memory = memory
        self.device = device
        self.files = dict(files)
        self._kept = set(files)

    @property
    def is_supervised(self) -> bool:
        """Whether another daemon follows if this one dies."""
        return self._channel is not None

    def keep_device(self, fd: int) -> None:
        """Hand the connection over."""
        self._send(Kind.DEVICE, 0, fd)

    def serving(self, *, resumable: bool) -> None:
        """Say that the view answers, and whether another process can take over: the kernel can send requests again."""
        self._send(Kind.SERVING, int(resumable))

    def keep_file(self, number: int, fd: int) -> None:
        """Hand an open file over that has no name, or is about to lose it, in place of what was handed over before."""
        self._kept.add(number)
        self._send(Kind.FILE, number, fd)

    def release_file(self, number: int) -> None:
        """Say that a file is not open any more, if it was handed over."""
        if number in self._kept:
            self._kept.discard(number)
            self._send(Kind.RELEASED, number)

    def failed(self, error: MountError) -> None:
        """Say why the view cannot be served."""
        self._send(
            Kind.FAILED, isinstance(error, UselessError), text=json.dumps([error.problem, error.remedy]).encode()
        )

    def _send(self, kind: Kind, number: int, fd: int = -1, text: bytes = b"") -> None:
        if self._channel is None:
            return
        data = _MESSAGE.pack(kind.value, number) + text
        with contextlib.suppress(ConnectionError):  # The supervisor was killed, and the kernel kills this process, too.
            socket.send_fds(self._channel, [data], [fd] if fd >= 0 else [])


def receive(channel: socket.socket) -> Message | None:
    """Return the next message in the supervisor's end of a channel, or None at the end. Raises OSError."""
    data, fds, _, _ = socket.recv_fds(channel, _LONGEST, 1, socket.MSG_CMSG_CLOEXEC)
    if not data:
        return None
    kind, number = _MESSAGE.unpack_from(data)
    return Message(Kind(kind), number, fds[0] if fds else -1, data[_MESSAGE.size :])
