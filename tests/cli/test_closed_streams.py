"""Does a verb whose caller has closed a standard stream end with a line and a status, and no traceback?"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import unmount_all, why_no_mounts, why_no_sandbox
from tests.places import BIN, run

_PRINTING = (
    "images",
    "images --format '{{.ID}}'",
    "ps",
    "df",
    "history a:1",
    "inspect a:1",
    "analyze a:1",
    "which c1:/file",
    "cp c1:/file -",
    "export c1",
    "save a:1",
    "explain --on c1 true",
    "tour --list",
    "help",
    "completion bash",
)
_CLOSED = "overlayfs-demo: standard input or output is closed\n"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A store with the image a:1 and the container c1."""
    if problem := why_no_mounts() or why_no_sandbox():
        pytest.skip(problem)
    place = tmp_path_factory.mktemp("closed")
    (place / "file").write_text("x")
    run("tar", "-C", str(place), "-cf", str(place / "root.tar"), "file")
    assert run("overlayfs-demo", "import", "--store", place / "store", place / "root.tar", "a:1").returncode == 0
    assert run("overlayfs-demo", "create", "--store", place / "store", "a:1", "--name", "c1").returncode == 0
    yield place / "store"
    unmount_all(str(place))


def shell(store: Path, words: str) -> subprocess.CompletedProcess[str]:
    settings = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "OVERLAYFS_DEMO_STORE": str(store)}
    return subprocess.run(["sh", "-c", f"overlayfs-demo {words}"], capture_output=True, text=True, env=settings)


@pytest.mark.parametrize("verb", _PRINTING)
def test_closed_output_is_one_line(store: Path, verb: str) -> None:
    done = shell(store, f"{verb} >&-")
    assert (done.returncode, done.stderr) == (1, _CLOSED)


@pytest.mark.parametrize("verb", ("load", "import -", "cp - c1:/"))
def test_closed_input_is_one_line(store: Path, verb: str) -> None:
    done = shell(store, f"{verb} <&-")
    assert (done.returncode, done.stderr) == (1, _CLOSED)


@pytest.mark.parametrize("verb", ("images", "exec c1 /nothing", "explain --on c1 true"))
def test_messages_to_a_closed_stderr_disappear(store: Path, verb: str) -> None:
    status = shell(store, verb).returncode
    done = shell(store, f"{verb} <&- 2>&-")
    assert (done.returncode, done.stderr) == (status, "")
