"""The daemon's end of a control socket: answers questions about the view, and sends its events.

While no client is connected, one thread sleeps in accept(2), and that is the whole cost.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Mapping

from overlayfs_demo.mounts.control import protocol, unix_socket
from overlayfs_demo.mounts.control.event_queue import EventQueue
from overlayfs_demo.mounts.control.protocol import Answer, Attached, ProtocolError, Refused, WatchRequest, WhichAnswer
from overlayfs_demo.overlay.engine import Overlay

# In bytes, with room for any path.
_LONGEST_REQUEST = 1 << 16
# How long to wait for clients when the mount ends, in seconds: in all, and for a sign that one of them still reads.
_TIMEOUT = 2.0
_SIGN_TIMEOUT = 0.3

_log = logging.getLogger(__name__)


class Server:
    """Answers at the socket `path` about `overlay`, which must stay open until `close`.

    `asked` is where a front counts its requests.
    """

    def __init__(self, path: str | os.PathLike[str], overlay: Overlay, asked: Mapping[str, int]) -> None:
        self._path = path
        self._overlay = overlay
        self._asked = asked
        self._socket: socket.socket | None = None
        self._acceptor: threading.Thread | None = None
        self._inode = 0
        self._clients: dict[threading.Thread, _Client] = {}
        self._lock = threading.Lock()
        self._closed = False

    def start(self) -> None:
        """Make the socket, and start the thread that accepts clients. Raises MountError, OSError."""
        with unix_socket.address(self._path, os.geteuid()) as address:
            # A killed daemon leaves its socket.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(address)
            listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            # bind(2) gives the file this mode, so nobody else can ever connect.
            os.fchmod(listening.fileno(), 0o600)
            listening.bind(address)
            self._inode = os.stat(address).st_ino
        listening.listen()
        self._socket = listening
        self._acceptor = threading.Thread(target=self._accept, args=(self._socket,), name="control", daemon=True)
        self._acceptor.start()

    def close(self) -> None:
        """Remove the socket. Clients get what is still queued for them, and then the end of the stream."""
        with self._lock:
            self._closed = True
            clients = dict(self._clients)
        if self._socket is not None:
            # This wakes the thread in accept(2); close(2) would not.
            self._socket.shutdown(socket.SHUT_RDWR)
            if self._acceptor is not None and self._acceptor.ident is not None:
                self._acceptor.join(_TIMEOUT)
            self._socket.close()
            # A later mount at the same place may have a socket there by now.
            with contextlib.suppress(FileNotFoundError):
                if os.stat(self._path).st_ino == self._inode:
                    os.unlink(self._path)
        deadline = time.monotonic() + _TIMEOUT
        for client in clients.values():
            client.finish()
        for thread, client in clients.items():
            while thread.is_alive() and time.monotonic() < deadline:
                before = client.sent
                thread.join(_SIGN_TIMEOUT)
                if client.sent == before:
                    break
            client.cut()
        for thread in clients:
            thread.join(_TIMEOUT)

    def _accept(self, listening: socket.socket) -> None:
        while True:
            try:
                connection = listening.accept()[0]
            except OSError as error:
                if self._closed:
                    return
                # Out of descriptors or memory, which may pass.
                _log.warning("control socket: %s", error)
                time.sleep(1)
                continue
            client = _Client(connection, self._overlay, self._asked)
            thread = threading.Thread(target=self._serve, args=(client,), name="client", daemon=True)
            with self._lock:
                if self._closed:
                    connection.close()
                    continue
                self._clients[thread] = client
                try:
                    thread.start()
                except RuntimeError as error:  # Out of memory or threads, which may pass.
                    _log.warning("control socket: %s", error)
                    del self._clients[thread]
                    connection.close()

    def _serve(self, client: _Client) -> None:
        try:
            client.serve()
        finally:
            with self._lock:
                self._clients.pop(threading.current_thread(), None)


class _Client:
    """One connection, which it owns. `sent` counts the answers."""

    def __init__(self, connection: socket.socket, overlay: Overlay, asked: Mapping[str, int]) -> None:
        self._connection = connection
        self._overlay = overlay
        self._asked = asked
        self._queue = EventQueue()
        self.sent = 0

    def serve(self) -> None:
        """Answer requests until the client goes, or `finish` is called."""
        # A client may go in the middle of an answer.
        with contextlib.suppress(ConnectionError), self._connection:
            uid = unix_socket.peer_user(self._connection)
            if uid not in (0, os.geteuid()):
                self._send(Refused(f"only user {os.geteuid()} and root may ask this daemon"))
                return
            with self._connection.makefile("rb") as requests:
                while line := requests.readline(_LONGEST_REQUEST):
                    if not self._answer(line):
                        return

    def finish(self) -> None:
        """Read no more requests and take no more events. What is queued is still sent."""
        self._queue.end()
        with contextlib.suppress(OSError):  # The client may have gone already.
            self._connection.shutdown(socket.SHUT_RD)

    def cut(self) -> None:
        """Give up sending."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def _send(self, answer: Answer) -> None:
        self._connection.sendall(protocol.encode(answer))
        self.sent += 1

    def _answer(self, line: bytes) -> bool:
        """Answer one request; whether another may follow."""
        try:
            request = protocol.decode_request(line)
        except ProtocolError as error:
            self._send(Refused(f"not a valid request: {error}"))
            return True
        if isinstance(request, WatchRequest):
            self._stream(counters=request.counters)
            return False
        self._send(self._which(request.path))
        return True

    def _which(self, path: bytes) -> Answer:
        # No component may lead out of a layer: `..` is resolved here, as in "/..".
        path = os.path.normpath(b"/" + path.lstrip(b"/"))
        try:
            return WhichAnswer(path, self._overlay.which(path))
        except OSError as error:
            return Refused(f"{os.fsdecode(path)}: {error.strerror}")

    def _stream(self, *, counters: bool) -> None:
        """Send updates from another thread, while this one waits for the client to go."""
        if counters:
            self._queue.count(self._asked)
        detach = self._overlay.events.attach(self._queue.put)
        sender = threading.Thread(target=self._send_updates, name="sender", daemon=True)
        try:
            sender.start()
            while self._connection.recv(1024):
                pass
        finally:
            detach()
            self._queue.end()
            if sender.ident is not None:
                sender.join()

    def _send_updates(self) -> None:
        with contextlib.suppress(OSError):
            self._send(Attached())
            for update in self._queue:
                self._send(update)
        # If the client has gone, nothing needs to be queued for it any more.
        self._queue.end()
