"""A view that a process of its own serves, and which tells its figures."""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from overlayfs_demo.mounts import mount
from overlayfs_demo.mounts.options import parse
from overlayfs_demo.overlay.node import Node
from soaking.figures import Figures

_TIMEOUT = 30.0


class Served:
    """A view that is mounted at `path`; `lowers` are the directories of its lowers, topmost first."""

    def __init__(self, path: Path, lowers: list[Path], asking: socket.socket) -> None:
        self.path = path
        self.lowers = lowers
        self._asking = asking

    def figures(self) -> Figures:
        """Return the daemon's figures. Raises OSError if it does not answer."""
        self._asking.send(b"?")
        answer = self._asking.recv(4096)
        if not answer:
            raise ConnectionError("the daemon has ended")
        return Figures(*json.loads(answer))


@contextmanager
def served(base: Path, lowers: list[Path]) -> Iterator[Served]:
    """Serve a view in another process while the context is open; `base` is an empty directory for all it needs."""
    upper, work, view = (base / name for name in ("upper", "work", "view"))
    for directory in (upper, work, view):
        directory.mkdir()
    options = f"lowerdir={':'.join(map(str, lowers))},upperdir={upper},workdir={work}"
    asking, answering = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    daemon = os.fork()
    if daemon == 0:
        status = 1
        try:
            asking.close()
            threading.Thread(target=_answer, args=(answering,), daemon=True).start()
            mount.mount(os.fsencode(view), parse([options]), foreground=True)
            status = 0
        finally:
            os._exit(status)
    answering.close()
    asking.settimeout(_TIMEOUT)
    try:
        _wait_for(view)
        yield Served(view, lowers, asking)
    finally:
        os.kill(daemon, signal.SIGTERM)
        _, ended = os.waitpid(daemon, 0)
    if ended:
        raise RuntimeError(f"the daemon has failed: status {os.waitstatus_to_exitcode(ended)}")


def _wait_for(view: Path) -> None:
    end = time.monotonic() + _TIMEOUT
    while not view.is_mount():
        if time.monotonic() > end:
            raise TimeoutError(f"{view} is not mounted")
        time.sleep(0.01)


def _answer(asked: socket.socket) -> None:
    """Tell the figures of this process whenever somebody asks."""
    while asked.recv(1):
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        nodes = sum(isinstance(known, Node) for known in gc.get_objects())
        figures = Figures(
            len(os.listdir("/proc/self/fd")), int(status["VmRSS"].split()[0]), nodes, int(status["Threads"])
        )
        asked.send(json.dumps(figures).encode())
