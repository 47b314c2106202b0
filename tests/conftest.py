"""What does every test run need? A clean start, and a way to wait that has a bound."""

from __future__ import annotations

import gc
import os
import re
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from overlayfs_demo.linux import mounting
from tests import fork_server
from tests.memory import DISK
from tests.places import Place, found_by_mount_8, set_up, why_no_mount_8

pytest_plugins = ["tests.side_by_side", "tests.real_docker"]

PATIENCE = 15.0


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Poll until `condition` is true; fails, naming `what`, when that takes too long."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {PATIENCE:.0f} seconds"
        time.sleep(0.005)


def why_no_mounts() -> str:
    """Why this machine cannot run the tests that mount, or ""."""
    if os.geteuid() != 0:
        return "needs root: mounts, owners, devices, trusted xattrs"
    if not os.path.exists("/dev/fuse"):
        return "needs /dev/fuse"
    return ""


def why_no_mounts_of_others() -> str:
    """Why users without privileges cannot mount here, or ""."""
    if problem := why_no_mounts():
        return problem
    if os.stat("/dev/fuse").st_mode & 0o006 != 0o006:
        return "needs /dev/fuse to be open to everybody (mode 0666), as udev makes it"
    return ""


def why_no_sandbox() -> str:
    """Why `explain` cannot try a command here, or ""."""
    return "" if shutil.which("bwrap") else "needs bwrap, of the package bubblewrap"


def mount_points(below: str) -> list[str]:
    """What is mounted below a directory, deepest first."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        # Blanks and the like stand as \\040 in this file: proc_pid_mountinfo(5).
        path = re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), line.split(" ")[4])
        if path.startswith(below.rstrip("/") + "/"):
            found.append(path)
    return sorted(found, reverse=True)


def unmount_all(below: str) -> None:
    """Take away all mounts below a directory, whoever still uses them."""
    for path in mount_points(below):
        try:
            mounting.unmount(os.fsencode(path), mounting.MNT_DETACH)
        except OSError as error:
            print(f"cannot unmount {path}: {error}")


@pytest.fixture
def tmp_path(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """pytest's own; for tests marked `on_disk` it is there, even if the others' are in memory."""
    disk = os.environ.get(DISK)
    if disk is None or request.node.get_closest_marker("on_disk") is None:
        yield tmp_path
        return
    where = Path(tempfile.mkdtemp(dir=disk, prefix="t"))
    yield where
    unmount_all(str(where))
    shutil.rmtree(where)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """Directories to mount, by commands; unmounted in the end."""
    if problem := why_no_mounts():
        pytest.skip(problem)
    yield set_up(tmp_path)
    unmount_all(str(tmp_path))


@pytest.fixture(params=["kernel", "fusepy"])
def front(request: pytest.FixtureRequest) -> str:
    """Each front, as far as this machine has what it needs."""
    from tests.contract.conftest import why_unavailable  # It imports from here.

    if problem := why_unavailable(f"{request.param}-front"):
        pytest.skip(problem)
    return str(request.param)


@pytest.fixture
def mounted(front: str, place: Place) -> Place:
    """A view, by each front."""
    done = place.mount("--front", front)
    assert (done.returncode, done.stderr) == (0, "")
    return place


@pytest.fixture
def helper(place: Place) -> Iterator[Place]:
    """The same, where mount(8) finds this project's command."""
    if problem := why_no_mount_8():
        pytest.skip(problem)
    with found_by_mount_8():
        yield place


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where stages are made: nothing is left there, and nothing mounted."""
    if problem := why_no_mounts():
        pytest.skip(problem)
    where = tmp_path / "tmp"
    where.mkdir()
    monkeypatch.setenv("TMPDIR", str(where))
    monkeypatch.setattr(tempfile, "tempdir", str(where))
    yield where
    mounted, left = mount_points(str(where)), os.listdir(where)
    unmount_all(str(where))
    assert (mounted, left) == ([], [])


def pytest_configure(config: pytest.Config) -> None:
    # A shell's background job inherits these as ignored, and so would all that the tests start and interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    config.addinivalue_line("markers", "differs(subject, instead): this subject is known to answer otherwise")
    config.addinivalue_line("markers", "trusts_a_moment: what cannot be followed is trusted for a second, as always")
    config.addinivalue_line("markers", "on_disk: the files of the test are on a disk's filesystem, not in memory")
    config.addinivalue_line("markers", "kernel_since(version, reason): an older kernel's overlayfs is not asked")


def pytest_sessionstart(session: pytest.Session) -> None:
    """Take away what runs that were killed left mounted; other runs that are alive keep theirs."""
    fork_server.start()  # Before anything is collected.
    if os.geteuid() != 0:
        return
    temporary = Path(os.environ.get("PYTEST_DEBUG_TEMPROOT") or tempfile.gettempdir())
    for run in temporary.glob("pytest-of-*/pytest-[0-9]*"):
        if not _is_alive(run):
            unmount_all(str(run))


def pytest_collection_finish() -> None:
    # All that was collected stays to the end. Without this, the collector walks it again and again, and each process
    # that is forked copies it to write its marks: half the time of the whole suite.
    gc.collect()
    gc.freeze()


def _is_alive(run: Path) -> bool:
    """pytest notes its process in the directory of a run, for as long as the run lasts."""
    try:
        pid = int((run / ".lock").read_text())
    except (OSError, ValueError):
        return False
    return os.path.exists(f"/proc/{pid}")
