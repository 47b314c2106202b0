"""How is a daemon asked about its view while it serves it?

At a unix stream socket, which only the daemon's user and root may use. A request is one line of JSON, and so is
each answer: `{"verb": "explain", "path": ...}` is answered by one line, and others may follow; `{"verb": "events"}`
by `{"attached": true}` and a line for each event, until either side closes. Paths are text with surrogates for
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
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from overlayfs_demo.errors import MountError
from overlayfs_demo.events import Action, Event
from overlayfs_demo.overlay.engine import Overlay
from overlayfs_demo.overlay.testimony import Statement

# Events that may wait for one client; what comes on top of them is counted and dropped.
_MOST_WAITING = 10_000
_LONGEST_REQUEST = 1 << 16
# How long to wait for clients that do not read, when the mount ends, in seconds.
_PATIENCE = 2.0

_log = logging.getLogger(__name__)


class Server:
    """Answers at the socket `path`, about `overlay`, which must stay open until `close`."""

    def __init__(self, path: Path, overlay: Overlay) -> None:
        self._path = path
        self._overlay = overlay
        self._socket: socket.socket | None = None
        self._clients: dict[threading.Thread, _Client] = {}
        self._lock = threading.Lock()
        self._closed = False

    def start(self) -> None:
        """Make the socket and the thread that waits at it. Raises OSError."""
        # A killed daemon leaves its socket.
        self._path.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # Before there is a name that others could use: bind(2) gives the file this mode.
        os.fchmod(self._socket.fileno(), 0o600)
        with _reachable(self._path) as address:
            self._socket.bind(address)
        self._socket.listen()
        threading.Thread(target=self._accept, args=(self._socket,), name="control", daemon=True).start()

    def close(self) -> None:
        """Take the socket away; clients get what still waits for them, and the end of their streams."""
        with self._lock:
            self._closed = True
            clients = dict(self._clients)
        if self._socket is not None:
            # This wakes the thread in accept(2), which closing would not.
            self._socket.shutdown(socket.SHUT_RDWR)
            self._path.unlink(missing_ok=True)
        deadline = time.monotonic() + _PATIENCE
        for client in clients.values():
            client.finish()
        for thread, client in clients.items():
            thread.join(max(0.0, deadline - time.monotonic()))
            client.cut()
        for thread in clients:
            thread.join(_PATIENCE)

    def _accept(self, listening: socket.socket) -> None:
        while True:
            try:
                connection = listening.accept()[0]
            except OSError as error:
                if self._closed:
                    listening.close()
                    return
                # Out of descriptors or memory, which passes.
                _log.warning("control socket: %s", error)
                time.sleep(1)
                continue
            client = _Client(connection, self._overlay)
            thread = threading.Thread(target=self._serve, args=(client,), name="client", daemon=True)
            with self._lock:
                if not self._closed:
                    self._clients[thread] = client
                    thread.start()
                    continue
            connection.close()

    def _serve(self, client: _Client) -> None:
        try:
            client.serve()
        finally:
            with self._lock:
                self._clients.pop(threading.current_thread(), None)


class _Client:
    """One connection, which it owns, and the thread that reads from it."""

    def __init__(self, connection: socket.socket, overlay: Overlay) -> None:
        self._connection = connection
        self._overlay = overlay
        self._feed = _Feed()

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

    def _answer(self, line: bytes) -> bool:
        """Answer one request; whether another may follow."""
        try:
            request = json.loads(line)
            if request["verb"] == "events":
                self._stream()
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
            statements = self._overlay.explain(path)
        except OSError as error:
            return {"error": f"{os.fsdecode(path)}: {error.strerror}"}
        return {"path": os.fsdecode(path), "layers": [statement_json(one) for one in statements]}

    def _stream(self) -> None:
        """Send events from another thread, while this one waits for the client to go."""
        detach = self._overlay.events.attach(self._feed.put)
        sender = threading.Thread(target=self._send, name="sender", daemon=True)
        sender.start()
        try:
            while self._connection.recv(1024):
                pass
        finally:
            detach()
            self._feed.end()
            sender.join()

    def _send(self) -> None:
        with contextlib.suppress(OSError):
            self._say({"attached": True})
            for answer in self._feed:
                self._say(answer)
        # Perhaps the client has gone: nothing need wait for it any more.
        self._feed.end()


class _Feed:
    """Events on their way to one client: many threads `put`, one iterates until `end`."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[Event, str, float]] = deque()
        self._changed = threading.Condition()
        self._dropped = 0
        self._ended = False

    def put(self, event: Event) -> None:
        """Runs inside the operation that caused the event, and so never waits for the client."""
        # The caller waits in its system call, so it is there to be asked for its name.
        name = command_name(event.pid)
        with self._changed:
            if self._ended:
                return
            if len(self._waiting) >= _MOST_WAITING:
                self._dropped += 1
            else:
                self._waiting.append((event, name, time.time()))
            self._changed.notify()

    def end(self) -> None:
        """What waits is the last."""
        with self._changed:
            self._ended = True
            self._changed.notify()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The answers to send: events, and how many were dropped after those."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._dropped or self._ended)
                batch, dropped = list(self._waiting), self._dropped
                self._waiting.clear()
                self._dropped = 0
                ended = self._ended
            yield from (_event_json(*one) for one in batch)
            if dropped:
                yield {"dropped": dropped}
            if ended:
                return


