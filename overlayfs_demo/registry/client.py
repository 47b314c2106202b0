"""HTTP with one registry: authorization, redirects, limits, and requests that are tried again.

`exchange` is for requests with a small answer. `open` makes one attempt whose answer is a stream, which the modules
`download` and `upload` use: they know how to go on after a broken connection.
"""

from __future__ import annotations

import email.utils
import os
import ssl
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import SplitResult, urljoin, urlsplit

import httpcore

from overlayfs_demo import __version__
from overlayfs_demo.errors import ImageError, RegistryError, printable
from overlayfs_demo.images.model import Document, parse_json
from overlayfs_demo.registry.auth import Authorizer, TokenRequest
from overlayfs_demo.registry.endpoint import Endpoint, is_loopback
from overlayfs_demo.registry.patience import Patience
from overlayfs_demo.registry.urls import origin, require_url
from overlayfs_demo.registry.wire import Wire

# What is sent with a request: bytes, or a function that gives them piece by piece, and again if asked again.
Body = bytes | Callable[[], Iterator[bytes]]
Result = TypeVar("Result")

MAX_DOCUMENT = 4 << 20
MAX_ERROR = 64 << 10
_MAX_REDIRECTS = 5
_REDIRECTS = (301, 302, 303, 307, 308)
# How long a last request may take, in seconds.
_LAST = 5.0
# Statuses of a server that may answer when it is asked again (RFC 9110, 15.5.9, 15.6; RFC 6585, 4).
BUSY = (408, 429, 500, 502, 503, 504)


class BrokenError(Exception):
    """An attempt failed in a way that another attempt may not.

    `wait` is what the registry asked for, in seconds; `connected` says that a connection was made, and then it broke.
    """

    def __init__(self, problem: str, wait: float = 0, *, connected: bool = False) -> None:
        super().__init__(problem)
        self.wait = wait
        self.connected = connected


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer; the names of headers are in lower case. `url` is where it came from."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    url: str


@dataclass(frozen=True, slots=True)
class Stream:
    """An answer whose body is still to be read; as sent, not decompressed."""

    status: int
    headers: Mapping[str, str]
    pieces: Iterable[bytes]


