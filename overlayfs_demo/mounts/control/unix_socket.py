"""The address of a daemon's unix socket, and the user at the other end of a connection."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Iterator

from overlayfs_demo.mounts import runtime_directory

# struct ucred: the process, user and group at the other end.
_CREDENTIALS = struct.Struct("iII")


def peer_user(connection: socket.socket) -> int:
    """The user at the other end, as the kernel knows it: unix(7), SO_PEERCRED."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    user: int = _CREDENTIALS.unpack(credentials)[1]
    return user


@contextlib.contextmanager
def address(path: str | os.PathLike[str], owner: int) -> Iterator[str]:
    """An address for the socket at `path`, whose directory must be `owner`'s alone: see `runtime_directory`.

    It is valid inside the `with`. The path may be longer than the 107 bytes that unix(7) allows. Raises MountError,
    FileNotFoundError.
    """
    parent, name = os.path.split(path)
    with runtime_directory.opened(parent, owner) as directory:
        yield f"/proc/self/fd/{directory}/{name}"
