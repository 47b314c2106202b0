"""The connections to a registry: which addresses may be connected to, and how slow the other end may be.

A registry tells us where to fetch a token, where a blob is, and where to upload one. It must not use this to make us
talk to what only this machine can reach: a cloud's metadata service, or a service on loopback. Addresses are checked
after the name was resolved, and the checked address is the one that is connected to. So a name cannot change between.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import ssl
import threading
import time
import typing
from collections.abc import Iterable

import httpcore

from overlayfs_demo.errors import RegistryError, printable
from overlayfs_demo.registry.patience import Patience

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# How private an address is. A registry may only send us to addresses that are as public as its own, or more.
_PUBLIC, _PRIVATE, _LOOPBACK, _FORBIDDEN = range(4)
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
# Metadata services that have no link-local address: AWS by IPv6, and Alibaba.
_METADATA = frozenset(map(ipaddress.ip_address, ("fd00:ec2::254", "100.100.100.200")))


def _embedded(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """Return the IPv4 address to which an IPv6 address leads (RFC 4291, 2.5.5.2; RFC 3056; RFC 6052)."""
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour


def _privacy(address: _Address) -> int:
    if isinstance(address, ipaddress.IPv6Address):
        address = _embedded(address) or address
    if address.is_link_local or address.is_multicast or address.is_unspecified or address in _METADATA:
        return _FORBIDDEN
    if address.is_loopback:
        return _LOOPBACK
    return _PUBLIC if address.is_global else _PRIVATE


# So much is written at once, before the pace is checked.
_PIECE = 1 << 14


class Wire(httpcore.NetworkBackend):
    """Makes connections for one registry, whose own host is `home`. Several threads may use it."""

    def __init__(self, title: str, home: str, patience: Patience) -> None:
        """`title` names the registry in errors."""
        self._title = title
        self._home = home
        self._home_privacy = _PUBLIC
        self._patience = patience
        self._plain = httpcore.SyncBackend()
        self._open: set[_Stream] = set()
        self._lock = threading.Lock()
        self._stopped = False

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        """Connect to the first address of the host that answers. Raises RegistryError, httpcore.ConnectError."""
        problem: Exception = httpcore.ConnectError("the name has no address")
        for address in self._addresses(host, port):
            try:
                stream = self._plain.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                problem = error
                continue
            return self._watched(stream)
        raise problem

    def _addresses(self, host: str, port: int) -> list[str]:
        try:
            rows = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise httpcore.ConnectError(f"the name cannot be resolved: {error}") from None
        found = list(dict.fromkeys(str(row[4][0]) for row in rows))
        privacies = [_privacy(ipaddress.ip_address(address)) for address in found]
        if host == self._home:
            # The user named this host, so any address will do.
            self._home_privacy = min(*privacies, _LOOPBACK)
        elif max(privacies) > self._home_privacy:
            raise RegistryError(
                f"{self._title} sends us to {printable(host)}, whose address is private to this machine or network",
                "a registry may only name addresses that are as public as its own; do not use this one",
            )
        return found

    def _watched(self, stream: httpcore.NetworkStream) -> _Stream:
        watched = _Stream(self, stream, self._patience)
        with self._lock:
            if not self._stopped:
                self._open.add(watched)
                return watched
        stream.close()
        raise httpcore.ConnectError("interrupted")

    def forget(self, stream: _Stream) -> None:
        """Take note that a connection is closed."""
        with self._lock:
            self._open.discard(stream)

    def stop(self) -> None:
        """Make every thread that waits for the registry fail at once, and refuse new connections."""
        with self._lock:
            self._stopped = True
            streams = list(self._open)
        for stream in streams:
            stream.abort()


class _Pace:
    """How many bytes went one way, and how many seconds we waited for them, in the present stretch."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self.begin()

    def begin(self) -> None:
        """Begin another stretch."""
        self.bytes, self._seconds = 0, 0.0

    def add(self, count: int, start: float) -> bool:
        """Count bytes that we have waited for since `start`; return whether they come too slowly."""
        self._seconds += time.monotonic() - start
        self.bytes += count
        if self._seconds <= self._patience.window:
            return False
        slow = self.bytes < self._patience.least_rate * self._seconds
        self._text = f"{self.bytes} bytes in {self._seconds:.0f} seconds"
        self.begin()
        return slow

    def __str__(self) -> str:
        """The last stretch in words."""
        return self._text


class _Stream(httpcore.NetworkStream):
    """A connection that fails if the other end is too slow, which a timeout of each call does not notice."""

    def __init__(self, wire: Wire, inner: httpcore.NetworkStream, patience: Patience) -> None:
        self._wire = wire
        self._inner = inner
        self._received = _Pace(patience)
        self._sent = _Pace(patience)
        self._is_answering = False

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Read some bytes. Raises httpcore.ReadTimeout if they come too slowly."""
        start = time.monotonic()
        data = self._inner.read(max_bytes, timeout)
        # The first byte of an answer may take its time, within the timeout.
        if self._is_answering and self._received.add(len(data), start):
            raise httpcore.ReadTimeout(f"it sent {self._received}")
        self._is_answering = True
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Write all bytes. Raises httpcore.WriteTimeout if they are taken too slowly."""
        if self._is_answering:
            self._is_answering = False
            self._received.begin()
            self._sent.begin()
        for place in range(0, len(buffer), _PIECE):
            start = time.monotonic()
            piece = buffer[place : place + _PIECE]
            self._inner.write(piece, timeout)
            if self._sent.add(len(piece), start):
                raise httpcore.WriteTimeout(f"it took {self._sent}")

    def close(self) -> None:
        """Close the connection."""
        self._wire.forget(self)
        self._inner.close()

    def abort(self) -> None:
        """Let a thread that reads or writes fail at once."""
        inner = self._inner.get_extra_info("socket")
        with contextlib.suppress(OSError):
            # On the socket below TLS, whose own state belongs to the other thread.
            socket.socket.shutdown(inner, socket.SHUT_RDWR)

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        """Speak TLS from here on."""
        secure = self._inner.start_tls(ssl_context, server_hostname, timeout)
        self._wire.forget(self)
        return self._wire._watched(secure)

    def get_extra_info(self, info: str) -> typing.Any:
        """Return what httpcore asks about the connection."""
        return self._inner.get_extra_info(info)
