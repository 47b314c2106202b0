"""Do credentials go where they belong, and nowhere else?"""

from __future__ import annotations

import base64
import json
import threading
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from overlayfs_demo.errors import RegistryError
from overlayfs_demo.images.reference import ImageName
from overlayfs_demo.registry.auth import Authorizer, Challenge, TokenRequest
from overlayfs_demo.registry.credentials import Credentials
from overlayfs_demo.store.store import Store
from tests.images.builders import Blobs, layer
from tests.registry.fake import Call, Fake, pulled, pushed, serving

ME = Credentials("me", "pass:word")


@pytest.fixture
def app(fake: Fake) -> Fake:
    blobs = Blobs()
    fake.put("app", "1", blobs, blobs.image([layer({"a": "1"}), layer({"b": "2"})]))
    return fake


def log_in(docker_config: Path, domain: str, **entry: str) -> None:
    entry = entry or {"auth": base64.b64encode(b"me:pass:word").decode()}
    docker_config.parent.mkdir(exist_ok=True)
    docker_config.write_text(json.dumps({"auths": {domain: entry}}))


class Tokens:
    """Asks for a token, and issues them at /token. The first is good for so many requests, others for many."""

    def __init__(self, fake: Fake, challenge: str = "", valid_for: int = 1000, later: int = 1000) -> None:
        self.fake = fake
        self.challenge = challenge or f'Bearer realm="http://{fake.domain}/token?x=1",service="the registry"'
        self.valid_for = valid_for
        self.later = later
        self.issued = 0
        self.used = 0
        self.forms: list[str] = []
        self._lock = threading.Lock()

    def __call__(self, call: Call) -> bool:
        with self._lock:
            if urlsplit(call.path).path == "/token":
                self.issued, self.used = self.issued + 1, 0
                self.valid_for = self.valid_for if self.issued == 1 else self.later
                if call.command == "POST":
                    self.forms.append(call.body().decode())
                return call.answer(200, json.dumps({"access_token": f"t{self.issued}"}).encode())
            self.used += 1
            if call.headers.get("Authorization") == f"Bearer t{self.issued}" and self.used <= self.valid_for:
                return False
            call.body()
            return call.answer(401, WWW_Authenticate=self.challenge)


def test_token_is_requested_once_for_what_is_needed(app: Fake, store: Store, docker_config: Path) -> None:
    log_in(docker_config, app.domain)
    app.trap = tokens = Tokens(app)
    pulled(app, store)
    assert tokens.issued == 1
    [request] = [request for request in app.seen if request.path.startswith("/token")]
    assert parse_qs(urlsplit(request.path).query) == {
        "x": ["1"],
        "service": ["the registry"],
        "scope": ["repository:app:pull"],
        "account": ["me"],
    }
    assert request.headers["Authorization"] == ME.basic


def test_without_a_login_the_token_is_requested_anonymously(app: Fake, store: Store) -> None:
    app.trap = Tokens(app)
    pulled(app, store)
    assert not [
        request
        for request in app.seen
        if request.path.startswith("/token") and ("Authorization" in request.headers or "account" in request.path)
    ]


def test_expired_token_is_replaced(app: Fake, store: Store) -> None:
    app.trap = tokens = Tokens(app, valid_for=2)
    pulled(app, store)
    assert tokens.issued > 1


def test_expired_token_is_replaced_in_the_middle_of_a_push(app: Fake, store: Store) -> None:
    image = pulled(app, store).image
    with store.writing():
        store.name_image(ImageName.parse(f"{app.domain}/copy:1"), image.id)
    app.blobs.clear()
    app.trap = tokens = Tokens(app, valid_for=3)
    pushed(app, store, "copy:1")
    assert tokens.issued > 1
    assert ("copy", "1") in app.manifests


def test_identity_token_is_exchanged_by_a_form(app: Fake, store: Store, docker_config: Path) -> None:
    log_in(docker_config, app.domain, identitytoken="identity")
    app.trap = tokens = Tokens(app)
    pulled(app, store)
    form = parse_qs(tokens.forms[0])
    assert (form["grant_type"], form["refresh_token"]) == (["refresh_token"], ["identity"])
    assert "Authorization" not in next(seen for seen in app.seen if seen.path.startswith("/token")).headers


