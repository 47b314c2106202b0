"""Users and passwords, where docker keeps them: `config.json`, and the credential helpers that it names.

The file's fields are those of docker/cli (cli/config/configfile); the protocol of helpers is that of
docker/docker-credential-helpers.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from overlayfs_demo.errors import ImageError, RegistryError, printable
from overlayfs_demo.images.model import Document, parse_json
from overlayfs_demo.images.record_file import read_file

_HUB, _HUB_KEY = "docker.io", "https://index.docker.io/v1/"
_HELPER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# With this user name, a helper's secret is an identity token.
_TOKEN_USER = "<token>"
_HELPER_SECONDS = 120
_NOT_FOUND = "credentials not found"


@dataclass(frozen=True, slots=True, repr=False)
class Credentials:
    """A user and a password, or an `identity_token` that an earlier login got instead of a password."""

    user: str
    password: str
    identity_token: str = ""

    @property
    def basic(self) -> str:
        """The value of a header `Authorization` (RFC 7617)."""
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()


def config_path() -> Path:
    """Return the path of docker's configuration: in DOCKER_CONFIG, or in the user's home."""
    directory = os.environ.get("DOCKER_CONFIG")
    return (Path(directory) if directory else Path.home() / ".docker") / "config.json"


class DockerConfig:
    """Docker's configuration of a user. Every method raises RegistryError if the file or a helper does not work."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._name = printable(os.fspath(path))
        self._advice = "mend the file, or set DOCKER_CONFIG to another directory"
        try:
            value = parse_json(read_file(path), self._name)
            self._document = Document(value, self._name)
        except FileNotFoundError:
            value = {}
            self._document = Document(value, self._name)
        except ImageError as error:
            raise RegistryError(error.problem, self._advice) from None
        except OSError as error:
            raise RegistryError(f"{self._name}: {error.strerror}", self._advice) from None
        # What is written again is the whole object, unknown fields too.
        self._value: dict[str, Any] = value if isinstance(value, dict) else {}

    def find(self, domain: str) -> Credentials | None:
        """Return what was kept for a registry, None if nothing was."""
        try:
            if helper := self._helper(domain):
                return self._from_helper(helper, _key(domain))
            auths = self._document.document("auths")
            for key in auths:
                if _domain(key) == domain:
                    return self._decoded(auths.document(key), key)
        except ImageError as error:
            raise RegistryError(error.problem, self._advice) from None
        return None

    def helper_for(self, domain: str) -> str:
        """Return the name of the helper that keeps a registry's credentials; "" if the file itself does."""
        try:
            return self._helper(domain)
        except ImageError as error:
            raise RegistryError(error.problem, self._advice) from None

    def keep(self, domain: str, credentials: Credentials) -> None:
        """Keep the credentials of a registry, as `docker login` does."""
        key = _key(domain)
        if helper := self.helper_for(domain):
            user = _TOKEN_USER if credentials.identity_token else credentials.user
            secret = credentials.identity_token or credentials.password
            self._run(helper, "store", json.dumps({"ServerURL": key, "Username": user, "Secret": secret}))
            self._auths()[key] = {}
        else:
            pair = f"{credentials.user}:{credentials.password}".encode()
            entry = {"auth": base64.b64encode(pair).decode()}
            if credentials.identity_token:
                entry["identitytoken"] = credentials.identity_token
            self._auths()[key] = entry
        self._write()

    def forget(self, domain: str) -> bool:
        """Remove the credentials of a registry, and return whether there were any."""
        found = self.find(domain) is not None
        if found and (helper := self.helper_for(domain)):
            self._run(helper, "erase", _key(domain))
        auths = self._auths()
        keys = [key for key in auths if _domain(key) == domain]
        for key in keys:
            del auths[key]
        if keys:
            self._write()
        return found or bool(keys)

    def _auths(self) -> dict[str, Any]:
        auths = self._value.setdefault("auths", {})
        if not isinstance(auths, dict):
            raise RegistryError(f"{self._name}: 'auths' must be a JSON object", self._advice)
        return auths

    def _helper(self, domain: str) -> str:
        helpers = self._document.document("credHelpers")
        name = next((helpers.text(key) for key in helpers if _domain(key) == domain), "")
        name = name or self._document.text("credsStore", "")
        if name and not _HELPER.fullmatch(name):
            raise RegistryError(f"{self._name}: '{printable(name)}' is not a name of a credential helper", self._advice)
        return name

    def _decoded(self, entry: Document, key: str) -> Credentials | None:
        """Return the credentials in an entry of `auths`; an empty one belongs to a helper that is no longer used."""
        user, password = entry.text("username", ""), entry.text("password", "")
        token = entry.text("identitytoken", "")
        if text := entry.text("auth", ""):
            try:
                pair = base64.b64decode(text, validate=True).decode("utf-8")
            except (binascii.Error, ValueError):
                pair = ""
            user, colon, password = pair.rstrip("\0").partition(":")
            if not colon:
                raise RegistryError(
                    f"{self._name}: 'auth' of '{printable(key)}' is not base64 of USER:PASSWORD", "log in again"
                )
        return Credentials(user, password, token) if user or token else None

    def _from_helper(self, helper: str, key: str) -> Credentials | None:
        answer = self._run(helper, "get", key)
        if not answer:
            return None
        where = f"the answer of docker-credential-{helper}"
        row = Document(parse_json(answer.encode(), where), where)
        user, secret = row.text("Username", ""), row.text("Secret", "")
        return Credentials("", "", secret) if user == _TOKEN_USER else Credentials(user, secret)

    def _run(self, helper: str, action: str, text: str) -> str:
        """Run a helper and return its answer; "" if it has no such credentials."""
        program = f"docker-credential-{helper}"
        remedy = f"install it, or remove it from {self._name}"
        try:
            done = subprocess.run(
                [program, action],
                input=text,
                stdout=subprocess.PIPE,
                text=True,
                encoding="utf-8",
                errors="replace",
                timeout=_HELPER_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise RegistryError(f"{program} does not answer", remedy) from None
        except OSError as error:
            raise RegistryError(f"{program}: {error.strerror}", remedy) from None
        if done.returncode != 0:
            if _NOT_FOUND in done.stdout.lower():
                return ""
            raise RegistryError(f"{program} {action} failed: {printable(done.stdout.strip()[:200])}", remedy)
        return done.stdout

    def _write(self) -> None:
        """Replace the file; only the user may read it. A link to it stays, as with docker."""
        target = Path(os.path.realpath(self._path))
        unfinished = target.with_name(f".{target.name}.{os.urandom(8).hex()}")
        try:
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                with os.fdopen(fd, "wb") as file:
                    # Docker indents with a tab.
                    file.write(json.dumps(self._value, indent="\t").encode())
                    file.flush()
                    os.fsync(file.fileno())
                unfinished.rename(target)
            finally:
                unfinished.unlink(missing_ok=True)
        except OSError as error:
            raise RegistryError(f"{self._name}: {error.strerror}", self._advice) from None


def _key(domain: str) -> str:
    """Return the name of a registry in docker's configuration; Docker Hub keeps an old one."""
    return _HUB_KEY if domain == _HUB else domain


def _domain(key: str) -> str:
    """Return the registry that a key means: old keys are URLs (docker/cli, ConvertToHostname)."""
    host = key.removeprefix("https://").removeprefix("http://").partition("/")[0]
    return _HUB if host in ("index.docker.io", "registry-1.docker.io") else host
