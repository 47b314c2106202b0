"""What does a daemon take over from its caller, what does it leave when it fails, and who notices that it is dead?"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from overlayfs_demo.errors import MountError
from overlayfs_demo.fronts.kernel import session, wire
from overlayfs_demo.linux import mounting
from overlayfs_demo.mounts import daemon, mount, registry, umount
from overlayfs_demo.mounts.control.server import Server
from overlayfs_demo.mounts.options import parse
from overlayfs_demo.overlay.engine import Overlay
from overlayfs_demo.overlay.tree import Tree
from overlayfs_demo.store.container import Container
from overlayfs_demo.store.container_state import record_of
from overlayfs_demo.store.containers import Containers
from overlayfs_demo.store.load import load
from overlayfs_demo.store.store import Store
from tests import builders, fork_server
from tests.conftest import PATIENCE, unmount_all, wait_until, why_no_mounts
from tests.images.builders import docker_save, layer
from tests.places import BIN, MINUTE, Place, fails, run

pytestmark = pytest.mark.skipif(bool(why_no_mounts()), reason=why_no_mounts())


def descriptors(pid: int | str = "self") -> dict[int, str]:
    """What a process has open, but for the list of it."""
    found = {}
    for number in os.listdir(f"/proc/{pid}/fd"):
        try:
            found[int(number)] = os.readlink(f"/proc/{pid}/fd/{number}")
        except FileNotFoundError:
            continue
    return found


# --- what it takes over ---------------------------------------------------------------------------


@pytest.mark.parametrize("front", ["kernel", "fusepy"])
def test_daemon_keeps_no_descriptor_of_its_callers(place: Place, front: str) -> None:
    """A lock on one, for instance, is let go when the caller lets go of it."""
    (place / "lock").touch()
    script = 'exec 9<"$1"; flock -n 9 || exit 1; shift; exec "$@"'
    words = ["overlayfs-demo", "mount", "--front", front, "-o", place.options, str(place.view)]
    assert run("bash", "-c", script, "bash", place / "lock", *words).returncode == 0
    assert str(place / "lock") not in descriptors(place.daemon()).values()
    with (place / "lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_daemon_of_a_caller_without_standard_descriptors_serves_too(place: Place) -> None:
    """A layer or the device in the place of one would be replaced when the daemon leaves its terminal."""
    words = ["overlayfs-demo", "mount", "-o", place.options, str(place.view)]
    assert run("sh", "-c", '"$@" <&- >&- 2>&-', "sh", *words).returncode == 0
    found = descriptors(place.daemon())
    assert [found[number] for number in range(3)] == ["/dev/null"] * 3
    (place.view / "new").write_text("1")
    assert (place / "upper/new").read_text() == "1" and (place.view / "motd").read_text() == "hello\n"


# --- what a mount that fails leaves ---------------------------------------------------------------


def fail(error: BaseException) -> Callable[..., Any]:
    def failing(*_: object, **__: object) -> Any:
        raise error

    return failing


def state() -> tuple[dict[int, str], int]:
    umask = os.umask(0o22)
    os.umask(umask)
    return descriptors(), umask


def children() -> list[psutil.Process]:
    """The children of this process, also ended ones, but not those that run half of the tests, or fork for them."""
    return [
        child
        for child in psutil.Process().children()
        if child.status() == psutil.STATUS_ZOMBIE
        or (child.pid != fork_server.pid() and not any("--helper-of=" in word for word in child.cmdline()))
    ]


@pytest.fixture(autouse=True)
def no_children_of_others() -> None:
    """Daemons that other tests mounted with in this process are its children, and wait to be waited for."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def left_by(place: Place) -> set[str]:
    """What a failed mount could leave behind."""
    found = set()
    if place.is_mounted():
        found.add("mount")
    if registry.find_record(str(place.view)) is not None:
        found.add("record")
    if Path(registry.socket_path(str(place.view))).exists():
        found.add("socket")
    assert children() == []
    return found


def is_mounted_and_unmounted(place: Place) -> None:
    """By this process, so that the daemon is our child, for whom we wait."""
    mount.mount(os.fsencode(place.view), parse([place.options]))
    pid = place.supervisor()
    assert (place.view / "motd").read_text() == "hello\n"
    umount.unmount(os.fsencode(place.view))
    os.waitpid(pid, 0)


FAULTS: dict[str, tuple[object, str]] = {
    "opening the layers": (Tree, "__init__"),
    "the note in the upper": (Overlay, "note_stack"),
    "the socket": (Server, "start"),
    "the record": (registry.Registration, "__init__"),
    "the first answer": (session, "agree"),
}
ERRORS = [OSError(errno.EIO, os.strerror(errno.EIO)), MemoryError()]


