"""Which requests show the token that `serve` printed: once in the address, from then on in a cookie.

Other users of this machine reach the port, too, so the port alone must open nothing. Jupyter does it the same way.
"""

from __future__ import annotations

import secrets
from urllib.parse import parse_qs

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse, RedirectResponse, Response

_ARGUMENT = "token"
_HTTP_PORT = "80"
_REFUSAL = (
    "This page needs its token: use the full address that 'overlayfs-demo serve' printed when it started,\n"
    f"http://.../?{_ARGUMENT}=... The token is different each time.\n"
)


def new_token() -> str:
    """A secret that may stand in an address and in a cookie: 256 random bits."""
    return secrets.token_urlsafe(32)


def address_with(address: str, token: str) -> str:
    """The address of the page that shows the token."""
    return f"{address}?{_ARGUMENT}={token}"


def in_address(query: bytes, token: str) -> bool:
    """Does the query of an address show the token?"""
    return any(_same(value, token) for value in parse_qs(query.decode("latin-1")).get(_ARGUMENT, []))


def in_cookie(headers: Headers, token: str) -> bool:
    """Does the cookie that `welcome` gave show it? Another server of this host may have set one of the same name."""
    pairs = (pair.strip().partition("=") for line in headers.getlist("cookie") for pair in line.split(";"))
    return any(name == _cookie(headers) and _same(value, token) for name, _, value in pairs)


def welcome(headers: Headers, token: str) -> Response:
    """The way to the page without the token in its address, where it would be seen and kept, but with the cookie."""
    answer = RedirectResponse("/", 303)
    answer.set_cookie(_cookie(headers), token, path="/", httponly=True, samesite="strict")
    return answer


def refusal() -> Response:
    """What those are told who do not show the token."""
    return PlainTextResponse(_REFUSAL, 403)


def _cookie(headers: Headers) -> str:
    """The cookie's name has the port that the browser sees in it: all ports of a host share their cookies."""
    port = headers.get("host", "").rpartition(":")[2]
    return f"overlayfs-demo-{port if port.isascii() and port.isdigit() else _HTTP_PORT}"


def _same(shown: str, token: str) -> bool:
    """In a time that does not tell how much of it is right."""
    return secrets.compare_digest(shown.encode("utf-8", "surrogatepass"), token.encode())
