"""Does a load that a signal ends leave anything visible, or in the way of the next one?"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import wait_until
from tests.images.builders import docker_save, layer

ROOT = Path(__file__).parent.parent.parent


def command(*words: str | Path) -> list[str | Path]:
    return [sys.executable, "-m", "overlayfs_demo", *words]


def await_spooled(tmp: Path, run: subprocess.Popen[bytes]) -> None:
    """Wait until the first of the stream is in the store's scratch file."""

    def spooled() -> bool:
        assert run.poll() is None, "it never began"
        return tmp.is_dir() and any(one.stat().st_size for one in tmp.iterdir())

    wait_until(spooled, "the first of the stream in the scratch file")


@pytest.mark.parametrize(
    ("number", "status", "said"),
    [
        (signal.SIGTERM, 143, b"overlayfs-demo: terminated\n"),
        (signal.SIGINT, 130, b"overlayfs-demo: interrupted\n"),
        (signal.SIGKILL, -signal.SIGKILL, b""),
    ],
)
def test_a_signal_leaves_nothing_visible_and_the_next_load_succeeds(
    tmp_path: Path, number: signal.Signals, status: int, said: bytes
) -> None:
    store, image = tmp_path / "store", docker_save([layer([("big", bytes(4 << 20))])])
    with subprocess.Popen(
        command("load", "--store", store, "-"), cwd=ROOT, stdin=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as run:
        assert run.stdin and run.stderr
        run.stdin.write(image[: 3 << 20])
        run.stdin.flush()
        await_spooled(store / "tmp", run)
        run.send_signal(number)
        run.wait(30)
        assert (run.returncode, run.stderr.read()) == (status, said)
    if number != signal.SIGKILL:
        assert list((store / "tmp").iterdir()) == []
    images = command("images", "--store", store)
    assert b"test" not in subprocess.run(images, cwd=ROOT, capture_output=True, check=True).stdout
    subprocess.run(command("load", "--store", store, "-"), cwd=ROOT, input=image, capture_output=True, check=True)
    assert list((store / "tmp").iterdir()) == []
    assert b"test" in subprocess.run(images, cwd=ROOT, capture_output=True, check=True).stdout