class Client:
    """A client of one registry. Several threads may use it; the caller must close it."""

    def __init__(self, endpoint: Endpoint, authorizer: Authorizer, patience: Patience) -> None:
        self.endpoint = endpoint
        self.patience = patience
        self.title = f"registry {printable(endpoint.domain)}"
        self._authorizer = authorizer
        self._home = origin(urlsplit(endpoint.origin))
        self._wires: list[Wire] = []
        self._pools: dict[tuple[str, str], httpcore.ConnectionPool] = {}
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        # A registry that has answered once is there; so an error may be a passing one.
        self._answered = False

    def stop(self) -> None:
        """Make all threads that work for this client fail at once."""
        self._stopping.set()
        with self._lock:
            wires = self._wires[:]
        for wire in wires:
            wire.stop()

    def close(self) -> None:
        """Close all connections. No thread may use the client any more."""
        for pool in self._pools.values():
            pool.close()

    @contextmanager
    def successor(self) -> Iterator[Client]:
        """Give another client of the same registry, for last requests after `stop`. It has little patience."""
        client = Client(self.endpoint, self._authorizer, Patience(attempts=1, connect=_LAST, read=_LAST))
        try:
            yield client
        finally:
            client.close()

    def require_running(self) -> None:
        """Raise RegistryError if the client was stopped."""
        if self._stopping.is_set():
            raise RegistryError(f"{self.title}: interrupted")

    def speaks_plainly(self) -> bool:
        """Return False if the registry answers only to TLS. Sends no credentials."""
        try:
            with self._send("GET", urlsplit(f"{self.endpoint.origin}/v2/"), {}, b"", 0) as (answer, _):
                # A server that expects TLS answers like this, or breaks the connection.
                return answer.status != 400
        except BrokenError as error:
            return not error.connected

    # --- attempts --------------------------------------------------------------------------------------

    def exchange(
        self,
        method: str,
        path: str,
        what: str,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        limit: int = MAX_DOCUMENT,
        timeout: float = 0,
    ) -> Reply:
        """Make a request, perhaps in several attempts, and return the answer, whose body has at most `limit` bytes.

        `path` is a path on the registry, or a URL that it named; `what` says in errors what it is about. `timeout` is
        how long to wait for the answer, if not as long as usual. Any status is returned, except those of a busy server.
        Raises RegistryError.
        """
        return self.attempts(what, lambda: self._reply(method, path, what, headers or {}, body, limit, timeout))

    def attempts(self, what: str, attempt: Callable[[], Result], progress: Callable[[], int] = lambda: 0) -> Result:
        """Return what `attempt` returns. It is called again after BrokenError, with longer and longer waits.

        `progress` returns how far the attempts have come, in bytes. One that brought a megabyte is not a failure.
        Raises RegistryError after too many failures in a row.
        """
        failures, reached = 0, progress()
        while True:
            self.require_running()
            try:
                return attempt()
            except RegistryError as error:
                if what in error.problem:
                    raise
                raise RegistryError(f"{error.problem} ({what})", error.remedy) from None
            except BrokenError as error:
                self.require_running()
                if progress() >= reached + (1 << 20):
                    failures, reached = 0, progress()
                failures += 1
                wait = max(error.wait, self.patience.delay(failures))
                if failures >= self.patience.attempts or not self._answered:
                    raise RegistryError(f"{self.title}: {what}: {error}", "check the registry, and try again") from None
                if wait > self.patience.longest_delay:
                    raise RegistryError(
                        f"{self.title}: {what}: {error}", f"try again in {wait:.0f} seconds, as it asks"
                    ) from None
                self._stopping.wait(wait)

    def _reply(
        self, method: str, path: str, what: str, headers: Mapping[str, str], body: bytes, limit: int, timeout: float
    ) -> Reply:
        with self.open(method, path, headers, body, timeout=timeout) as (answer, url):
            data = self.whole(answer, limit, what)
            if answer.status in BUSY:
                raise self.busy(answer, data)
            return Reply(answer.status, answer.headers, data, url)

    def whole(self, answer: Stream, limit: int, what: str) -> bytes:
        """Return the whole body of an answer. Raises RegistryError if it has more than `limit` bytes."""
        most = limit if answer.status < 300 else MAX_ERROR
        data = bytearray()
        for piece in answer.pieces:
            data += piece
            if len(data) > most:
                raise RegistryError(
                    f"{self.title}: {what}: the answer has more than {most} bytes", "do not use this registry"
                )
        return bytes(data)

    def busy(self, answer: Stream, data: bytes) -> BrokenError:
        """Return the error for an answer of a server that may answer later."""
        return BrokenError(
            f"it answers with status {answer.status}{reason(data)}", _retry_after(answer.headers.get("retry-after", ""))
        )

    def refusal(self, what: str, status: int, body: bytes) -> RegistryError:
        """Return the error for a status that was not expected."""
        if status in (401, 403):
            denied = self._authorizer.denied()
            return RegistryError(f"{denied.problem}: {what}{reason(body)}", denied.remedy)
        remedy = "check the name" if status == 404 else "check the registry, and try again"
        return RegistryError(f"{self.title}: {what}: it answers with status {status}{reason(body)}", remedy)

    # --- one attempt -----------------------------------------------------------------------------------

    @contextmanager
    def open(
        self, method: str, path: str, headers: Mapping[str, str], body: Body = b"", *, timeout: float = 0
    ) -> Iterator[tuple[Stream, str]]:
        """Make one attempt at a request, and give the answer and its URL.

        Answers the registry's challenges, and follows redirects of GET and HEAD. `Authorization` goes only to the
        registry's own host. Raises BrokenError, also while the body is read, and RegistryError.
        """
        url = urljoin(self.endpoint.origin, path)
        redirects, denials = 0, 0
        while True:
            parts = self._required(url, "a redirect" if redirects else "an upload")
            own = origin(parts) == self._home
            used = self._authorizer.header if own else ""
            sent = {**headers, **({"Authorization": used} if used else {})}
            with self._send(method, parts, sent, body, timeout) as (answer, response):
                if answer.status == 401 and own and denials < 2:
                    denials += 1
                    challenges = [
                        value.decode("latin-1")
                        for name, value in response.headers
                        if name.lower() == b"www-authenticate"
                    ]
                    if self._authorizer.renew(challenges, used, self._fetch):
                        continue
                if answer.status not in _REDIRECTS or method not in ("GET", "HEAD"):
                    yield answer, url
                    return
                redirects += 1
                if redirects > _MAX_REDIRECTS:
                    raise RegistryError(
                        f"{self.title} redirects more than {_MAX_REDIRECTS} times", "do not use this registry"
                    )
                url = self.resolved(url, answer.headers.get("location", ""), "a redirect")

    def resolved(self, base: str, location: str, purpose: str) -> str:
        """Return the URL that a header `Location` means. Raises RegistryError unless it may be followed."""
        try:
            url = urljoin(base, location)
        except ValueError:
            url = location
        self._required(url, purpose)
        return url

    def _required(self, url: str, purpose: str) -> SplitResult:
        return require_url(url, self.endpoint.domain, purpose, secure=self.endpoint.scheme == "https")

    def _fetch(self, request: TokenRequest) -> tuple[int, bytes]:
        """Ask for a token: without redirects, because they would carry the password to another host."""
        parts = self._required(request.url, "tokens")
        method = "GET" if request.form is None else "POST"
        with self._send(method, parts, request.headers, request.form or b"", 0) as (answer, _):
            data = self.whole(answer, MAX_DOCUMENT, "a token")
            if answer.status in BUSY:
                raise self.busy(answer, data)
            return answer.status, data

    @contextmanager
    def _send(
        self, method: str, parts: SplitResult, headers: Mapping[str, str], body: Body, timeout: float
    ) -> Iterator[tuple[Stream, httpcore.Response]]:
        target = f"{parts.path or '/'}{'?' if parts.query else ''}{parts.query}"
        url = httpcore.URL(scheme=parts.scheme, host=parts.hostname or "", port=parts.port, target=target)
        sent = {"Host": parts.netloc, "User-Agent": f"overlayfs-demo/{__version__}", "Accept-Encoding": "identity"}
        if method in ("POST", "PUT", "PATCH") and not body:
            sent["Content-Length"] = "0"
        patience = self.patience
        limits = {"connect": patience.connect, "read": timeout or patience.read, "write": patience.read}
        with (
            self._translated(parts),
            self._pool(parts).stream(
                method,
                url,
                headers=list({**sent, **headers}.items()),
                content=body() if callable(body) else body or None,
                extensions={"timeout": limits},
            ) as response,
        ):
            self._answered = True
            found = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers}
            yield Stream(response.status, found, response.iter_stream()), response

    @contextmanager
    def _translated(self, parts: SplitResult) -> Iterator[None]:
        """Turn the errors of a connection into BrokenError or RegistryError."""
        host = printable(parts.netloc)
        try:
            yield
        except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
            if isinstance(cause := _cause(error), ssl.SSLCertVerificationError):
                raise RegistryError(
                    f"{self.title}: the certificate of {host} is not valid: {cause.verify_message}",
                    f"put the certificate of its authority in /etc/docker/certs.d/{host}/ca.crt",
                ) from None
            raise BrokenError(f"cannot connect to {host} ({_text(error)}){_hint(cause)}") from None
        except httpcore.TimeoutException as error:
            raise BrokenError(f"{host} is too slow ({_text(error)})") from None
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.ProxyError) as error:
            raise BrokenError(f"the connection to {host} broke ({_text(error)})", connected=True) from None

    def _pool(self, parts: SplitResult) -> httpcore.ConnectionPool:
        """Return the connections to a host: direct, or through the proxy that the environment names."""
        host = parts.hostname or ""
        # As with Go's http.ProxyFromEnvironment, no proxy is asked for what is on this machine.
        direct = is_loopback(parts.netloc) or urllib.request.proxy_bypass(host)
        proxy = "" if direct else urllib.request.getproxies().get(parts.scheme, "")
        with self._lock:
            if (parts.scheme, proxy) not in self._pools:
                # Authorities take long to read.
                tls = self.endpoint.tls() if parts.scheme == "https" else None
                self._pools[parts.scheme, proxy] = self._new_pool(proxy, tls)
            return self._pools[parts.scheme, proxy]

    def _new_pool(self, proxy: str, tls: ssl.SSLContext | None) -> httpcore.ConnectionPool:
        if not proxy:
            return httpcore.ConnectionPool(ssl_context=tls, network_backend=self._new_wire(self.endpoint.hostname))
        where = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        user = None if where.username is None else (where.username, where.password or "")
        address = f"{where.scheme}://{where.hostname}:{where.port or 80}"
        wire = self._new_wire(where.hostname or "")
        return httpcore.HTTPProxy(address, user, ssl_context=tls, network_backend=wire)

    def _new_wire(self, home: str) -> Wire:
        wire = Wire(self.title, home, self.patience)
        self._wires.append(wire)
        if self._stopping.is_set():
            wire.stop()
        return wire