def command_name(pid: int) -> str:
    """What the process calls itself, at most 15 bytes: proc_pid_comm(5). "" for one that is gone, and for pid 0.

    Unlike /proc/PID/cmdline it takes no lock that a process keeps while it waits for this very mount.
    """
    try:
        return os.fsdecode(Path(f"/proc/{pid}/comm").read_bytes().removesuffix(b"\n"))
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _event_json(event: Event, name: str, seconds: float) -> dict[str, Any]:
    return {
        "time": seconds, "action": event.action.value, "path": os.fsdecode(event.path), "pid": event.pid,
        "who": name, "uid": event.uid, "call": event.call, "layer": event.layer, "size": event.size,
        "detail": event.detail,
    }


def event_of(answer: dict[str, Any]) -> Event:
    """The event that a daemon told of."""
    return Event(
        Action(answer["action"]), os.fsencode(answer["path"]), answer["pid"], answer["uid"], answer["call"],
        answer["layer"], answer["size"], answer["detail"],
    )


def statement_json(one: Statement) -> dict[str, Any]:
    """What a layer says about a path, in the fields of an answer."""
    status = one.status
    return {
        "layer": one.layer, "says": one.says.value, "wins": one.wins,
        "mode": status.st_mode if status else None, "size": status.st_size if status else None,
        "target": None if one.target is None else os.fsdecode(one.target),
        "hidden_by": one.hidden_by or None, "hidden_at": os.fsdecode(one.hidden_at) or None,
        "deleted_at": os.fsdecode(one.deleted_at) or None,
        "stored_at": os.fsdecode(one.stored_at) if status else None,
    }


def _peer(connection: socket.socket) -> int:
    """The user at the other end: unix(7), SO_PEERCRED."""
    size = struct.calcsize("3i")
    _, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return int(uid)


@contextlib.contextmanager
def _reachable(path: Path) -> Iterator[str]:
    """An address for a socket whose path may be longer than the 107 bytes that unix(7) allows."""
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


# --- the other end ---------------------------------------------------------------------------------


class Connection:
    """A connection to the daemon that serves `mountpoint`, for use in a `with`."""

    def __init__(self, path: Path, mountpoint: str) -> None:
        """Connect to the socket `path`. Raises MountError."""
        self._mountpoint = mountpoint
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with _reachable(path) as address:
                self._socket.connect(address)
        except (FileNotFoundError, ConnectionRefusedError) as error:
            self._socket.close()
            raise MountError(
                f"{mountpoint}: its daemon cannot be asked", "unmount it, and mount it with this version"
            ) from error
        except OSError as error:
            self._socket.close()
            raise MountError(f"{mountpoint}: its daemon cannot be asked: {error.strerror}") from error
        self._received = b""

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def explain(self, path: str) -> list[dict[str, Any]]:
        """What each layer, from the top down, says about an absolute path of the view. Raises MountError."""
        self._request({"verb": "explain", "path": path})
        try:
            layers: list[dict[str, Any]] = self._next(None)["layers"]
        except EOFError as error:
            raise MountError(f"{self._mountpoint} was unmounted meanwhile", "mount it again") from error
        return layers

    def attach(self) -> None:
        """Ask for events; on return it is sure that the next will be told. Raises MountError, EOFError."""
        self._request({"verb": "events"})
        self._next(None)

    def event(self, timeout: float | None) -> dict[str, Any] | None:
        """The next event, or how many were dropped; None if there is none for so many seconds.

        Raises EOFError when the mount has ended.
        """
        try:
            return self._next(timeout)
        except TimeoutError:
            return None

    def _request(self, request: dict[str, str]) -> None:
        # A daemon that ends or refuses us says so in what we read next.
        with contextlib.suppress(BrokenPipeError):
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
        line, _, self._received = self._received.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise MountError(f"{self._mountpoint}: {answer['error']}")
        return answer
