"""Where may a registry send us? Names are resolved to what a test says, and no connection leaves this process."""

from __future__ import annotations

import socket
from typing import Any

import httpcore
import pytest

from overlayfs_demo.errors import RegistryError
from overlayfs_demo.registry.wire import Wire
from tests.registry.fake import QUICK

NAMES = {
    "public.example": ["93.184.216.34"],
    "other.example": ["2606:2800:220:1::1", "93.184.216.35"],
    "corporate.example": ["10.1.2.3"],
    "storage.corporate.example": ["10.9.9.9"],
    "localhost": ["127.0.0.1"],
    "metadata.example": ["169.254.169.254"],
    "metadata-v6.example": ["fe80::1"],
    # Resolvers give all addresses of a name; one bad one is enough.
    "mixed.example": ["93.184.216.36", "127.0.0.1"],
    "nat64.example": ["64:ff9b::a9fe:a9fe"],
    "mapped.example": ["::ffff:10.0.0.1"],
}


class Dialled(Exception):
    """A connection to an address would be made."""


@pytest.fixture(autouse=True)
def network(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(host: str, port: int, **_: object) -> list[tuple[Any, ...]]:
        if host not in NAMES:
            raise socket.gaierror(-2, "Name or service not known")
        return [(None, None, None, "", (address, port)) for address in NAMES[host]]

    def dial(_self: object, host: str, *_: object) -> httpcore.NetworkStream:
        raise Dialled(host)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(httpcore.SyncBackend, "connect_tcp", dial)


def sent_to(home: str, host: str) -> str:
    """The address to which a registry's redirect to a host leads."""
    wire = Wire("registry x", home, QUICK)
    for name in dict.fromkeys((home, host)):
        with pytest.raises(Dialled) as dialled:
            wire.connect_tcp(name, 443)
    return str(dialled.value)


@pytest.mark.parametrize(
    ("home", "host", "address"),
    [
        ("public.example", "public.example", "93.184.216.34"),
        ("public.example", "other.example", "2606:2800:220:1::1"),
        ("corporate.example", "storage.corporate.example", "10.9.9.9"),
        ("corporate.example", "public.example", "93.184.216.34"),
        ("localhost", "corporate.example", "10.1.2.3"),
        ("localhost", "localhost", "127.0.0.1"),
        ("metadata.example", "metadata.example", "169.254.169.254"),
    ],
)
def test_address_that_is_as_public_as_the_registry_s_is_connected_to(home: str, host: str, address: str) -> None:
    assert sent_to(home, host) == address


@pytest.mark.parametrize(
    ("home", "host"),
    [
        ("public.example", "corporate.example"),
        ("public.example", "localhost"),
        ("public.example", "mixed.example"),
        ("public.example", "mapped.example"),
        ("public.example", "nat64.example"),
        ("mixed.example", "localhost"),
        ("corporate.example", "localhost"),
        ("localhost", "metadata.example"),
        ("localhost", "metadata-v6.example"),
        ("localhost", "nat64.example"),
        ("metadata.example", "metadata-v6.example"),
    ],
)
def test_address_that_is_less_public_is_refused(home: str, host: str) -> None:
    with pytest.raises(RegistryError, match=rf"registry x sends us to {host}, whose address is private"):
        sent_to(home, host)


def test_name_without_an_address_is_an_error_of_the_connection() -> None:
    with pytest.raises(httpcore.ConnectError, match="cannot be resolved"):
        Wire("registry x", "nowhere.example", QUICK).connect_tcp("nowhere.example", 443)


def test_stopped_wire_makes_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:

        class Stream(httpcore.NetworkStream):
            def close(self) -> None:
                ours.close()

        monkeypatch.setattr(httpcore.SyncBackend, "connect_tcp", lambda *_: Stream())
        wire = Wire("registry x", "public.example", QUICK)
        wire.stop()
        with pytest.raises(httpcore.ConnectError, match="interrupted"):
            wire.connect_tcp("public.example", 443)
        assert ours.fileno() == -1