@pytest.mark.parametrize("foreground", [False, True], ids=["daemon", "foreground"])
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_mount_that_fails_leaves_nothing(
    place: Place, monkeypatch: pytest.MonkeyPatch, fault: str, error: Exception, foreground: bool
) -> None:
    before = state()
    with monkeypatch.context() as patched:
        patched.setattr(*FAULTS[fault], fail(error))
        for _ in range(2):
            with pytest.raises((MountError, type(error))):
                mount.mount(os.fsencode(place.view), parse([place.options]), foreground=foreground)
    assert (left_by(place), state()) == (set(), before)
    is_mounted_and_unmounted(place)


@pytest.mark.parametrize("front", ["kernel", "fusepy"])
def test_a_view_that_does_not_answer_is_taken_away(place: Place, monkeypatch: pytest.MonkeyPatch, front: str) -> None:
    before = state()
    with monkeypatch.context() as patched:
        for verb in ("entries", "names"):  # One for each front.
            patched.setattr(Overlay, verb, fail(OSError(errno.EIO, os.strerror(errno.EIO))))
        with pytest.raises(MountError, match=r"does not answer: Input/output error"):
            mount.mount(os.fsencode(place.view), parse([f"{place.options},front={front}"]))
    assert (left_by(place), state()) == (set(), before)
    is_mounted_and_unmounted(place)