def reason(body: bytes) -> str:
    """Return the first message of an error's body (distribution-spec, "Error Codes"), to follow a status; or ""."""
    try:
        errors = Document(parse_json(body, "answer"), "answer").documents("errors")
        text = errors[0].text("message", "") or errors[0].text("code", "")
    except (ImageError, IndexError):
        return ""
    return f" ({printable(text[:200])})" if text else ""


def _retry_after(text: str) -> float:
    """Return the seconds that a header `Retry-After` asks for, which has a number or a date (RFC 9110, 10.2.3)."""
    if text.isascii() and text.isdigit():
        return float(min(int(text[:10]), 1 << 30))
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0


def _cause(error: BaseException) -> BaseException:
    """Return the exception of the standard library behind one of httpcore's."""
    while (below := error.__cause__ or error.__context__) is not None:
        error = below
    return error


def _hint(cause: BaseException) -> str:
    if isinstance(cause, ssl.SSLError):
        return "; does it speak TLS? If not, use --plain-http"
    return ""


def _text(error: BaseException) -> str:
    cause = _cause(error)
    text = os.strerror(cause.errno) if isinstance(cause, OSError) and cause.errno and cause.errno > 0 else str(error)
    if isinstance(cause, ssl.SSLError):
        text = cause.reason or str(cause)
    return printable(text[:200]) or type(error).__name__
