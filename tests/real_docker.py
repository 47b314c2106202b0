"""A real Docker daemon and other real tools to compare with: a test is skipped where one that it needs is missing."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.places import MINUTE, run


def tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"needs {name}")
    return found


def succeeds(*words: str | Path) -> str:
    done = run(*words)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def docker(tmp_path: Path) -> Iterator[list[str | Path]]:
    """The words that begin a command to a Docker daemon of our own."""
    with docker_daemon(tmp_path, "overlay2") as words:
        yield words


@contextmanager
def docker_daemon(where: Path, driver: str, first_in_path: Path | None = None) -> Iterator[list[str | Path]]:
    """A Docker daemon with this storage driver, and a directory that it looks into first for programs.

    Gives the words that begin a command to it. The test is skipped where it does not run.
    """
    dockerd, client = tool("dockerd"), tool("docker")
    socket = where / "docker.sock"
    words: list[str | Path] = [client, "--host", f"unix://{socket}"]
    log = (where / "dockerd.log").open("wb")
    path = os.environ["PATH"] if first_in_path is None else f"{first_in_path}:{os.environ['PATH']}"
    daemon = subprocess.Popen(
        [
            dockerd,
            "--bridge=none",
            "--iptables=false",
            "--host",
            f"unix://{socket}",
            "--storage-driver",
            driver,
            "--data-root",
            where / "docker",
            "--exec-root",
            where / "exec",
            "--pidfile",
            where / "pid",
        ],
        stdout=log,
        stderr=log,
        env={**os.environ, "PATH": path},
    )
    try:
        deadline = time.monotonic() + MINUTE
        while run(*words, "info").returncode != 0:
            if daemon.poll() is not None or time.monotonic() > deadline:
                pytest.skip(f"dockerd does not run here: {(where / 'dockerd.log').read_text()[-300:]}")
        yield words
    finally:
        daemon.terminate()
        daemon.wait(30)
        log.close()
