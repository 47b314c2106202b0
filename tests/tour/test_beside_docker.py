"""Does what the tour tells about Docker hold in Docker?

A daemon of our own loads the experiments' own images, builds with the classic builder, runs containers without a
network, and pushes to a registry in this process. What only BuildKit does is told with its source instead.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from overlayfs_demo.tour.experiments import ALL
from overlayfs_demo.tour.stage import Stage
from tests.places import MINUTE, run
from tests.tour.registry import serving

WITH_IMAGES = ("history-sizes", "metadata", "delete-does-not-shrink", "chmod-doubles", "buildkit-history")
_SHELL = Path("/usr/bin/busybox")


@dataclass(frozen=True)
class Docker:
    """A client of a daemon of our own, whose data is in `where`."""

    where: Path

    def __call__(self, *words: str | Path) -> str:
        done = self.fails(*words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def fails(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        return run("docker", "--host", f"unix://{self.where / 'socket'}", *words)

    def inspect(self, name: str) -> dict[str, object]:
        described = json.loads(self("inspect", name))[0]
        assert isinstance(described, dict)
        return described

    def build(self, name: str, lines: str, **files: bytes) -> str:
        """Build an image with the classic builder; its name."""
        context = self.where / f"context-{name}"
        context.mkdir()
        (context / "Dockerfile").write_text(lines)
        for file, data in files.items():
            (context / file).write_bytes(data)
            (context / file).chmod(0o755)
        built = run(
            "env",
            "DOCKER_BUILDKIT=0",
            "docker",
            "--host",
            f"unix://{self.where / 'socket'}",
            "build",
            "--network=none",
            "--tag",
            name,
            context,
        )
        assert built.returncode == 0, built.stdout + built.stderr
        return name

    def sizes(self, name: str) -> list[int]:
        """The SIZE of each step, the last first."""
        rows = self("history", "--human=false", "--format", "{{.Size}}", name)
        return [int(size) for size in rows.split()]


@pytest.fixture(scope="module")
def docker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Docker]:
    if not shutil.which("dockerd") or not shutil.which("docker"):
        pytest.skip("needs docker and dockerd")
    made = Docker(tmp_path_factory.mktemp("docker"))
    place = made.where
    with (place / "log").open("wb") as log:
        daemon = subprocess.Popen(
            [
                "dockerd",
                "--bridge=none",
                "--iptables=false",
                "--ip6tables=false",
                f"--host=unix://{place / 'socket'}",
                "--storage-driver=overlay2",
                f"--data-root={place / 'data'}",
                f"--exec-root={place / 'exec'}",
                f"--pidfile={place / 'pid'}",
            ],
            stdout=log,
            stderr=log,
        )
        try:
            deadline = time.monotonic() + MINUTE
            while made.fails("info").returncode != 0:
                if daemon.poll() is not None or time.monotonic() > deadline:
                    pytest.skip(f"dockerd does not run here: {(place / 'log').read_text()[-300:]}")
            yield made
        finally:
            daemon.terminate()
            daemon.wait(MINUTE)


@pytest.fixture(scope="module")
def shell(docker: Docker) -> str:
    """An image with a static shell and its tools, for commands that Docker runs."""
    if not _SHELL.exists():
        pytest.skip("needs busybox-static")
    docker.build("busybox", "FROM scratch\nCOPY busybox /bin/\n", busybox=_SHELL.read_bytes())
    started = docker.fails("run", "--rm", "--network=none", "busybox", "/bin/busybox", "true")
    if started.returncode != 0:
        pytest.skip(f"docker cannot run a container here: {started.stderr}")
    return docker.build(
        "shell",
        'FROM busybox\nRUN ["/bin/busybox", "--install", "-s", "/bin"]\nCOPY big /docs/big\n'
        "RUN echo before > /one && ln /one /two\n",
        big=b"x" * 100_000,
    )


def loaded(docker: Docker, name: str, where: Path) -> list[str]:
    """The images of an experiment, loaded by Docker; their names."""
    [experiment] = [experiment for experiment in ALL if experiment.name == name]
    stage = Stage(where)
    experiment.prepare(stage)
    return [
        line.rpartition(": ")[2]
        for archive in sorted(where.glob("*.tar"))
        for line in docker("load", "--input", archive).splitlines()
        if line.startswith("Loaded image")
    ]


# --- images ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WITH_IMAGES)
def test_docker_tells_the_same_of_every_image(docker: Docker, tmp_path: Path, name: str) -> None:
    """The same SIZE for each step, the same ID and the same layers."""
    for image in loaded(docker, name, tmp_path):
        store = ["--store", str(tmp_path / "store")]
        assert run("overlayfs-demo", "load", *store, tmp_path / f"{image.partition(':')[0]}.tar").returncode == 0
        [ours] = json.loads(run("overlayfs-demo", "inspect", *store, image).stdout)
        theirs = docker.inspect(image)
        assert [theirs[key] for key in ("Id", "RootFS", "Config")] == [ours[key] for key in ("Id", "RootFS", "Config")]
        rows = run("overlayfs-demo", "history", *store, "--human", "false", "--json", image).stdout.splitlines()
        assert docker.sizes(image) == [int(json.loads(row)["Size"]) for row in rows]


def test_docker_writes_the_classic_history(docker: Docker) -> None:
    docker.build("classic", 'FROM scratch\nCOPY motd /\nENV COLOUR=blue\nLABEL a=b\nCMD ["/app"]\n', motd=b"hello\n")
    rows = docker("history", "--no-trunc", "--format", "{{.CreatedBy}}|{{.Size}}", "classic").splitlines()
    assert rows[:3] == [
        '/bin/sh -c #(nop)  CMD ["/app"]|0B',
        "/bin/sh -c #(nop)  LABEL a=b|0B",
        "/bin/sh -c #(nop)  ENV COLOUR=blue|0B",
    ]
    assert rows[3].startswith("/bin/sh -c #(nop) COPY file:") and rows[3].endswith(" in / |6B")
    assert len(docker.inspect("classic")["RootFS"]["Layers"]) == 1  # type: ignore[index]


def test_scratch_is_not_an_image_of_docker_either(docker: Docker) -> None:
    assert "'scratch' is a reserved name" in docker.fails("pull", "scratch").stderr
    assert "No such image" in docker.fails("image", "inspect", "scratch").stderr


def test_in_docker_run_chmod_ships_the_file_again(docker: Docker, shell: str) -> None:
    docker.build("chmod", f"FROM {shell}\nRUN chmod 700 /docs/big\n")
    assert docker.sizes("chmod")[0] == 100_000


def test_in_docker_a_file_deleted_in_its_own_step_ships_nothing(docker: Docker, shell: str) -> None:
    docker.build("same", f"FROM {shell}\nRUN cat /docs/big > /cache && rm /cache\n")
    docker.build("later", f"FROM {shell}\nRUN cat /docs/big > /cache\nRUN rm /cache\n")
    assert docker.sizes("same")[0] == 0
    assert docker.sizes("later")[:2] == [0, 100_000]


def test_docker_stores_layers_by_their_chain_ids(docker: Docker, tmp_path: Path) -> None:
    loaded(docker, "chain-id", tmp_path)
    stored = docker.where / "data/image/overlay2/layerdb/sha256"
    chain_ids = set()
    for image in ("one:1.0", "two:1.0"):
        below, diff_id = docker.inspect(image)["RootFS"]["Layers"]  # type: ignore[index]
        chain_id = hashlib.sha256(f"{below} {diff_id}".encode()).hexdigest()
        assert (stored / chain_id / "diff").read_text() == diff_id
        chain_ids.add(chain_id)
    assert len(chain_ids) == 2
    assert "SHARED SIZE" in docker("system", "df", "--verbose")


def test_docker_pushes_only_the_layers_that_are_missing(docker: Docker, tmp_path: Path) -> None:
    loaded(docker, "push-and-pull", tmp_path)
    with serving() as registry:
        for version in ("1.0", "1.1"):
            docker("tag", f"app:{version}", f"{registry.address}/app:{version}")
        first = docker("push", f"{registry.address}/app:1.0")
        assert first.count(": Pushed") == 3
        before = registry.uploads
        second = docker("push", f"{registry.address}/app:1.1")
        assert (second.count(": Layer already exists"), second.count(": Pushed")) == (2, 1)
        assert registry.uploads - before == 1 + 1, "one layer, and the config"
        docker("rmi", "app:1.1", f"{registry.address}/app:1.1")
        pulled = docker("pull", f"{registry.address}/app:1.1")
        assert (pulled.count(": Already exists"), pulled.count(": Pull complete")) == (2, 1)
        diff_ids = docker.inspect("app:1.0")["RootFS"]["Layers"]  # type: ignore[index]
        assert not set(registry.blobs) & set(diff_ids), "the registry has the compressed tars"
    docker("save", "app:1.0", "--output", tmp_path / "saved.tar")
    assert run("tar", "-tf", tmp_path / "saved.tar").stdout.count("/layer.tar\n") == 3


# --- containers ------------------------------------------------------------------------------------


def test_docker_shows_the_four_directories_of_a_container(docker: Docker, shell: str) -> None:
    docker("run", "--network=none", "--name=c1", shell, "sh", "-c", "echo new > /new")
    image, container = (docker.inspect(name)["GraphDriver"]["Data"] for name in (shell, "c1"))  # type: ignore[index]
    assert set(container) == {"LowerDir", "UpperDir", "WorkDir", "MergedDir"}
    init, *lowers = container["LowerDir"].split(":")
    assert init.endswith("-init/diff") and (Path(init) / "etc/hosts").exists()
    assert lowers == [image["UpperDir"], *image["LowerDir"].split(":")]
    assert (Path(container["UpperDir"]) / "new").read_text() == "new\n"
    docker("rm", "c1")


def test_docker_rm_removes_the_upper(docker: Docker, shell: str) -> None:
    docker("run", "--network=none", "--name=c2", shell, "sh", "-c", "echo new > /new")
    upper = Path(docker.inspect("c2")["GraphDriver"]["Data"]["UpperDir"])  # type: ignore[index]
    assert (upper / "new").exists()
    docker("rm", "c2")
    assert not upper.exists()


def test_docker_diff_tells_what_commit_packs(docker: Docker, shell: str) -> None:
    docker("run", "--network=none", "--name=c3", shell, "sh", "-c", "echo changed > /one; rm /two; echo new > /new")
    assert sorted(docker("diff", "c3").split("\n")[:-1]) == ["A /new", "C /one", "D /two"]
    docker("commit", "c3", "committed")
    before, after = (docker.inspect(name)["RootFS"]["Layers"] for name in (shell, "committed"))  # type: ignore[index]
    assert after[:-1] == before
    assert docker.sizes("committed")[0] == len("changed\n" + "new\n")
    docker("rm", "c3")


def test_in_docker_the_first_write_separates_hard_links(docker: Docker, shell: str) -> None:
    told = docker("run", "--rm", "--network=none", shell, "sh", "-c", "echo after >> /one; cat /two")
    assert told == "before\n"


def test_in_docker_a_directory_is_copied_when_it_is_renamed(docker: Docker, shell: str) -> None:
    docker("run", "--network=none", "--name=c4", shell, "mv", "/docs", "/papers")
    upper = Path(docker.inspect("c4")["GraphDriver"]["Data"]["UpperDir"])  # type: ignore[index]
    assert (upper / "papers/big").stat().st_size == 100_000
    docker("rm", "c4")


def test_in_docker_a_reader_sees_what_is_written_after_copy_up(docker: Docker, shell: str) -> None:
    command = "(read line; echo after >> /one; cat) < /one"
    assert docker("run", "--rm", "--network=none", shell, "sh", "-c", command) == "after\n"
