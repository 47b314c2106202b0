"""The guard in front of the application, which says who may ask the server and what its pages may do.

A foreign page could make its own name mean 127.0.0.1 and then read ours (DNS rebinding). So a request must name this
machine as a person would. Not everybody who can reach the port is a friend, so a request also shows a token, see
`access`. Whatever a file's name or content smuggles into a page, the browser runs only our script and loads nothing
from elsewhere.
"""

from __future__ import annotations

import ipaddress

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from overlayfs_demo.web import access

_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Guard:
    """Passes requests to `app` if they name one of its own hosts and show the token.

    Every answer gets the security headers.
    """

    def __init__(self, app: ASGIApp, host: str, token: str | None) -> None:
        """`host` is where the server listens. Without a token, anyone who names it may ask."""
        self._app = app
        self._host = host
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request (ASGI)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        await (self._instead(scope) or self._app)(scope, receive, sending)

    def _instead(self, scope: Scope) -> Response | None:
        """Return the answer that replaces the application's; None if the application may answer."""
        headers = Headers(scope=scope)
        if not is_known(headers.get("host", ""), self._host):
            return PlainTextResponse("This server does not answer to that name: use its address.\n", 400)
        if self._token is None:
            return None
        if scope["path"] == "/" and access.in_address(scope["query_string"], self._token):
            return access.welcome(headers, self._token)
        return None if access.in_cookie(headers, self._token) else access.refusal()


def is_known(header: str, listening: str) -> bool:
    """Return whether a Host header names this server: localhost, a loopback address, or where it listens.

    If it listens everywhere, any address is accepted, because DNS rebinding needs a name.
    """
    name = _without_port(header).lower()
    if name in ("localhost", listening.lower()):
        return True
    address, here = _address(name), _address(listening)
    return address is not None and (address.is_loopback or (here is not None and here.is_unspecified))


def _without_port(header: str) -> str:
    """Return the host of `host:port` or `[address]:port`."""
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.rpartition(":")[0] if header.count(":") == 1 else header


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None
