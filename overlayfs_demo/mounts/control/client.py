"""The client's end of a control socket: asks a view's daemon about paths, and receives its events.

The daemon may be of another user, and whatever it sends is checked: what makes no sense is one MountError.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Sequence

from overlayfs_demo.errors import MountError, printable
from overlayfs_demo.mounts import registry
from overlayfs_demo.mounts.control import protocol, unix_socket
from overlayfs_demo.mounts.control.protocol import (
    Answer,
    Attached,
    ProtocolError,
    Refused,
    Request,
    Restarted,
    Seen,
    Update,
    WatchRequest,
    WhichAnswer,
    WhichRequest,
)
from overlayfs_demo.mounts.control.titles import titled
from overlayfs_demo.overlay.provenance import Provenance

# In bytes. Each of thousands of layers may name several long paths.
_LONGEST_ANSWER = 1 << 27
_RECEIVED_AT_ONCE = 1 << 16
# How long to wait for a daemon that takes another one's place, and between two attempts, in seconds.
_TAKEOVER = 10.0
_POLL = 0.05


class UnreachableError(MountError):
    """No daemon answers at the socket now."""


class Connection:
    """A connection to the daemon that serves `mountpoint`, for use in a `with`. For one thread."""

    def __init__(
        self, path: str | os.PathLike[str], mountpoint: str, owner: int | None = None, titles: Sequence[str] = ()
    ) -> None:
        """Connect to the socket `path` of the user `owner`, by default the caller. Raises MountError.

        The daemon must be that user's: nothing is sent to anyone else, whatever is at the path. `titles` are put into
        what it answers, see `titles`.
        """
        self._path = path
        self._mountpoint = mountpoint
        self._owner = os.geteuid() if owner is None else owner
        self._titles = titles
        self._received = bytearray()
        # What `attach` asked for.
        self._watch: WatchRequest | None = None
        self._socket = self._connected()

    def _connected(self) -> socket.socket:
        """Connect. If the daemon has just died, wait for the one that takes its place."""
        deadline = time.monotonic() + _TAKEOVER
        while True:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                self._connect(connection)
            except UnreachableError:
                connection.close()
                if time.monotonic() > deadline or registry.has_ended(self._mountpoint, self._owner):
                    raise
                time.sleep(_POLL)
            except BaseException:
                connection.close()
                raise
            else:
                return connection

    def _connect(self, connection: socket.socket) -> None:
        try:
            with unix_socket.address(self._path, self._owner) as address:
                connection.connect(address)
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise UnreachableError(
                f"{self._mountpoint}: its daemon cannot be reached",
                "if it was killed, unmount the view and mount it again; otherwise it runs a different version",
            ) from error
        except OSError as error:
            raise MountError(f"{self._mountpoint}: its daemon cannot be reached: {error.strerror}") from error
        peer = unix_socket.peer_user(connection)
        if peer != self._owner:
            raise MountError(
                f"{self._mountpoint} was mounted by user {self._owner}, but user {peer} answers at {self._path}",
                "remove that socket",
            )

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def which(self, path: bytes) -> Provenance:
        """What each layer says about an absolute path of the view. Raises MountError."""
        while True:
            self._send(WhichRequest(path))
            try:
                answer = self._answer(None)
                break
            except EOFError as error:
                if not self._reconnect():
                    raise MountError(f"{self._mountpoint} was unmounted in the meantime", "mount it again") from error
        if not isinstance(answer, WhichAnswer):
            raise self._senseless()
        return answer.provenance

    def attach(self, *, counters: bool = False) -> None:
        """Ask for events and, with `counters`, for those. Once this returns, no event is missed.

        Raises MountError, EOFError.
        """
        self._watch = WatchRequest(counters)
        self._attach(self._watch)

    def _attach(self, watch: WatchRequest) -> None:
        self._send(watch)
        if not isinstance(self._answer(None), Attached):
            raise self._senseless()

    def detach(self) -> None:
        """Ask for no more. What is on its way still comes, with the last counters, and then the end."""
        self._watch = None
        with contextlib.suppress(OSError):  # The mount may have ended just now.
            self._socket.shutdown(socket.SHUT_WR)

    def fileno(self) -> int:
        """The descriptor for select(2). That does not see what is buffered here, so call `receive` until it is None."""
        return self._socket.fileno()

    def receive(self, timeout: float | None) -> Seen | None:
        """The next update; None if none comes for so many seconds (None: wait without end).

        If the daemon has died and another one takes its place, that is an update. Raises EOFError when the mount has
        ended, and MountError.
        """
        try:
            answer = self._answer(timeout)
        except EOFError:
            if self._watch is None or not self._follow(self._watch):
                raise
            return Restarted()
        except (TimeoutError, BlockingIOError):  # The latter for a timeout of 0.
            return None
        if not isinstance(answer, Update):
            raise self._senseless()
        return answer

    def _follow(self, watch: WatchRequest) -> bool:
        """Attach to the daemon that takes the place of the one that has died; return False if there is none."""
        while self._reconnect():
            with contextlib.suppress(EOFError):  # That one has died, too.
                self._attach(watch)
                return True
        return False

    def _reconnect(self) -> bool:
        """Connect to the daemon that takes the place of the one that has died; return False if there is none."""
        if registry.has_ended(self._mountpoint, self._owner):
            return False
        try:
            following = self._connected()
        except UnreachableError:
            return False
        self._socket.close()
        self._socket = following
        self._received.clear()
        return True

    def _send(self, request: Request) -> None:
        # A daemon that ends or refuses the client says so in what is read next.
        with contextlib.suppress(ConnectionError):
            self._socket.sendall(protocol.encode(request))

    def _answer(self, timeout: float | None) -> Answer:
        line = self._line(timeout)
        try:
            answer = protocol.decode_answer(line)
        except ProtocolError as error:
            raise self._senseless(str(error)) from error
        if isinstance(answer, Refused):
            raise MountError(f"{self._mountpoint}: {printable(answer.problem)}")
        return titled(answer, self._titles) if self._titles else answer

    def _senseless(self, why: str = "it answers a different question") -> MountError:
        return MountError(
            f"{self._mountpoint}: its daemon's answer is not valid: {printable(why)}",
            "if it runs a different version, unmount the view and mount it again",
        )

    def _line(self, timeout: float | None) -> bytes:
        """The next line. Raises EOFError, MountError; TimeoutError or BlockingIOError if none comes in time."""
        self._socket.settimeout(timeout)
        searched = 0
        while (end := self._received.find(b"\n", searched)) < 0:
            searched = len(self._received)
            if searched > _LONGEST_ANSWER:
                raise MountError(f"{self._mountpoint}: its daemon sent a line without an end", "unmount it")
            try:
                data = self._socket.recv(_RECEIVED_AT_ONCE)
            except ConnectionResetError:
                data = b""
            if not data:
                raise EOFError
            self._received += data
        line = bytes(self._received[:end])
        del self._received[: end + 1]
        return line
