"""How is a daemon asked about its view while it serves it?

At a unix stream socket, which only the daemon's user and root may use. A request is one line of JSON, and so is
each answer: `{"verb": "explain", "path": ...}` is answered by one line, and others may follow; `{"verb": "events"}`
by `{"attached": true}` and a line for each event, until either side closes. With `"counters": true` there is also,
once a second while that changes, and last of all, `{"counters": {"lookup": 12, ...}}`: how many requests of each
kind the front has answered since somebody attached. Paths are text with surrogates for
undecodable bytes, as os.fsdecode has it. While nobody is connected, one thread sleeps in accept(2), and nothing
else is paid.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from overlayfs_demo.errors import MountError, printable
from overlayfs_demo.events import Action, Event
from overlayfs_demo.mounts import runtime_directory
from overlayfs_demo.mounts.control import explanation
from overlayfs_demo.mounts.control.event_queue import Feed
from overlayfs_demo.overlay.engine import Overlay
from overlayfs_demo.overlay.provenance import Explanation

_LONGEST_REQUEST = 1 << 16
# Of thousands of layers each may speak of several long paths.
_LONGEST_ANSWER = 1 << 27
# How long to wait for clients when the mount ends, in seconds: for those that read, and for a sign that one does.
_PATIENCE = 2.0
_SIGN = 0.3

_log = logging.getLogger(__name__)


class Server:
    """Answers at the socket `path`, about `overlay`, which must stay open until `close`.

    `asked` is where a front counts its requests.
    """

    def __init__(self, path: Path, overlay: Overlay, asked: Mapping[str, int]) -> None:
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
        """Make the socket and the thread that waits at it. Raises MountError, OSError."""
        with _reachable(self._path, os.geteuid()) as address:
            # A killed daemon leaves its socket.
            Path(address).unlink(missing_ok=True)
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            # Before there is a name that others could use: bind(2) gives the file this mode.
            os.fchmod(self._socket.fileno(), 0o600)
            self._socket.bind(address)
            self._inode = Path(address).stat().st_ino
        self._socket.listen()
        self._acceptor = threading.Thread(target=self._accept, args=(self._socket,), name="control", daemon=True)
        self._acceptor.start()

    def close(self) -> None:
        """Take the socket away; clients get what still waits for them, and the end of their streams."""
        with self._lock:
            self._closed = True
            clients = dict(self._clients)
        if self._socket is not None:
            # This wakes the thread in accept(2), which closing would not.
            self._socket.shutdown(socket.SHUT_RDWR)
            if self._acceptor is not None and self._acceptor.ident is not None:
                self._acceptor.join(_PATIENCE)
            self._socket.close()
            # A later mount at the same place may have a socket there by now.
            with contextlib.suppress(FileNotFoundError):
                if self._path.stat().st_ino == self._inode:
                    self._path.unlink()
        deadline = time.monotonic() + _PATIENCE
        for client in clients.values():
            client.finish()
        for thread, client in clients.items():
            while thread.is_alive() and time.monotonic() < deadline:
                before = client.sent
                thread.join(_SIGN)
                if client.sent == before:
                    break
            client.cut()
        for thread in clients:
            thread.join(_PATIENCE)

    def _accept(self, listening: socket.socket) -> None:
        while True:
            try:
                connection = listening.accept()[0]
            except OSError as error:
                if self._closed:
                    return
                # Out of descriptors or memory, which passes.
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
                except RuntimeError as error:  # Out of memory or threads, which passes: the next client may be luckier.
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
    """One connection, which it owns, and the thread that reads from it. `sent` counts the answers."""

    def __init__(self, connection: socket.socket, overlay: Overlay, asked: Mapping[str, int]) -> None:
        self._connection = connection
        self._overlay = overlay
        self._asked = asked
        self._feed = Feed()
        self.sent = 0

    def serve(self) -> None:
        """Answer until the client goes, or `finish` is called."""
        # A client that goes in the middle of an answer is no fault of ours.
        with contextlib.suppress(ConnectionError), self._connection:
            uid = _peer(self._connection)
            if uid not in (0, os.geteuid()):
                self._say({"error": f"only user {os.geteuid()} and root may ask this daemon"})
                return
            with self._connection.makefile("rb") as requests:
                while line := requests.readline(_LONGEST_REQUEST):
                    if not self._answer(line):
                        return

    def finish(self) -> None:
        """No more requests are read, and no more events come; what waits is still sent."""
        self._feed.end()
        with contextlib.suppress(OSError):  # The client may have gone already.
            self._connection.shutdown(socket.SHUT_RD)

    def cut(self) -> None:
        """Give up sending."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def _say(self, answer: dict[str, Any]) -> None:
        self._connection.sendall(json.dumps(answer).encode() + b"\n")
        self.sent += 1

    def _answer(self, line: bytes) -> bool:
        """Answer one request; whether another may follow."""
        try:
            request = json.loads(line)
            if request["verb"] == "events":
                self._stream(bool(request.get("counters")))
                return False
            if request["verb"] != "explain":
                raise ValueError("the verbs are events and explain")
            self._say(self._explain(os.fsencode(request["path"])))
        except (ValueError, TypeError, KeyError) as error:
            self._say({"error": f"not a request: {error}"})
        return True

    def _explain(self, path: bytes) -> dict[str, Any]:
        # No component may lead out of a layer: `..` is resolved here, as in "/..".
        path = os.path.normpath(b"/" + path.lstrip(b"/"))
        try:
            explained = self._overlay.explain(path)
        except OSError as error:
            return {"error": f"{os.fsdecode(path)}: {error.strerror}"}
        return {"path": os.fsdecode(path), **explanation.to_json(explained)}

    def _stream(self, counters: bool) -> None:
        """Send events from another thread, while this one waits for the client to go."""
        if counters:
            self._feed.count(self._asked)
        detach = self._overlay.events.attach(self._feed.put)
        sender = threading.Thread(target=self._send, name="sender", daemon=True)
        try:
            sender.start()
            while self._connection.recv(1024):
                pass
        finally:
            detach()
            self._feed.end()
            if sender.ident is not None:
                sender.join()

    def _send(self) -> None:
        with contextlib.suppress(OSError):
            self._say({"attached": True})
            for answer in self._feed:
                self._say(answer)
        # Perhaps the client has gone: nothing need wait for it any more.
        self._feed.end()


