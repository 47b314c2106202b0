"""A real Docker daemon and other real tools to compare with: a test is skipped where one that it needs is missing."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
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
    dockerd, client = tool("dockerd"), tool("docker")
    socket = tmp_path / "docker.sock"
    words: list[str | Path] = [client, "--host", f"unix://{socket}"]
    log = (tmp_path / "dockerd.log").open("wb")
    daemon = subprocess.Popen(
        [
            dockerd,
            "--bridge=none",
            "--iptables=false",
            "--host",
            f"unix://{socket}",
            "--storage-driver",
            "overlay2",
            "--data-root",
            tmp_path / "docker",
            "--exec-root",
            tmp_path / "exec",
            "--pidfile",
            tmp_path / "pid",
        ],
        stdout=log,
        stderr=log,
    )
    try:
        deadline = time.monotonic() + MINUTE
        while run(*words, "info").returncode != 0:
            if daemon.poll() is not None or time.monotonic() > deadline:
                pytest.skip(f"dockerd does not run here: {(tmp_path / 'dockerd.log').read_text()[-300:]}")
        yield words
    finally:
        daemon.terminate()
        daemon.wait(30)
        log.close()
