"""Does a load that a signal ends leave anything visible, or in the way of the next one?"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import wait_until
from tests.images.builders import docker_save, layer
from tests.places import ROOT


def command(*words: str | Path) -> list[str | Path]:
    return [sys.executable, "-m", "overlayfs_demo", *words]


def await_spooled(tmp: Path, run: subprocess.Popen[bytes]) -> None:
    """Wait until the first of the stream is in the scratch file, which has no name in the store's `tmp`."""

    def spooled() -> bool:
        assert run.poll() is None, "it never began"
        opened = Path(f"/proc/{run.pid}/fd").iterdir()
        return any(os.readlink(fd).startswith(f"{tmp}/") and fd.stat().st_size for fd in opened)

    wait_until(spooled, "the first of the stream in the scratch file")


SIGNALS = pytest.mark.parametrize(
    ("number", "status", "said"),
    [
        (signal.SIGTERM, 143, b"overlayfs-demo: terminated\n"),
        (signal.SIGINT, 130, b"overlayfs-demo: interrupted\n"),
        (signal.SIGKILL, -signal.SIGKILL, b""),
    ],
)


def ends_and_leaves_nothing(run: subprocess.Popen[bytes], number: int, status: int, said: bytes, store: Path) -> None:
    """The signal ends the load, which tidies up unless it was killed, and no image is there."""
    assert run.stderr
    run.send_signal(number)
    run.wait(30)
    assert (run.returncode, run.stderr.read()) == (status, said)
    if number != signal.SIGKILL:
        assert list((store / "tmp").iterdir()) == []
    assert listed(store) == b""


def listed(store: Path) -> bytes:
    images = subprocess.run(command("images", "--store", store), cwd=ROOT, capture_output=True, check=True).stdout
    return b"".join(images.splitlines(keepends=True)[1:])


def loads(store: Path, image: bytes) -> None:
    """The same image is loaded, and nothing of the load before is left."""
    subprocess.run(command("load", "--store", store, "-"), cwd=ROOT, input=image, capture_output=True, check=True)
    assert list((store / "tmp").iterdir()) == []
    assert b"test" in listed(store)


@SIGNALS
def test_a_signal_leaves_nothing_visible_and_the_next_load_succeeds(
    tmp_path: Path, number: signal.Signals, status: int, said: bytes
) -> None:
    store, image = tmp_path / "store", docker_save([layer([("big", bytes(4 << 20))])])
    with subprocess.Popen(
        command("load", "--store", store, "-"), cwd=ROOT, stdin=subprocess.PIPE, stderr=subprocess.PIPE
    ) as run:
        assert run.stdin
        run.stdin.write(image[: 3 << 20])
        run.stdin.flush()
        await_spooled(store / "tmp", run)
        ends_and_leaves_nothing(run, number, status, said, store)
    loads(store, image)


@SIGNALS
def test_a_signal_amid_a_layer_leaves_none_of_it(
    tmp_path: Path, number: signal.Signals, status: int, said: bytes
) -> None:
    store, archive = tmp_path / "store", tmp_path / "image.tar"
    image = docker_save([layer({f"d/{name}": "x" for name in range(5_000)}), layer({"last": "1"})])
    archive.write_bytes(image)
    with subprocess.Popen(command("load", "--store", store, archive), cwd=ROOT, stderr=subprocess.PIPE) as run:
        while not list((store / "tmp").glob("**/d/*")):
            assert run.poll() is None, "it had ended before anything was seen of the layer"
        ends_and_leaves_nothing(run, number, status, said, store)
    assert list((store / "layers").glob("*")) == []
    loads(store, image)