def test_a_daemon_that_is_killed_while_it_starts_leaves_no_mount(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(registry.Registration, "__init__", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        with pytest.raises(MountError, match="the daemon died while starting"):
            mount.mount(os.fsencode(place.view), parse([place.options]))
    assert not place.is_mounted()
    is_mounted_and_unmounted(place)


def test_a_mount_keeps_nothing_of_the_view_in_the_process_that_called_it(place: Place) -> None:
    before = state()
    for _ in range(2):
        is_mounted_and_unmounted(place)
        assert state() == before


def answers(view: Path) -> Iterator[tuple[object, object]]:
    """What is answered to whom looks and reads, or by which error that fails; and what is right."""
    looks: tuple[tuple[Callable[[], object], object], ...] = (
        (lambda: (view / "motd").exists(), True),
        (lambda: "motd" in os.listdir(view), True),
        (lambda: (view / "motd").read_text(), "hello\n"),
    )
    for look, right in looks:
        try:
            yield look(), right
        except OSError as error:
            yield error.errno, right


@pytest.mark.parametrize("front", ["kernel", "fusepy"])
@pytest.mark.parametrize("megabytes", [60, 130, 200, 300, 600])
def test_with_too_little_memory_a_view_is_served_or_not_there(place: Place, megabytes: int, front: str) -> None:
    done = run(
        "prlimit",
        f"--as={megabytes << 20}",
        BIN / "overlayfs-demo",
        "mount",
        "--front",
        front,
        "-o",
        place.options,
        place.view,
    )
    if done.returncode:
        assert done.stderr != "" and left_by(place) == set()
    else:
        for _ in range(20):
            wrong = [answer for answer, right in answers(place.view) if answer not in (right, errno.ENOMEM)]
            assert wrong == []
        assert registry.is_served(str(place.view))


def test_a_caller_who_is_interrupted_leaves_no_daemon(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    def confirm(_mountpoint: bytes) -> None:
        started.append(place.supervisor())
        raise KeyboardInterrupt

    monkeypatch.setattr(mount, "_confirm", confirm)
    with pytest.raises(KeyboardInterrupt):
        mount.mount(os.fsencode(place.view), parse([place.options]))
    assert left_by(place) == set() and not os.path.exists(f"/proc/{started[0]}")


def test_a_daemon_that_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon, "_TIMEOUT", 0.1)

    def serve(ready: Callable[[], None]) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        ready()
        threading.Event().wait(MINUTE)

    daemon.start(serve).end()
    assert children() == []


# --- who notices that it is dead ------------------------------------------------------------------


def kill(place: Place) -> int:
    """Kill the daemon while the kernel still knows all that was asked, and wait until it is gone."""
    os.listdir(place.view)
    os.stat(place.view / "motd")
    pid = place.supervisor()
    process = os.pidfd_open(pid)
    os.kill(pid, signal.SIGKILL)
    assert daemon.ended(process, PATIENCE)
    os.close(process)
    return pid


def live_views() -> list[str]:
    """Where views are served; other runs may have some, too."""
    return [record.mountpoint for record in registry.live_records()]


def mounts_at(path: Path) -> int:
    return sum(line.split()[4] == str(path) for line in Path("/proc/self/mountinfo").read_text().splitlines())


@pytest.mark.parametrize("zombie", [False, True], ids=["gone", "zombie"])
@pytest.mark.parametrize("front", ["kernel", "fusepy"])
def test_a_mount_after_a_kill_takes_the_place_of_the_dead_one(place: Place, front: str, zombie: bool) -> None:
    options = parse([f"{place.options},front={front}"])
    if zombie:
        # The daemon is our child, for whom we do not wait.
        mount.mount(os.fsencode(place.view), options)
    else:
        assert place.mount("--front", front).returncode == 0
    pid = kill(place)
    assert os.path.exists(f"/proc/{pid}") or not zombie
    assert not registry.is_served(str(place.view)) and str(place.view) not in live_views()
    mount.mount(os.fsencode(place.view), options)
    assert mounts_at(place.view) == 1
    assert (place.view / "motd").read_text() == "hello\n"
    assert place.supervisor() != pid and registry.is_served(str(place.view))
    if zombie:
        os.waitpid(pid, 0)
    pid = place.supervisor()
    umount.unmount(os.fsencode(place.view))
    os.waitpid(pid, 0)


def test_a_dead_view_is_unmounted_at_once_though_its_process_id_lives_on(place: Place) -> None:
    assert place.mount().returncode == 0
    kill(place)
    record = registry.find_record(str(place.view))
    assert record is not None
    # As if another process had got the number meanwhile: the lock of the record is what counts.
    [path] = [path for path in Path("/run/overlayfs-demo").glob("*.json") if str(place.view) in path.read_text()]
    path.write_text(path.read_text().replace(f'"pid": {record.pid}', f'"pid": {os.getpid()}'))
    before = time.monotonic()
    assert place.umount().returncode == 0
    assert time.monotonic() - before < 9  # It would wait ten seconds for that process.
    assert not place.is_mounted() and registry.find_record(str(place.view)) is None
    assert not Path(registry.socket_path(str(place.view))).exists()


def test_a_view_that_hangs_is_known_to_be_served_without_waiting_for_it(place: Place) -> None:
    assert place.mount().returncode == 0
    os.kill(place.daemon(), signal.SIGSTOP)
    try:
        assert registry.is_served(str(place.view))
        assert live_views().count(str(place.view)) == 1
    finally:
        os.kill(place.daemon(), signal.SIGCONT)


@pytest.fixture
def container(tmp_path: Path) -> Iterator[tuple[Containers, Container]]:
    """One that is mounted, and whose daemon was killed."""
    store = Store(tmp_path / "store")
    (tmp_path / "image.tar").write_bytes(docker_save([layer({"motd": "hello\n"})]))
    [loaded] = load(store, tmp_path / "image.tar")
    containers = Containers(store)
    made = containers.create(loaded.image, "c1")
    os.listdir(made.mountpoint)
    record = record_of(made)
    assert record is not None
    process = os.pidfd_open(record.pid)
    os.kill(record.pid, signal.SIGKILL)
    assert daemon.ended(process, PATIENCE)
    os.close(process)
    yield containers, made
    unmount_all(str(tmp_path))


def test_a_container_whose_daemon_was_killed_is_stopped(container: tuple[Containers, Container]) -> None:
    containers, made = container
    assert record_of(made) is None
    root = made.directory.parent.parent
    assert "Stopped" in run("overlayfs-demo", "ps", "--store", root).stdout
    containers.start(made)
    assert record_of(made) is not None and mounts_at(made.mountpoint) == 1
    assert (made.mountpoint / "motd").read_text() == "hello\n"


@pytest.mark.parametrize("verb", ["stop", "remove"])
def test_a_container_whose_daemon_was_killed_is_taken_away(container: tuple[Containers, Container], verb: str) -> None:
    containers, made = container
    getattr(containers, verb)(made)
    assert mounts_at(made.mountpoint) == 0
    assert made.directory.exists() == (verb == "stop")


# --- a device that does not take a reply ----------------------------------------------------------


@pytest.mark.parametrize("code", [errno.ENOMEM, errno.EIO])
def test_a_reply_that_cannot_be_written_costs_that_caller_alone(
    place: Place, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """More often than there are threads."""
    (place / "bottom/victim").write_text("v")
    write_some, read = os.write, os.readv
    reading = place / "reading"

    def write(fd: int, data: bytes) -> int:
        # A reply that has a body, as no error has. It begins with its length.
        is_message = data[:4] == len(data).to_bytes(4, sys.byteorder)
        if is_message and len(data) > wire.REPLY.size and (place / "failing").exists():
            raise OSError(code, os.strerror(code))
        return write_some(fd, data)

    def readv(fd: int, buffers: list[Any]) -> int:
        if reading.exists():
            reading.unlink(missing_ok=True)
            raise OSError(code, os.strerror(code))
        return read(fd, buffers)

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", write)
        patched.setattr(os, "readv", readv)
        mount.mount(os.fsencode(place.view), parse([f"{place.options},timeout=0,front=kernel"]))
    (place / "failing").touch()
    for _ in range(session._THREADS + 4):
        done = subprocess.run(["stat", place.view / "victim"], capture_output=True, text=True, timeout=MINUTE)
        assert "Input/output error" in done.stderr
        reading.touch()
    (place / "failing").unlink()
    done = subprocess.run(["cat", place.view / "victim"], capture_output=True, text=True, timeout=MINUTE)
    assert done.stdout == "v"
    pid = place.supervisor()
    umount.unmount(os.fsencode(place.view))
    os.waitpid(pid, 0)


# --- umount(8) ------------------------------------------------------------------------------------


@pytest.mark.parametrize("absolute", [False, True])
def test_umount_8_returns_when_the_layers_are_free(helper: Place, absolute: bool) -> None:
    """`umount view && umount layers` is enough."""
    layers = helper / "layers"
    layers.mkdir()
    options = ",".join(f"{role}dir={layers / role}" for role in ("lower", "upper", "work"))
    for _ in range(3):
        mounting.mount(b"none", os.fsencode(layers), b"tmpfs", 0, b"")
        builders.directories(layers, "lower", "upper", "work")
        assert run("mount", "-t", "fuse.overlayfs-demo", "x", helper.view, "-o", options).returncode == 0
        (helper.view / "new").write_text("1")
        view = helper.view if absolute else "view"
        done = run("sh", "-c", f"umount {view} && umount {layers}", cwd=helper.base)
        assert (done.returncode, done.stderr) == (0, "")


def test_umount_8_of_another_fuse_file_system_is_what_it_was(helper: Place) -> None:
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0".encode()
    mounting.mount(b"none", os.fsencode(helper.view), b"fuse.other", 0, options)
    os.close(device)  # It is dead now, so that nothing need answer.
    assert run("umount", helper.view).returncode == 0
    assert not helper.is_mounted()
    done = run("umount", helper.view)
    assert done.returncode == 32 and "not mounted" in done.stderr


@pytest.mark.parametrize("words", [[], ["-n"], ["-v"], ["-f"], ["-t", "fuse.overlayfs-demo"], ["-r"], ["-nvr", "-l"]])
def test_helper_is_called_as_umount_8_does(place: Place, words: list[str]) -> None:
    helper = place / "umount.fuse.overlayfs-demo"
    helper.symlink_to(BIN / "overlayfs-demo")
    assert place.mount().returncode == 0
    done = run(helper, place.view, *words)
    assert (done.returncode, done.stderr) == (0, "")
    assert not place.is_mounted()
    fails(run(helper, place.view, *words), "not mounted by overlayfs-demo")


def test_helper_makes_a_busy_view_read_only_if_asked(place: Place) -> None:
    helper = place / "umount.fuse.overlayfs-demo"
    helper.symlink_to(BIN / "overlayfs-demo")
    assert place.mount().returncode == 0
    with (place.view / "motd").open():
        fails(run(helper, place.view), "is busy")
        assert run(helper, place.view, "-r").returncode == 0
        with pytest.raises(OSError, match="Read-only"):
            (place.view / "new").touch()


def test_helper_unmounts_in_the_namespace_it_is_told(place: Place) -> None:
    helper = place / "umount.fuse.overlayfs-demo"
    helper.symlink_to(BIN / "overlayfs-demo")
    assert place.mount().returncode == 0
    words = ["unshare", "--mount", "--propagation", "private", "sleep", "1000"]
    with subprocess.Popen(words) as process:
        wait_until(lambda: Path(f"/proc/{process.pid}/comm").read_text() == "sleep\n", "the namespace")
        try:
            assert run(helper, place.view, "-l", "-N", f"/proc/{process.pid}/ns/mnt").returncode == 0
            assert str(place.view) not in Path(f"/proc/{process.pid}/mountinfo").read_text()
            assert place.is_mounted() and (place.view / "motd").read_text() == "hello\n"
        finally:
            process.kill()
