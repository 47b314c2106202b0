"""Where a registry is: the address that belongs to the domain of an image's name."""

from __future__ import annotations

import ipaddress
import os
import ssl
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from overlayfs_demo.errors import RegistryError, printable

_HUB, _HUB_HOST = "docker.io", "registry-1.docker.io"
# Where docker looks for the certificates of a registry: docs.docker.com, "Verify repository client with certificates".
_CERTIFICATES = Path("/etc/docker/certs.d")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A registry: its `domain` in names of images, and the `scheme` and `host` (with a port, if any) that serve it."""

    domain: str
    scheme: str
    host: str

    @classmethod
    def of(cls, domain: str, *, plain_http: bool = False) -> Endpoint:
        """Return the endpoint of a domain. It speaks TLS, unless it is on loopback or `plain_http` says otherwise."""
        host = _HUB_HOST if domain == _HUB else domain
        return cls(domain, "http" if plain_http or is_loopback(host) else "https", host)

    @property
    def secure(self) -> Endpoint:
        """The same registry with TLS."""
        return Endpoint(self.domain, "https", self.host)

    @property
    def origin(self) -> str:
        """The beginning of its URLs."""
        return f"{self.scheme}://{self.host}"

    @property
    def hostname(self) -> str:
        """The host without the port."""
        return urlsplit(self.origin).hostname or ""

    def tls(self) -> ssl.SSLContext:
        """Return what verifies its certificate: the system's authorities, and docker's directory for this registry.

        Raises RegistryError for a certificate file that cannot be read.
        """
        context = ssl.create_default_context()
        directory = _CERTIFICATES / self.host
        for path in sorted(directory.glob("*.crt")):
            try:
                context.load_verify_locations(path)
            except (OSError, ssl.SSLError) as error:
                raise RegistryError(
                    f"the certificate {printable(os.fspath(path))} cannot be read ({error})", "mend it, or move it away"
                ) from None
        return context


def is_loopback(host: str) -> bool:
    """Return whether a host, perhaps with a port, is this machine by its name: localhost, 127.0.0.0/8 or ::1."""
    name = urlsplit(f"//{host}").hostname or ""
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"
