"""Who may ask the server, and what may its pages do?

A page of somebody else could let its own name mean 127.0.0.1 and so read ours (DNS rebinding); therefore requests
must name this machine as a person would. Nor is everybody who reaches the port a friend, so they show a token, see
`access`. And whatever a file's name or content smuggled into a page, the browser runs no script but ours and loads
nothing from elsewhere.
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
    """Lets requests through to `app` that name one of its own hosts and show the token.

    Every answer gets its security headers.
    """

    def __init__(self, app: ASGIApp, host: str, token: str | None) -> None:
        """`host` is where the server listens; without a token whoever names it may ask."""
        self._app = app
        self._host = host
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request: ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        await (self._instead(scope) or self._app)(scope, receive, sending)

    def _instead(self, scope: Scope) -> Response | None:
        """What is answered in the application's place; None if it may answer."""
        headers = Headers(scope=scope)
        if not is_known(headers.get("host", ""), self._host):
            return PlainTextResponse("This server does not answer to that name: use its address.\n", 400)
        if self._token is None:
            return None
        if scope["path"] == "/" and access.in_address(scope["query_string"], self._token):
            return access.welcome(headers, self._token)
        return None if access.in_cookie(headers, self._token) else access.refusal()


def is_known(header: str, listening: str) -> bool:
    """Does a Host header name this server: localhost, a loopback address, where it listens?

    If it listens everywhere, any address will do: to rebind takes a name.
    """
    name = _without_port(header).lower()
    if name in ("localhost", listening.lower()):
        return True
    address, here = _address(name), _address(listening)
    return address is not None and (address.is_loopback or (here is not None and here.is_unspecified))


def _without_port(header: str) -> str:
    """The host of `host:port` or `[address]:port`."""
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.rpartition(":")[0] if header.count(":") == 1 else header


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None
