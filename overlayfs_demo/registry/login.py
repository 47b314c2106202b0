"""Checks of a user and password with a registry."""

from __future__ import annotations

import re

from overlayfs_demo.errors import RegistryError, UsageError, printable
from overlayfs_demo.registry.credentials import Credentials
from overlayfs_demo.registry.session import Ways, connected

HUB = "docker.io"
_DOMAIN = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?(?::[0-9]{1,5})?|\[[0-9A-Fa-f:]+\](?::[0-9]{1,5})?")
# What Docker Hub is also called.
_HUB_NAMES = ("index.docker.io", "registry-1.docker.io", "registry.hub.docker.com")


def server_domain(text: str) -> str:
    """Return the domain of a registry that a person names; a URL will do. Raises UsageError."""
    domain = text.removeprefix("https://").removeprefix("http://").partition("/")[0]
    if not _DOMAIN.fullmatch(domain):
        raise UsageError(f"'{printable(text)}' is not the address of a registry", "write DOMAIN[:PORT]")
    return HUB if domain in _HUB_NAMES else domain


def check(domain: str, credentials: Credentials, ways: Ways) -> None:
    """Return if a registry lets this user in, or anyone. Raises RegistryError."""
    with connected(domain, credentials, (), ways) as client:
        reply = client.exchange("GET", "/v2/", "the login")
        if reply.status == 404:
            raise RegistryError(f"{client.title} is not a registry: it has no /v2/", "check the address")
        if reply.status != 200:
            raise client.refusal("the login", reply.status, reply.body)