def event_of(answer: Mapping[str, Any]) -> Event:
    """The event that a daemon told of."""
    return Event(
        Action(answer["action"]),
        os.fsencode(answer["path"]),
        answer["pid"],
        answer["uid"],
        answer["call"],
        answer["layer"],
        answer["size"],
        answer["detail"],
    )


def _peer(connection: socket.socket) -> int:
    """The user at the other end: unix(7), SO_PEERCRED."""
    size = struct.calcsize("3i")
    _, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return int(uid)


@contextlib.contextmanager
def _reachable(path: Path, owner: int) -> Iterator[str]:
    """An address for a socket in a directory that is `owner`'s alone, see `runtime_directory`.

    The path may be longer than the 107 bytes that unix(7) allows. Raises MountError, FileNotFoundError.
    """
    with runtime_directory.opened(path.parent, owner) as directory:
        yield f"/proc/self/fd/{directory}/{path.name}"


# --- the other end ---------------------------------------------------------------------------------


class Connection:
    """A connection to the daemon that serves `mountpoint`, for use in a `with`."""

    def __init__(self, path: Path, mountpoint: str, owner: int | None = None) -> None:
        """Connect to the socket `path` of the user `owner`, or of the one who asks. Raises MountError.

        Who answers must be that user: whatever stands at the path, nothing is said to anybody else.
        """
        self._mountpoint = mountpoint
        self._received = b""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._connect(path, os.geteuid() if owner is None else owner)
        except BaseException:
            self._socket.close()
            raise

    def _connect(self, path: Path, owner: int) -> None:
        try:
            with _reachable(path, owner) as address:
                self._socket.connect(address)
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise MountError(
                f"{self._mountpoint}: its daemon cannot be asked",
                "if it was killed, 'umount' there and 'mount' again; else it is of another version",
            ) from error
        except OSError as error:
            raise MountError(f"{self._mountpoint}: its daemon cannot be asked: {error.strerror}") from error
        peer = _peer(self._socket)
        if peer != owner:
            raise MountError(
                f"{self._mountpoint} was mounted by user {owner}, but user {peer} answers at {path}",
                "remove that socket",
            )

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def explain(self, path: bytes) -> Explanation:
        """What is said about an absolute path of the view. Raises MountError."""
        self._request({"verb": "explain", "path": os.fsdecode(path)})
        try:
            answer = self._next(None)
        except EOFError as error:
            raise MountError(f"{self._mountpoint} was unmounted meanwhile", "mount it again") from error
        try:
            return explanation.from_json(answer)
        except (KeyError, TypeError, ValueError) as error:
            raise MountError(
                f"{self._mountpoint}: its daemon's answer makes no sense: {printable(str(error))}",
                "if it is of another version, 'umount' there and 'mount' again",
            ) from error

    def attach(self, *, counters: bool = False) -> None:
        """Ask for events, and `counters` of requests; on return it is sure that the next event will be told.

        Raises MountError, EOFError.
        """
        self._request({"verb": "events", "counters": counters})
        self._next(None)

    def detach(self) -> None:
        """Ask for no more: what is on its way still comes, with the last counters, and then the end."""
        with contextlib.suppress(OSError):  # The mount may have ended just now.
            self._socket.shutdown(socket.SHUT_WR)

    def fileno(self) -> int:
        """For select(2), which knows nothing of what was received but not read: read until there is no more."""
        return self._socket.fileno()

    def event(self, timeout: float | None) -> dict[str, Any] | None:
        """The next event, how many were dropped, or the counters; None if there is nothing for so many seconds.

        Raises EOFError when the mount has ended.
        """
        try:
            return self._next(timeout)
        except (TimeoutError, BlockingIOError):  # The latter for a timeout of 0.
            return None

    def _request(self, request: dict[str, object]) -> None:
        # A daemon that ends or refuses us says so in what we read next.
        with contextlib.suppress(ConnectionError):
            self._socket.sendall(json.dumps(request).encode() + b"\n")

    def _next(self, timeout: float | None) -> dict[str, Any]:
        self._socket.settimeout(timeout)
        while b"\n" not in self._received:
            try:
                data = self._socket.recv(1 << 16)
            except ConnectionResetError:
                data = b""
            if not data:
                raise EOFError
            self._received += data
            if len(self._received) > _LONGEST_ANSWER:
                raise MountError(f"{self._mountpoint}: its daemon does not stop talking", "unmount it")
        line, _, self._received = self._received.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise MountError(f"{self._mountpoint}: {printable(str(answer['error']))}")
        return answer
