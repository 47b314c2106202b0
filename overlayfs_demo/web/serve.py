"""The web server of `web`, which runs until a signal comes or the view is unmounted."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
from collections.abc import Callable

import uvicorn

from overlayfs_demo.errors import OverlayError, UsageError
from overlayfs_demo.mounts import registry
from overlayfs_demo.mounts.control.client import Connection
from overlayfs_demo.web.access import address_with, new_token
from overlayfs_demo.web.app import LiveView, Served, application
from overlayfs_demo.web.model import Page
from overlayfs_demo.web.subject import Subject

# How many seconds the server waits for open pages before it stops.
_TIMEOUT = 2


def serve(
    subject: Subject,
    page: Callable[[], Page],
    view: LiveView | None,
    host: str,
    port: int,
    ready: Callable[[str], None],
    *,
    secret: bool,
) -> None:
    """Serve until a signal comes, or the view is unmounted. `ready` gets the address. Raises OverlayError.

    With `secret`, the address contains a token, without which nobody gets anything.
    """
    token = new_token() if secret else None
    listening = _listen(host, port)
    server: uvicorn.Server | None = None

    def stopping() -> bool:
        return server is not None and server.should_exit

    config = uvicorn.Config(
        application(Served(subject, page, view, stopping), host, token),
        log_level=logging.ERROR,
        access_log=False,
        server_header=False,
        lifespan="off",
        ws="none",
        timeout_graceful_shutdown=_TIMEOUT,
        proxy_headers=False,
    )
    server = uvicorn.Server(config)
    with listening:
        if view is not None:
            threading.Thread(target=_await_end, args=(view, server), daemon=True).start()
        address = f"http://{browsable(host)}:{listening.getsockname()[1]}/"
        ready(address if token is None else address_with(address, token))
        server.run(sockets=[listening])


def browsable(host: str) -> str:
    """Return the name by which a browser on this machine reaches a host to listen at; 0.0.0.0 and :: mean all."""
    name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{name}]" if ":" in name else name


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    except socket.gaierror as error:
        raise UsageError(f"--host {host}: {error.strerror}", "use an address of this machine") from None
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        # Our message already says what Python adds to its own.
        problem = os.strerror(error.errno) if error.errno else str(error)
        raise OverlayError(
            f"cannot listen at {host}, port {port}: {problem}", "choose another --port; 0 picks a free one"
        ) from None


def _await_end(view: LiveView, server: uvicorn.Server) -> None:
    """Stop the server when the view is unmounted, because its daemon then closes all connections."""
    with contextlib.suppress(OverlayError):
        while not registry.has_ended(view.mountpoint, os.geteuid()):
            with contextlib.suppress(EOFError), Connection(view.socket, view.mountpoint) as connection:
                connection.receive(None)
    server.should_exit = True
