"""Do a real registry, and skopeo, podman and Docker on its other side, agree with us about images and digests?

Each test is skipped where its tool is missing.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from overlayfs_demo.cli import main as cli
from tests.images.builders import docker_save, docker_save_many, layer
from tests.places import MINUTE
from tests.real_docker import succeeds, tool

BASE, APP = layer({"etc/motd": "hello\n", "bin/sh": "x" * 100_000}), layer({"app/run": os.urandom(50_000).hex()})
# The password is "secret".
HTPASSWD = "me:$2b$04$ESgQuocAHsVcRPzETUA8b.g2XwPCqanDLpNFHwM/vUXF.0iuHRKqm\n"

Ours = Callable[..., str]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextmanager
def registry(where: Path, **more: object) -> Iterator[str]:
    """Run Debian's registry with a configuration of our own, and give its domain."""
    program = tool("docker-registry")  # apt-get install docker-registry
    where.mkdir()
    domain = f"localhost:{free_port()}"
    settings = {
        "version": 0.1,
        "log": {"level": "error"},
        "storage": {"filesystem": {"rootdirectory": str(where / "data")}, "delete": {"enabled": True}},
        "http": {"addr": domain.replace("localhost", "127.0.0.1")},
        **more,
    }
    if "tls" in more:
        settings["http"] = {**settings["http"], "tls": settings.pop("tls")}  # type: ignore[dict-item]
    # JSON is YAML.
    (where / "config.yml").write_text(json.dumps(settings))
    with (where / "log").open("wb") as log:
        process = subprocess.Popen([program, "serve", where / "config.yml"], stdout=log, stderr=log)
        try:
            wait_for(process, domain, where / "log")
            yield domain
        finally:
            process.terminate()
            process.wait(MINUTE)


def wait_for(process: subprocess.Popen[bytes], domain: str, log: Path) -> None:
    deadline = time.monotonic() + MINUTE
    while True:
        try:
            socket.create_connection(("127.0.0.1", int(domain.rpartition(":")[2]))).close()
            return
        except OSError:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)


@pytest.fixture
def domain(tmp_path: Path) -> Iterator[str]:
    with registry(tmp_path / "registry") as found:
        yield found


