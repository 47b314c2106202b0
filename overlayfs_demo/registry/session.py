"""A connection to a registry, with the user's credentials, for as long as one command needs it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from overlayfs_demo.images.reference import Repository
from overlayfs_demo.registry.auth import Authorizer
from overlayfs_demo.registry.client import Client
from overlayfs_demo.registry.credentials import Credentials, DockerConfig, config_path
from overlayfs_demo.registry.endpoint import Endpoint
from overlayfs_demo.registry.patience import Patience
from overlayfs_demo.registry.remote import Remote


@dataclass(frozen=True, slots=True)
class Ways:
    """How registries are spoken to: with `plain_http`, without TLS wherever they are."""

    plain_http: bool = False
    patience: Patience = field(default_factory=Patience)


@contextmanager
def remote(repository: Repository, actions: str, ways: Ways, sources: Sequence[str] = ()) -> Iterator[Remote]:
    """Give a repository of its registry, for "pull" or "pull,push", as `connected` does.

    `sources` are the paths of other repositories there, from which blobs may be mounted.
    """
    scopes = [f"repository:{repository.path}:{actions}", *(f"repository:{path}:pull" for path in sources)]
    credentials = DockerConfig(config_path()).find(repository.domain)
    with connected(repository.domain, credentials, scopes, ways) as client:
        yield Remote(client, repository)


@contextmanager
def connected(domain: str, credentials: Credentials | None, scopes: Sequence[str], ways: Ways) -> Iterator[Client]:
    """Give a client of a registry. Whatever happens, its threads have no connection afterwards. Raises RegistryError.

    A registry on loopback is spoken to without TLS if it understands that, as docker does.
    """
    endpoint = Endpoint.of(domain, plain_http=ways.plain_http)
    if endpoint.scheme == "http" and not ways.plain_http and not _speaks_plainly(endpoint, ways):
        endpoint = endpoint.secure
    authorizer = Authorizer(domain, credentials, scopes, endpoint.scheme == "https")
    client = Client(endpoint, authorizer, ways.patience)
    try:
        yield client
    finally:
        client.stop()
        client.close()


def _speaks_plainly(endpoint: Endpoint, ways: Ways) -> bool:
    client = Client(endpoint, Authorizer(endpoint.domain, None, (), False), ways.patience)
    try:
        return client.speaks_plainly()
    finally:
        client.close()
