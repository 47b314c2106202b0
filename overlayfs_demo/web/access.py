"""The token that `serve` prints: a request shows it once in the address, and from then on in a cookie.

Other users of this machine can also reach the port, so the port alone must open nothing. Jupyter does the same.
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
    """Return a secret of 256 random bits, which may be part of an address and of a cookie."""
    return secrets.token_urlsafe(32)


def address_with(address: str, token: str) -> str:
    """Return the address of the page with the token in it."""
    return f"{address}?{_ARGUMENT}={token}"


def in_address(query: bytes, token: str) -> bool:
    """Return whether the query of an address shows the token."""
    return any(_same(value, token) for value in parse_qs(query.decode("latin-1")).get(_ARGUMENT, []))


def in_cookie(headers: Headers, token: str) -> bool:
    """Return whether the cookie that `welcome` set shows the token.

    Several cookies may have its name, because another server of this host may have set one.
    """
    pairs = (pair.strip().partition("=") for line in headers.getlist("cookie") for pair in line.split(";"))
    return any(name == _cookie(headers) and _same(value, token) for name, _, value in pairs)


def welcome(headers: Headers, token: str) -> Response:
    """Return a redirect that sets the cookie and drops the token from the address, where it would be seen and kept."""
    answer = RedirectResponse("/", 303)
    answer.set_cookie(_cookie(headers), token, path="/", httponly=True, samesite="strict")
    return answer


def refusal() -> Response:
    """Return the answer to a request that does not show the token."""
    return PlainTextResponse(_REFUSAL, 403)


def _cookie(headers: Headers) -> str:
    """Return the cookie's name, with the port that the browser sees, because all ports of a host share cookies."""
    port = headers.get("host", "").rpartition(":")[2]
    return f"overlayfs-demo-{port if port.isascii() and port.isdigit() else _HTTP_PORT}"


def _same(shown: str, token: str) -> bool:
    """Compare in a time that does not reveal how much of the token is right."""
    return secrets.compare_digest(shown.encode("utf-8", "surrogatepass"), token.encode())