@pytest.fixture
def ours(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Ours:
    """Run a verb that must succeed, on a store of its own or on that of the given name; return what it printed."""

    def run(verb: str, *words: str | Path, store: str = "store") -> str:
        capfd.readouterr()
        place = [] if verb in ("login", "logout") else ["--store", str(tmp_path / store)]
        status = cli.main([verb, *place, *map(str, words)])
        out, err = capfd.readouterr()
        assert status == 0, err
        return out

    return run


@pytest.fixture
def app(domain: str, ours: Ours, tmp_path: Path) -> str:
    """The name of an image of two layers in the store, whose repository is in the registry."""
    name = f"{domain}/team/app:1"
    (tmp_path / "image.tar").write_bytes(docker_save([BASE, APP], name))
    ours("load", tmp_path / "image.tar")
    return name


def image_id(ours: Ours, name: str, store: str = "store") -> str:
    return ours("images", "--no-trunc", "--quiet", name, store=store).strip()


def pushed_digest(out: str) -> str:
    [line] = [line for line in out.splitlines() if ": digest: " in line]
    return line.partition("digest: ")[2].partition(" ")[0]


def test_pushed_image_comes_back_the_same(app: str, ours: Ours) -> None:
    digest = pushed_digest(ours("push", app))
    out = ours("pull", app, store="other")
    assert f"Digest: {digest}\nStatus: Downloaded newer image for {app}\n{app}\n" in out
    assert image_id(ours, app, "other") == image_id(ours, app)


def test_two_images_on_one_base_send_the_base_once(domain: str, ours: Ours, tmp_path: Path) -> None:
    names = [f"{domain}/one:1", f"{domain}/two:1"]
    archive = docker_save_many({names[0]: [BASE, APP], names[1]: [BASE, layer({"other": "1"})]})
    (tmp_path / "both.tar").write_bytes(archive)
    ours("load", tmp_path / "both.tar")
    ours("push", names[0])
    out = ours("push", names[1])
    assert ": Mounted from one\n" in out
    assert "pushed 2 layers: 1 was there (" in out
    ours("pull", names[0], store="other")
    out = ours("pull", names[1], store="other")
    assert ": Already exists\n" in out
    assert "pulled 2 layers: 1 was here (" in out


def test_skopeo_sees_the_digests_that_we_print(app: str, ours: Ours, tmp_path: Path) -> None:
    digest = pushed_digest(ours("push", app))
    skopeo = tool("skopeo")
    told = json.loads(succeeds(skopeo, "inspect", "--tls-verify=false", f"docker://{app}"))
    assert told["Digest"] == digest
    succeeds(
        skopeo, "--insecure-policy", "copy", "--src-tls-verify=false", f"docker://{app}", f"dir:{tmp_path / 'dir'}"
    )
    ours("load", tmp_path / "dir", store="other")
    assert ours("images", "--no-trunc", "--quiet", store="other").strip() == image_id(ours, app)


@pytest.mark.parametrize("form", ["oci", "v2s2"])
def test_what_skopeo_pushed_is_pulled(app: str, ours: Ours, tmp_path: Path, form: str) -> None:
    skopeo, target = tool("skopeo"), app.replace("team/app", "skopeo")
    words = ("--insecure-policy", "copy", "--format", form, "--dest-tls-verify=false")
    succeeds(skopeo, *words, f"docker-archive:{tmp_path / 'image.tar'}", f"docker://{target}")
    told = json.loads(succeeds(skopeo, "inspect", "--tls-verify=false", f"docker://{target}"))
    out = ours("pull", target, store="other")
    assert f"Digest: {told['Digest']}\n" in out
    if form == "v2s2":  # For OCI, skopeo rewrites the config.
        assert image_id(ours, target, "other") == image_id(ours, app)


def test_podman_pulls_what_we_pushed_and_we_pull_what_it_pushed(
    app: str, ours: Ours, tmp_path: Path, docker_config: Path
) -> None:
    podman = tool("podman")
    docker_config.parent.mkdir()
    docker_config.write_text("{}")  # podman wants it to be there.
    ours("push", app)
    with tempfile.TemporaryDirectory(prefix="podman-") as short:  # podman wants a path of 50 characters at most.
        place = (podman, "--root", tmp_path / "podman", "--runroot", short, "--storage-driver", "vfs")
        pulled = succeeds(*place, "pull", "-q", "--tls-verify=false", app).strip()
        assert f"sha256:{pulled}" == image_id(ours, app)
        back = app.replace("team/app", "podman")
        succeeds(*place, "push", "-q", "--tls-verify=false", pulled, f"docker://{back}")
    ours("pull", back, store="other")
    assert image_id(ours, back, "other") == image_id(ours, app)


def test_docker_pulls_what_we_pushed_and_we_pull_what_it_pushed(docker: list[str | Path], app: str, ours: Ours) -> None:
    digest = pushed_digest(ours("push", app))
    out = succeeds(*docker, "pull", app)
    assert f"Digest: {digest}\n" in out
    assert succeeds(*docker, "inspect", "--format", "{{.Id}}", app).strip() == image_id(ours, app)
    back = app.replace("team/app", "docker")
    succeeds(*docker, "tag", app, back)
    theirs = pushed_digest(succeeds(*docker, "push", back))
    assert f"Digest: {theirs}\n" in ours("pull", back, store="other")
    assert image_id(ours, back, "other") == image_id(ours, app)


def test_login_opens_a_registry_and_logout_closes_it(tmp_path: Path, ours: Ours, docker_config: Path) -> None:
    (tmp_path / "htpasswd").write_text(HTPASSWD)
    with registry(tmp_path / "private", auth={"htpasswd": {"realm": "x", "path": str(tmp_path / "htpasswd")}}) as place:
        name = f"{place}/app:1"
        (tmp_path / "image.tar").write_bytes(docker_save([BASE], name))
        ours("load", tmp_path / "image.tar")
        assert cli.main(["push", "--store", str(tmp_path / "store"), name]) == 1
        assert cli.main(["login", "-u", "me", "-p", "wrong", place]) == 1
        assert not docker_config.exists()
        assert ours("login", "-u", "me", "-p", "secret", place) == "Login Succeeded\n"
        ours("push", name)
        ours("pull", name, store="other")
        ours("logout", place)
        assert cli.main(["pull", "--store", str(tmp_path / "other"), name]) == 1


def test_registry_with_tls_needs_a_certificate_that_is_trusted(
    tmp_path: Path, ours: Ours, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    request = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")
    names = ("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost")
    succeeds(tool("openssl"), *request, *names, "-keyout", key, "-out", certificate)
    with registry(tmp_path / "secure", tls={"certificate": str(certificate), "key": str(key)}) as place:
        name = f"{place}/app:1"
        (tmp_path / "image.tar").write_bytes(docker_save([BASE], name))
        ours("load", tmp_path / "image.tar")
        assert cli.main(["push", "--store", str(tmp_path / "store"), name]) == 1
        assert f"the certificate of {place} is not valid: self-signed certificate" in capfd.readouterr().err
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        ours("push", name)
        ours("pull", name, store="other")
