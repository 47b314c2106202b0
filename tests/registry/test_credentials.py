"""Are credentials found and kept where docker has them?"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from overlayfs_demo.errors import RegistryError
from overlayfs_demo.registry.credentials import Credentials, DockerConfig

ME = Credentials("me", "pass:word")
# base64 of "me:pass:word".
AUTH = "bWU6cGFzczp3b3Jk"

HELPER = """#!/bin/sh
dir=$(dirname "$0")
echo "$1" >>"$dir/calls"
case $1 in
store) cat >"$dir/kept" ;;
erase) rm -f "$dir/kept" ;;
get)
    read -r server
    if grep -qs "\\"$server\\"" "$dir/kept"; then cat "$dir/kept"
    else echo "credentials not found in native keychain"; exit 1; fi ;;
esac
"""


@pytest.fixture
def path(docker_config: Path) -> Path:
    docker_config.parent.mkdir()
    return docker_config


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of the helper `test`, and of what it keeps."""
    directory = tmp_path / "helper"
    directory.mkdir()
    (directory / "docker-credential-test").write_text(HELPER)
    (directory / "docker-credential-test").chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
    return directory


@pytest.mark.parametrize("key", ["reg.example:5000", "https://reg.example:5000", "http://reg.example:5000/v1/"])
def test_registry_is_found_under_each_of_its_keys(path: Path, key: str) -> None:
    path.write_text(json.dumps({"auths": {"reg.example": {"auth": "eDp5"}, key: {"auth": AUTH}}}))
    assert DockerConfig(path).find("reg.example:5000") == ME


def test_docker_hub_has_its_old_key(path: Path) -> None:
    DockerConfig(path).keep("docker.io", ME)
    assert json.loads(path.read_text()) == {"auths": {"https://index.docker.io/v1/": {"auth": AUTH}}}
    assert DockerConfig(path).find("docker.io") == ME


def test_missing_file_has_no_credentials(docker_config: Path) -> None:
    assert DockerConfig(docker_config).find("reg.example") is None
    assert not DockerConfig(docker_config).forget("reg.example")
    assert not docker_config.exists()


def test_kept_file_is_private_and_keeps_what_else_is_in_it(path: Path) -> None:
    before = {"auths": {"other": {"auth": "eDp5"}}, "HttpHeaders": {"a": "b"}, "unknown": [1]}
    path.write_text(json.dumps(before))
    path.chmod(0o644)
    DockerConfig(path).keep("reg.example", ME)
    after = json.loads(path.read_text())
    assert after == {**before, "auths": {"other": {"auth": "eDp5"}, "reg.example": {"auth": AUTH}}}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(path.parent) == ["config.json"]
    assert DockerConfig(path).forget("reg.example")
    assert json.loads(path.read_text()) == before


def test_linked_file_stays_a_link(path: Path, tmp_path: Path) -> None:
    (tmp_path / "real.json").write_text("{}")
    path.symlink_to(tmp_path / "real.json")
    DockerConfig(path).keep("reg.example", ME)
    assert path.is_symlink()
    assert DockerConfig(tmp_path / "real.json").find("reg.example") == ME


@pytest.mark.parametrize("setting", [{"credsStore": "test"}, {"credHelpers": {"reg.example": "test"}}])
def test_helper_keeps_the_secret_and_the_file_does_not(path: Path, helper: Path, setting: dict[str, object]) -> None:
    path.write_text(json.dumps(setting))
    config = DockerConfig(path)
    assert config.find("reg.example") is None
    config.keep("reg.example", ME)
    assert json.loads((helper / "kept").read_text()) == {
        "ServerURL": "reg.example",
        "Username": "me",
        "Secret": "pass:word",
    }
    assert "pass" not in path.read_text() and AUTH not in path.read_text()
    assert DockerConfig(path).find("reg.example") == ME
    assert DockerConfig(path).forget("reg.example")
    assert not (helper / "kept").exists()


def test_helper_for_one_registry_is_not_asked_for_others(path: Path, helper: Path) -> None:
    path.write_text(json.dumps({"credHelpers": {"reg.example": "test"}}))
    assert DockerConfig(path).find("other.example") is None
    assert not (helper / "calls").exists()


def test_secret_of_the_user_token_is_an_identity_token(path: Path, helper: Path) -> None:
    path.write_text(json.dumps({"credsStore": "test"}))
    (helper / "kept").write_text('{"ServerURL": "reg.example", "Username": "<token>", "Secret": "identity"}')
    assert DockerConfig(path).find("reg.example") == Credentials("", "", "identity")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "not JSON"),
        ("[]", "must be a JSON object"),
        ('{"auths": 7}', "'auths' must be"),
        ('{"auths": {"reg.example": {"auth": "!"}}}', "'auth' of 'reg.example' is not base64 of USER:PASSWORD"),
        ('{"auths": {"reg.example": {"auth": "bWU="}}}', "'auth' of 'reg.example' is not base64 of USER:PASSWORD"),
        ('{"credsStore": "../../evil"}', "is not a name of a credential helper"),
        ('{"credsStore": "is-not-installed"}', "docker-credential-is-not-installed: No such file"),
        ('{"credsStore": 7}', "'credsStore' must be a string"),
    ],
)
def test_damaged_file_is_an_error_that_names_it(path: Path, text: str, match: str) -> None:
    path.write_text(text)
    with pytest.raises(RegistryError, match=match) as caught:
        DockerConfig(path).find("reg.example")
    assert str(path) in str(caught.value)


def test_helper_that_fails_is_an_error(path: Path, helper: Path) -> None:
    path.write_text(json.dumps({"credsStore": "test"}))
    (helper / "docker-credential-test").write_text("#!/bin/sh\necho the keychain is locked\nexit 2\n")
    with pytest.raises(RegistryError, match="docker-credential-test get failed: the keychain is locked"):
        DockerConfig(path).find("reg.example")


def test_password_is_not_in_a_representation() -> None:
    assert "pass" not in repr(ME)
