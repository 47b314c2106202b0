"""Authorization for the requests to one registry: basic, or a token that a third party issues.

The rules are those of distribution's docs (spec/auth/token, jwt, oauth) and RFC 9110, 11.6.1.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlencode

from overlayfs_demo.errors import ImageError, RegistryError, printable
from overlayfs_demo.images.model import Document, parse_json
from overlayfs_demo.registry.credentials import Credentials
from overlayfs_demo.registry.urls import require_url

_CLIENT = "overlayfs-demo"
_PARAMETER = re.compile(r"""([A-Za-z]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))""")
_TOKEN = re.compile(r"[!-~]+")


@dataclass(frozen=True, slots=True)
class Challenge:
    """What a registry asks for: `scheme` is "bearer" or "basic", in lower case."""

    scheme: str
    realm: str
    service: str

    @classmethod
    def parse(cls, headers: Sequence[str]) -> Challenge | None:
        """Read the values of `WWW-Authenticate`. A token is preferred; None if neither scheme is offered."""
        found: dict[str, Challenge] = {}
        for header in headers:
            scheme, _, rest = header.strip().partition(" ")
            fields = {
                name.lower(): re.sub(r"\\(.)", r"\1", quoted) or bare for name, quoted, bare in _PARAMETER.findall(rest)
            }
            found[scheme.lower()] = cls(scheme.lower(), fields.get("realm", ""), fields.get("service", ""))
        return found.get("bearer") or found.get("basic")


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """A request for a token: a GET, or a POST of `form` if there is one."""

    url: str
    headers: Mapping[str, str]
    form: bytes | None


# Asks for a token, and returns the status and the answer.
Fetch = Callable[[TokenRequest], tuple[int, bytes]]


class Authorizer:
    """The header `Authorization` for requests to a registry's own host. Several threads may use it."""

    def __init__(self, domain: str, credentials: Credentials | None, scopes: Sequence[str], secure: bool) -> None:
        """`scopes` are what a token must allow. With `secure`, a token must come by TLS, too."""
        self._domain = printable(domain)
        self._credentials = credentials
        self._scopes = scopes
        self._secure = secure
        self._header = ""
        self._lock = threading.Lock()

    @property
    def header(self) -> str:
        """The present value; "" while the registry has not asked for one."""
        return self._header

    def renew(self, challenges: Sequence[str], used: str, fetch: Fetch) -> bool:
        """Answer a challenge to a request that had the header `used`.

        Returns False if there is no better answer than that. Raises RegistryError.
        """
        with self._lock:
            if self._header != used:
                return True  # Another thread did it.
            challenge = Challenge.parse(challenges)
            if challenge is None:
                return False
            if challenge.scheme == "basic":
                new = self._credentials.basic if self._credentials and self._credentials.user else ""
            else:
                new = f"Bearer {self._token(challenge, fetch)}"
            if new == used:
                return False
            self._header = new
            return True

    def _token(self, challenge: Challenge, fetch: Fetch) -> str:
        status, answer = fetch(self._request(challenge))
        where = f"registry {self._domain}: the answer of its token service"
        if status in (400, 401, 403):
            raise self.denied()
        if status != 200:
            raise RegistryError(f"{where} to the request for a token is status {status}", "try again later")
        try:
            row = Document(parse_json(answer, where), where)
            token = row.text("token", "") or row.text("access_token", "")
        except ImageError as error:
            raise RegistryError(error.problem, "report this to those who run it") from None
        if not _TOKEN.fullmatch(token):
            raise RegistryError(f"{where} has no valid token", "report this to those who run it")
        return token

    def denied(self) -> RegistryError:
        """Return the error for a registry that does not let us in."""
        login = f"'overlayfs-demo login{'' if self._domain == 'docker.io' else f' {self._domain}'}'"
        if self._credentials is None:
            problem = f"registry {self._domain} has no such repository, or denies access without a login"
            return RegistryError(problem, f"log in with {login}")
        return RegistryError(
            f"registry {self._domain} does not accept the user or password, or they may not do this",
            f"log in again with {login}",
        )

    def _request(self, challenge: Challenge) -> TokenRequest:
        realm = require_url(challenge.realm, self._domain, "tokens", secure=self._secure)
        fields = [("service", challenge.service)] if challenge.service else []
        given = self._credentials
        if given is not None and given.identity_token:
            form = [
                ("grant_type", "refresh_token"),
                ("client_id", _CLIENT),
                ("refresh_token", given.identity_token),
                ("scope", " ".join(self._scopes)),
                *fields,
            ]
            headers = {"Content-Type": "application/x-www-form-urlencoded"}
            return TokenRequest(challenge.realm, headers, urlencode(form).encode())
        fields += [("scope", scope) for scope in self._scopes]
        if given is not None:
            fields.append(("account", given.user))
        separator = "&" if realm.query else "?"
        url = challenge.realm + (f"{separator}{urlencode(fields)}" if fields else "")
        return TokenRequest(url, {"Authorization": given.basic} if given is not None else {}, None)