def test_token_server_that_redirects_does_not_get_the_password_elsewhere(
    app: Fake, store: Store, docker_config: Path
) -> None:
    log_in(docker_config, app.domain)
    with serving(Fake(), "127.0.0.2") as thief:
        tokens = Tokens(app)
        app.trap = lambda call: (
            call.answer(307, Location=f"http://{thief.domain}/") if call.path.startswith("/token") else tokens(call)
        )
        with pytest.raises(RegistryError, match="token service to the request for a token is status 307"):
            pulled(app, store)
        assert not thief.seen


@pytest.mark.parametrize("realm", ["file:///etc/shadow", "", "http://u:p@127.0.0.1/", "http://[::1", "/token"])
def test_realm_that_is_not_an_address(app: Fake, store: Store, realm: str) -> None:
    app.trap = Tokens(app, f'Bearer realm="{realm}"')
    with pytest.raises(RegistryError, match=rf"registry {app.domain} names an address for tokens that is not https"):
        pulled(app, store)


def test_realm_at_the_metadata_address(app: Fake, store: Store) -> None:
    app.trap = Tokens(app, 'Bearer realm="http://169.254.169.254/latest/api/token"')
    with pytest.raises(RegistryError, match=rf"registry {app.domain} sends us to 169.254.169.254, whose address is pr"):
        pulled(app, store)


def test_registry_with_tls_must_issue_tokens_with_tls() -> None:
    authorizer = Authorizer("example.org", ME, (), secure=True)
    with pytest.raises(RegistryError, match=r"names an address for tokens that is not https: http://example\.org/"):
        authorizer.renew(['Bearer realm="http://example.org/"'], "", lambda _request: (200, b"{}"))


@pytest.mark.parametrize("answer", [b"", b"[]", b"{}", b'{"token": 7}', b'{"token": "a\\r\\nX-Evil: 1"}'])
def test_token_that_is_not_one(app: Fake, store: Store, answer: bytes) -> None:
    tokens = Tokens(app)
    app.trap = lambda call: call.answer(200, answer) if call.path.startswith("/token") else tokens(call)
    with pytest.raises(RegistryError, match=rf"registry {app.domain}: the answer of its token service"):
        pulled(app, store)


def test_token_that_is_never_accepted_is_an_error_that_says_log_in(app: Fake, store: Store) -> None:
    app.trap = Tokens(app, valid_for=0, later=0)
    with pytest.raises(
        RegistryError, match=rf"{app.domain} .* denies access without a login.*'overlayfs-demo login {app.domain}'"
    ):
        pulled(app, store)
    assert len(app.seen) < 10


def test_basic_credentials_are_sent_only_when_asked(app: Fake, store: Store, docker_config: Path) -> None:
    log_in(docker_config, app.domain)
    app.trap = lambda call: (
        "/v2/app" in call.path
        and call.headers.get("Authorization") != ME.basic
        and call.answer(401, WWW_Authenticate='Basic realm="x"')
    )
    pulled(app, store)
    assert [("Authorization" in seen.headers) for seen in app.seen][:4] == [False, False, True, True]


def test_wrong_password_is_told_once(app: Fake, store: Store, docker_config: Path) -> None:
    log_in(docker_config, app.domain, username="me", password="wrong")
    app.trap = lambda call: call.answer(401, WWW_Authenticate='Basic realm="x"')
    with pytest.raises(RegistryError, match="does not accept the user or password") as caught:
        pulled(app, store)
    assert "wrong" not in str(caught.value)
    assert len(app.seen) == 3


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        (['Bearer realm="https://a/t",service="s",scope="x,y"'], Challenge("bearer", "https://a/t", "s")),
        (["bearer realm=https://a/t, service=s"], Challenge("bearer", "https://a/t", "s")),
        (['Basic realm="a\\"b"', 'Bearer realm="https://a/t"'], Challenge("bearer", "https://a/t", "")),
        (['Basic realm="a\\"b"'], Challenge("basic", 'a"b', "")),
        (["Negotiate"], None),
        ([], None),
    ],
)
def test_challenges(headers: list[str], found: Challenge | None) -> None:
    assert Challenge.parse(headers) == found


def test_only_one_of_many_threads_asks_for_a_new_token() -> None:
    asked: list[TokenRequest] = []

    def fetch(request: TokenRequest) -> tuple[int, bytes]:
        asked.append(request)
        return 200, b'{"token": "new"}'

    authorizer = Authorizer("a.example", None, (), secure=True)
    threads = [
        threading.Thread(target=authorizer.renew, args=(['Bearer realm="https://a.example/"'], "", fetch))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(asked), authorizer.header) == (1, "Bearer new")
