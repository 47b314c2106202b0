"""What do the verbs about registries take, and what do they print?"""

from __future__ import annotations

import json
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from overlayfs_demo.cli import main as cli
from tests.conftest import wait_until
from tests.images.builders import Blobs, docker_save, layer
from tests.places import MINUTE, ROOT, run
from tests.registry.fake import Fake

BASE, APP = layer({"etc/motd": "hello\n"}), layer({"app/run": "#!"})

Said = tuple[int, str, str]


@pytest.fixture
def demo(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Run a verb: its exit status, and what it printed on stdout and stderr."""

    def run(verb: str, *words: str | Path) -> Said:
        capfd.readouterr()
        place = [] if verb in ("login", "logout") else ["--store", str(tmp_path / "store")]
        try:
            status = cli.main([verb, *place, *map(str, words)])
        except SystemExit as error:
            status = int(str(error.code))
        return status, *capfd.readouterr()

    return run


def put(fake: Fake, tag: str, *layers: bytes) -> list[str]:
    """Give the registry an image app:TAG; return the digests of its layers as they are shown."""
    blobs = Blobs()
    manifest = json.loads(fake.put("app", tag, blobs, blobs.image(layers)))
    return [row["digest"].removeprefix("sha256:")[:12] for row in manifest["layers"]]


def test_pull_prints_docker_s_lines_and_then_the_sum(fake: Fake, demo: Callable[..., Said]) -> None:
    [base] = put(fake, "latest", BASE)
    demo("pull", f"{fake.domain}/app")
    [_, app] = put(fake, "2", BASE, APP)
    status, out, err = demo("pull", f"{fake.domain}/app:2")
    lines = out.splitlines()
    assert (status, err) == (0, "")
    assert lines[:3] == ["2: Pulling from app", f"{base}: Already exists", f"{app}: Pull complete"]
    assert lines[3].startswith("Digest: sha256:")
    assert lines[4:6] == [f"Status: Downloaded newer image for {fake.domain}/app:2", f"{fake.domain}/app:2"]
    assert lines[6].startswith("pulled 2 layers: 1 was here (")
    assert ("B not transferred), 1 came (") in lines[6]
    _, out, _ = demo("pull", f"{fake.domain}/app")
    assert out.splitlines()[0] == "Using default tag: latest"
    assert f"Status: Image is up to date for {fake.domain}/app:latest\n" in out


def test_quiet_pull_prints_the_name(fake: Fake, demo: Callable[..., Said]) -> None:
    put(fake, "latest", BASE)
    assert demo("pull", "-q", f"{fake.domain}/app") == (0, f"{fake.domain}/app:latest\n", "")


def test_all_tags_are_pulled_and_pushed(fake: Fake, demo: Callable[..., Said]) -> None:
    put(fake, "1", BASE)
    put(fake, "2", BASE, APP)
    names = f"{fake.domain}/app:1\n{fake.domain}/app:2\n"
    assert demo("pull", "-a", "-q", f"{fake.domain}/app") == (0, names, "")
    fake.manifests.clear()
    assert demo("push", "-a", "-q", f"{fake.domain}/app") == (0, names, "")
    assert ("app", "1") in fake.manifests and ("app", "2") in fake.manifests


def test_push_prints_docker_s_lines_and_then_the_sum(fake: Fake, demo: Callable[..., Said], tmp_path: Path) -> None:
    (tmp_path / "image.tar").write_bytes(docker_save([BASE], f"{fake.domain}/app:latest"))
    demo("load", tmp_path / "image.tar")
    status, out, err = demo("push", f"{fake.domain}/app")
    lines = out.splitlines()
    assert (status, err) == (0, "")
    assert lines[:2] == ["Using default tag: latest", f"The push refers to repository [{fake.domain}/app]"]
    assert lines[2].endswith(": Pushed")
    assert lines[3].startswith("latest: digest: sha256:")
    assert lines[4].startswith("compressed 1 layer here")
    assert lines[5].startswith("pushed 1 layer: none was there (")
    _, out, _ = demo("push", f"{fake.domain}/app")
    assert ": Layer already exists\n" in out
    assert "compressed" not in out


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (("pull", "-a", "app:1"), "a tag or digest cannot be used with --all-tags"),
        (("push", "-a", "app:1"), "a tag or digest cannot be used with --all-tags"),
        (("push", "-a", "app"), "no image here is named app"),
        (("push", "app@sha256:" + "0" * 64), "an image cannot be pushed by a digest"),
        (("pull", "--platform", "linux", "app"), "is not a platform"),
        (("login", "-u", "me", "-p", "x", "--password-stdin"), "exclude each other"),
        (("login", "--password-stdin"), "needs --username"),
        (("login", "ex ample"), "is not the address of a registry"),
        (("logout", "file:///etc"), "is not the address of a registry"),
    ],
)
def test_wrong_usage_is_named_and_exits_with_2(demo: Callable[..., Said], words: list[str], match: str) -> None:
    status, out, err = demo(*words)
    assert (status, out) == (2, "")
    assert match in err


def test_image_without_a_name_cannot_be_pushed(demo: Callable[..., Said], tmp_path: Path) -> None:
    (tmp_path / "image.tar").write_bytes(docker_save([BASE], "app:1"))
    demo("load", tmp_path / "image.tar")
    identity = demo("images", "-q")[1].strip()
    status, _, err = demo("push", identity)
    assert status == 2
    assert f"'{identity}' is an image ID, which does not say where to push" in err


def test_container_of_a_missing_image_says_how_to_pull_it(demo: Callable[..., Said]) -> None:
    status, _, err = demo("create", "nothing:1")
    assert (status, err) == (
        1,
        "overlayfs-demo: no image nothing:1: pull it with 'overlayfs-demo pull nothing:1', or load it\n",
    )


def test_registry_that_is_down_is_one_line(demo: Callable[..., Said]) -> None:
    status, out, err = demo("pull", "-q", "127.0.0.1:1/app")
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("overlayfs-demo: registry 127.0.0.1:1: ")


def test_login_writes_the_file_as_docker_does(fake: Fake, demo: Callable[..., Said], docker_config: Path) -> None:
    status, out, err = demo("login", "-u", "me", "-p", "word", fake.domain)
    assert (status, out) == (0, "Login Succeeded\n")
    assert "unencrypted" in err and "word" not in err.replace("password", "")
    assert json.loads(docker_config.read_text()) == {"auths": {fake.domain: {"auth": "bWU6d29yZA=="}}}
    assert stat.S_IMODE(docker_config.stat().st_mode) == 0o600
    assert demo("logout", fake.domain) == (0, f"Removing login credentials for {fake.domain}\n", "")
    assert demo("logout", fake.domain) == (0, f"Not logged in to {fake.domain}\n", "")


def test_wrong_password_is_not_kept(fake: Fake, demo: Callable[..., Said], docker_config: Path) -> None:
    fake.trap = lambda call: call.answer(401, WWW_Authenticate='Basic realm="x"')
    status, _, err = demo("login", "-u", "me", "-p", "word", fake.domain)
    assert status == 1
    assert "does not accept the user or password" in err
    assert not docker_config.exists()


def test_a_missing_library_is_named_with_its_remedy() -> None:
    words = [["pull", "app"], ["push", "app"], ["login", "-u", "me", "-p", "x"], ["logout"]]
    script = (
        "import sys; sys.modules['httpcore'] = None\nfrom overlayfs_demo.cli import main as cli\n"
        f"print([cli.main(words) for words in {words}])"
    )
    done = run(sys.executable, "-c", script, cwd=ROOT)
    remedy = "pip install 'overlayfs-demo[registry]'"
    assert done.stdout == "[1, 1, 1, 1]\n"
    assert done.stderr == f"overlayfs-demo: registries need the Python package httpcore: {remedy}\n" * len(words)


def interrupt(when: Callable[[], bool], *words: str) -> None:
    """Interrupt a command once something is so, and assert that it ends with one line."""
    command = [sys.executable, "-m", "overlayfs_demo", *words]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        wait_until(when, "the moment to interrupt")
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=MINUTE)[1] == "overlayfs-demo: interrupted\n"
        assert process.returncode == 130


def test_interrupted_push_cancels_its_uploads(fake: Fake, demo: Callable[..., Said], tmp_path: Path) -> None:
    (tmp_path / "image.tar").write_bytes(docker_save([BASE, APP], f"{fake.domain}/app:latest"))
    demo("load", tmp_path / "image.tar")
    fake.trap = lambda call: call.command == "PATCH" and fake.over.wait()
    name = f"{fake.domain}/app"
    interrupt(lambda: len(fake.paths("PATCH")) == 3, "push", "--store", str(tmp_path / "store"), name)
    assert (fake.uploads, fake.manifests) == ({}, {})


def test_interrupted_pull_ends_at_once_and_leaves_nothing(fake: Fake, tmp_path: Path) -> None:
    put(fake, "latest", BASE, APP)
    fake.trap = lambda call: "/blobs/" in call.path and len(fake.seen) > 3 and fake.over.wait()
    interrupt(lambda: len(fake.seen) > 4, "pull", "--store", str(tmp_path / "store"), f"{fake.domain}/app")
    assert [sorted(path.iterdir()) for path in (tmp_path / "store/tmp", tmp_path / "store/layers")] == [[], []]
