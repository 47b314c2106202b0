"""Does a view go on when the daemon that serves it dies, and does whoever uses it notice nothing but a pause?"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import random
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path

import pytest

from overlayfs_demo.cli import main as cli
from overlayfs_demo.errors import MountError
from overlayfs_demo.fronts.front import View
from overlayfs_demo.fronts.keeper import Keeper
from overlayfs_demo.fronts.kernel import wire
from overlayfs_demo.fronts.kernel.patience import Patience
from overlayfs_demo.fronts.kernel.session import KernelFront
from overlayfs_demo.linux import mounting, proc, syscalls
from overlayfs_demo.mounts import registry, renewal, runtime_directory
from overlayfs_demo.mounts import serving as mounts_serving
from overlayfs_demo.mounts.held import Held, hold
from overlayfs_demo.mounts.options import parse
from overlayfs_demo.mounts.restart import RENEWING
from overlayfs_demo.mounts.serving import STOPPING
from overlayfs_demo.mounts.supervisor import Kept, Supervisor
from overlayfs_demo.overlay.private_mount import Roots
from tests import builders
from tests.conftest import PATIENCE, wait_until
from tests.contract.subjects import in_child
from tests.places import BIN, MINUTE, Place, fails, run
from tests.watch.test_watch import objects, watching
from tests.web.serving import serving


def _can_resend() -> bool:
    major, minor = os.uname().release.split(".")[:2]
    return (int(major), int("".join(filter(str.isdigit, minor)))) >= (6, 9)


pytestmark = pytest.mark.skipif(not _can_resend(), reason="FUSE_NOTIFY_RESEND: since Linux 6.9")


@pytest.fixture
def view(place: Place) -> Iterator[Path]:
    builders.fill(os.fsencode(place / "bottom"), {"low": "low", "d/x": "x"})
    says(place.mount("--front", "kernel"))
    yield place.view


def says(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stderr


def record_of(place: Place) -> registry.MountRecord:
    record = registry.find_record(str(place.view))
    assert record is not None
    return record


def kill(place: Place) -> None:
    """Kill the daemon, and wait until another one serves the view."""
    before = record_of(place)
    os.kill(before.daemon, signal.SIGKILL)
    wait_until(lambda: record_of(place).restarts > before.restarts, "another daemon")


@contextmanager
def opened(path: Path, flags: int) -> Iterator[int]:
    fd = os.open(path, flags, 0o644)
    try:
        yield fd
    finally:
        os.close(fd)


# --- what was there stays --------------------------------------------------------------------------


def test_another_daemon_serves_the_view(place: Place, view: Path) -> None:
    (view / "new").write_text("new")
    before = record_of(place)
    kill(place)
    assert (view / "low").read_text() == "low" and (view / "new").read_text() == "new"
    after = record_of(place)
    assert after.pid == before.pid and after.daemon != before.daemon and after.restarts == 1
    (view / "low").write_text("changed")
    assert (place / "upper/low").read_text() == "changed"


def test_daemon_that_fails_is_followed_by_another(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one that is asked for the name fails as a whole, not only that request."""
    wait = Patience.wait
    failed = place / "failed"

    def wait_or_fail(patience: Patience) -> bool:
        slept = wait(patience)
        if (place / "fail").exists() and not failed.exists():
            failed.touch()
            raise RuntimeError("as if there were a mistake in the loop")
        return slept

    monkeypatch.setattr(Patience, "wait", wait_or_fail)
    in_child(lambda: cli.main(["mount", "-o", place.options, str(place.view)]))
    (place / "fail").touch()
    assert (place.view / "motd").read_text()
    assert failed.exists()
    wait_until(lambda: record_of(place).restarts == 1, "another daemon")
    assert (place.view / "motd").read_text()
    says(place.umount())


def _ignore_ends_of_children() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)


def _allow_few_files() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


@pytest.mark.parametrize("prepare", [_ignore_ends_of_children, _allow_few_files])
def test_caller_of_mount_does_not_matter(place: Place, prepare: Callable[[], None]) -> None:
    words: list[str | Path] = [BIN / "overlayfs-demo", "mount", "--front", "kernel", "-o", place.options, place.view]
    subprocess.run(words, check=True, timeout=MINUTE, preexec_fn=prepare)
    with ExitStack() as files:
        fds = [files.enter_context(nameless(place.view / str(number))) for number in range(100)]
        kill(place)
        for number, fd in enumerate(fds):
            assert os.pread(fd, 9, 0) == b"%d" % number
    wait_until(lambda: not _deleted(place.daemon()) and not _deleted(place.supervisor()), "the release of the files")


@contextmanager
def nameless(path: Path) -> Iterator[int]:
    """A file that holds its former name."""
    with opened(path, os.O_RDWR | os.O_CREAT) as fd:
        os.write(fd, os.fsencode(path.name))
        path.unlink()
        yield fd


def _deleted(process: int) -> list[str]:
    """The files without a name that a process has open, except those in memory."""
    found = []
    for fd in os.listdir(f"/proc/{process}/fd"):
        with suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/{process}/fd/{fd}"))
    return [path for path in found if path.endswith(" (deleted)") and "/upper/" in path]


def test_caller_that_waits_for_the_daemon_gets_its_answer_from_the_next_one(place: Place, view: Path) -> None:
    daemon = place.daemon()
    os.kill(daemon, signal.SIGSTOP)
    found: list[str] = []
    caller = threading.Thread(target=lambda: found.append((view / "d/x").read_text()))
    caller.start()
    time.sleep(0.1)
    os.kill(daemon, signal.SIGKILL)
    caller.join(PATIENCE)
    assert found == ["x"]


@pytest.mark.parametrize("name", ["low", "new", "d/x"])
def test_open_file_is_used_on(place: Place, view: Path, name: str) -> None:
    with opened(view / name, os.O_RDWR | os.O_CREAT) as fd, opened(view / name, os.O_RDONLY) as reader:
        os.pwrite(fd, b"before", 0)
        kill(place)
        os.pwrite(fd, b" after", 6)
        os.fsync(fd)
        assert os.pread(reader, 100, 0) == b"before after"
        assert os.fstat(fd).st_ino == os.stat(view / name).st_ino
    assert (view / name).read_text() == "before after"


@pytest.mark.parametrize("how", ["removed", "replaced", "never had one"])
def test_open_file_without_a_name_is_used_on(place: Place, view: Path, how: str) -> None:
    if how == "never had one":
        fd = os.open(view, os.O_TMPFILE | os.O_RDWR, 0o600)
    else:
        fd = os.open(view / "low", os.O_RDWR)
        (view / "other").write_text("other")
        (view / "low").unlink() if how == "removed" else (view / "other").rename(view / "low")
    try:
        os.pwrite(fd, b"before", 0)
        for _ in range(2):
            kill(place)
            os.pwrite(fd, b" after", 6)
            assert os.pread(fd, 100, 0) == b"before after"
            status = os.fstat(fd)
            assert (status.st_nlink, status.st_size) == (0, 12)
        os.fchmod(fd, 0o640)
        assert os.fstat(fd).st_mode & 0o777 == 0o640
        if how == "never had one":
            with opened(view, os.O_PATH) as directory:
                syscalls.link_path(proc.fd_path(fd), directory, b"named")
            assert (view / "named").read_text() == "before after"
    finally:
        os.close(fd)


def test_lower_file_that_was_removed_while_it_was_read_is_read_on(place: Place, view: Path) -> None:
    with opened(view / "low", os.O_RDONLY) as fd:
        (view / "low").unlink()
        kill(place)
        assert os.pread(fd, 100, 0) == b"low"
        assert os.fstat(fd).st_nlink == 0


def test_lower_file_that_was_removed_and_then_written_is_used_on(place: Place, view: Path) -> None:
    """It has no name when it is copied up."""
    with opened(view / "low", os.O_RDONLY) as reader:
        (view / "low").unlink()
        kill(place)
        with opened(Path(os.fsdecode(proc.fd_path(reader))), os.O_RDWR) as writer:
            os.pwrite(writer, b"new", 0)
            kill(place)
            os.pwrite(writer, b"er", 3)
            assert os.pread(reader, 100, 0) == os.pread(writer, 100, 0) == b"newer"


def test_working_directory_stays(place: Place, view: Path) -> None:
    command = "cd d && echo ready && read line && cat x && echo 1 >y && mv y z && ls"
    with subprocess.Popen(["sh", "-c", command], cwd=view, stdin=-1, stdout=-1, stderr=-2, text=True) as shell:
        assert shell.stdout is not None
        assert shell.stdout.readline() == "ready\n"
        kill(place)
        assert shell.communicate("\n", timeout=MINUTE)[0] == "xdeep\nx\nz\n"


def test_directory_that_was_moved_is_used_on(place: Place, view: Path) -> None:
    os.mkdir(view / "e")
    with opened(view / "e", os.O_RDONLY | os.O_DIRECTORY) as fd:
        os.rename(view / "e", view / "d/moved")
        kill(place)
        with open("made", "w", opener=lambda name, flags: os.open(name, flags, dir_fd=fd)) as file:
            file.write("1")
    assert (view / "d/moved/made").read_text() == "1"


def test_locks_are_the_kernels_and_stay(place: Place, view: Path) -> None:
    """Neither kind asks the daemon: fs/fuse handles both itself unless a daemon wants them (FUSE_POSIX_LOCKS)."""
    (view / "ranges").touch()
    (view / "whole").touch()
    with opened(view / "ranges", os.O_RDWR) as ranges, opened(view / "whole", os.O_RDWR) as whole:
        fcntl.lockf(ranges, fcntl.LOCK_EX | fcntl.LOCK_NB, 10)
        fcntl.flock(whole, fcntl.LOCK_EX | fcntl.LOCK_NB)
        kill(place)

        def others() -> None:
            with opened(view / "ranges", os.O_RDWR) as fd:
                fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 10)
                with pytest.raises(BlockingIOError):
                    fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 5)
            with opened(view / "whole", os.O_RDWR) as fd, pytest.raises(BlockingIOError):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

        in_child(others)


def test_change_behind_the_view_while_nobody_serves_it_is_seen(place: Place, view: Path) -> None:
    assert (view / "low").read_text() == "low" and (view / "d/x").exists()
    before = record_of(place)
    os.kill(before.pid, signal.SIGSTOP)
    try:
        os.kill(before.daemon, signal.SIGKILL)
        (place / "bottom/low").write_text("changed")
        (place / "bottom/d/x").rename(place / "bottom/d/y")
    finally:
        os.kill(before.pid, signal.SIGCONT)
    wait_until(lambda: record_of(place).restarts > 0, "another daemon")
    wait_until(lambda: (view / "low").read_text() == "changed", "the change")
    wait_until(lambda: not (view / "d/x").exists(), "the removal")


def test_what_is_mounted_in_the_view_stays(place: Place, view: Path) -> None:
    mounting.mount(b"inside", os.fsencode(view / "d"), b"tmpfs", 0, b"")
    try:
        (view / "d/inside").touch()
        kill(place)
        for _ in range(5):
            time.sleep(0.1)
            assert os.listdir(view) and os.listdir(view / "d") == ["inside"]
    finally:
        mounting.unmount(os.fsencode(view / "d"), 0)


def test_layers_that_were_moved_meanwhile_still_serve(place: Place, view: Path) -> None:
    (place / "upper").rename(place / "elsewhere")
    kill(place)
    (view / "low").write_text("changed")
    assert (place / "elsewhere/low").read_text() == "changed"
    (place / "elsewhere").rename(place / "upper")


class _ReadyFront(KernelFront):
    """A front whose view answers at once, and is unmounted then."""

    def serve(self, view: View, ready: Callable[[], None], keeper: Keeper) -> None:
        ready()


@pytest.mark.parametrize("is_first", [True, False])
def test_only_the_first_daemon_needs_its_users_runtime_directory(
    place: Place, monkeypatch: pytest.MonkeyPatch, is_first: bool
) -> None:
    """It may end with the user's session."""
    (place / "file").touch()
    monkeypatch.setattr(runtime_directory, "of_this_user", lambda: str(place / "file"))

    def serve() -> None:
        options = parse([place.options])
        held, told = hold(options), []
        keeper = Keeper(device=None if is_first else 0)
        mounts_serving._serve(_ReadyFront(), b"/nowhere", options, held.roots, keeper, lambda: told.append(True))
        assert told

    with pytest.raises(MountError) if is_first else nullcontext():
        in_child(serve)


# --- programs --------------------------------------------------------------------------------------


def test_programs_notice_nothing(place: Place, view: Path) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    source = place / "source"
    builders.fill(
        os.fsencode(place.base),
        {f"source/{number % 7}/{number}": rng.randbytes(rng.randrange(9000)).hex() for number in range(150)},
    )
    ended = threading.Event()
    failures: list[str] = []

    def work(number: int) -> None:
        rounds = 0
        while not ended.is_set() or not rounds:
            rounds += 1
            copy = view / f"copy {number}"
            script = (
                'mkdir "$2" && tar -C "$1" -c . | tar -C "$2" -x && diff -r "$1" "$2" && ln "$2/0/0" "$2/link" && '
                'mv "$2" "$2 moved" && sync "$2 moved/link" && rm -r "$2 moved"'
            )
            done = subprocess.run(["sh", "-c", script, "sh", source, copy], capture_output=True, text=True)
            if done.returncode:
                failures.append(done.stdout + done.stderr)
                return

    workers = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for worker in workers:
        worker.start()
    for _ in range(8):
        time.sleep(rng.uniform(0, 0.2))
        kill(place)
    ended.set()
    for worker in workers:
        worker.join(MINUTE)
    assert not failures
    assert sorted(os.listdir(view)) == ["d", "low", "motd"]
    assert not os.listdir(place / "work/work")


# --- who is told -----------------------------------------------------------------------------------


def test_watcher_is_told_and_carries_on(place: Place, view: Path) -> None:
    with watching(place, "--json") as watcher:
        (view / "first").touch()
        kill(place)
        assert watcher.process.stdout is not None
        while json.loads(watcher.process.stdout.readline()) != {"restarted": True}:
            pass
        (view / "second").touch()
        says(place.umount())
        assert [update["path"] for update in objects(watcher.ends())] == ["/second"]


def test_question_while_nobody_serves_waits_for_the_next_daemon(place: Place, view: Path) -> None:
    record = record_of(place)
    os.kill(record.pid, signal.SIGSTOP)
    os.kill(record.daemon, signal.SIGKILL)
    threading.Timer(0.3, os.kill, (record.pid, signal.SIGCONT)).start()
    done = run("overlayfs-demo", "which", view / "low")
    says(done)
    assert "visible" in done.stdout


def test_daemons_that_are_killed_before_they_serve_are_followed_by_others(place: Place, view: Path) -> None:
    supervisor, killed = record_of(place).pid, set[int]()
    deadline = time.monotonic() + PATIENCE
    while len(killed) < 12 and time.monotonic() < deadline:
        children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
        for daemon in set(map(int, children)) - killed:
            os.kill(daemon, signal.SIGKILL)
            killed.add(daemon)
    assert len(killed) == 12
    assert (view / "low").read_text() == "low"


def test_page_of_a_view_stays(place: Place, view: Path) -> None:
    with serving(view) as server, server.events() as messages:
        assert next(messages)[0] == "attached"
        kill(place)
        assert server.get("/").status == 200
        says(place.umount())
        kind, said = list(messages)[-1]
        assert (kind, said) == ("ended", {"why": "the view was unmounted"})
        assert server.ends()[0] == 0


def test_restart_lets_the_installed_program_serve_the_view(place: Place, view: Path) -> None:
    before = record_of(place)
    with opened(view / "low", os.O_RDWR) as fd:
        done = run("overlayfs-demo", "restart", view / "d")
        assert done.returncode == 0
        after = record_of(place)
        assert f"process {after.daemon} serves {view} now" in done.stderr
        assert after.pid == before.pid and after.restarts == 1
        assert b"renewed" in Path(f"/proc/{after.pid}/cmdline").read_bytes()
        os.pwrite(fd, b"new", 0)
        kill(place)
        os.pwrite(fd, b"er", 3)
    assert (view / "low").read_text() == "newer"
    says(run("overlayfs-demo", "restart", view))
    says(place.umount())
    assert registry.find_record(str(view)) is None


def test_restart_that_is_asked_for_during_a_restart_does_no_harm(place: Place, view: Path) -> None:
    before = record_of(place)

    def restarted() -> bool:
        os.kill(before.pid, RENEWING)
        return b"renewed" in Path(f"/proc/{before.pid}/cmdline").read_bytes() and record_of(place).restarts > 0

    wait_until(restarted, "another daemon")
    (view / "low").write_text("changed")
    assert record_of(place).pid == before.pid


@pytest.mark.parametrize("why", ["the program is gone", "it does not understand"])
def test_restart_with_a_program_that_cannot_go_on_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, why: str
) -> None:
    gone = why == "the program is gone"
    monkeypatch.setattr(renewal, "_PROGRAM", [str(tmp_path / "python")] if gone else renewal._PROGRAM)
    options = "" if gone else "option_of_another_version"
    record = registry.MountRecord(str(tmp_path), 1, "kernel", [], None, [], [], [], options, 1)
    with Path(os.devnull).open() as file:
        kept = Kept(file.fileno(), file.fileno(), {}, resumable=True)
        registration = registry.Registration(record, file.fileno())
        renewal.replace_process([], Held([], Roots((), None, -1)), registration, kept)
    assert "so the present one does" in caplog.text


def test_restart_of_a_view_without_a_supervisor_is_refused(place: Place) -> None:
    says(place.mount("--front", "fusepy"))
    fails(run("overlayfs-demo", "restart", place.view), "has no supervisor", "--front kernel")
    fails(run("overlayfs-demo", "restart", place.base), "is not in a view")


# --- the end ---------------------------------------------------------------------------------------


def gone(process: int) -> Callable[[], bool]:
    return lambda: not os.path.exists(f"/proc/{process}")


def test_daemon_ends_with_its_supervisor(place: Place, view: Path) -> None:
    record = record_of(place)
    os.kill(record.pid, signal.SIGKILL)
    wait_until(gone(record.daemon), "the daemon's end")
    with pytest.raises(OSError) as failed:
        os.listdir(view)
    assert failed.value.errno in (errno.ENOTCONN, errno.ECONNABORTED)


@pytest.mark.parametrize("which", ["pid", "daemon"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_unmounts_whoever_gets_it(place: Place, view: Path, which: str, number: int) -> None:
    record = record_of(place)
    kill(place)
    os.kill(getattr(record_of(place), which), number)
    wait_until(gone(record.pid), "the end")
    assert not place.is_mounted() and registry.find_record(str(view)) is None


def test_signal_ends_a_daemon_that_has_just_begun(tmp_path: Path) -> None:
    def serve(_keeper: Keeper) -> None:
        os.kill(os.getppid(), signal.SIGTERM)
        time.sleep(3)
        (tmp_path / "survived").touch()

    def supervise() -> None:
        Supervisor(b"/nowhere", serve, lambda _daemon: None, lambda _kept: None).run(STOPPING, RENEWING)

    in_child(supervise)
    assert not (tmp_path / "survived").exists()


def test_signal_while_nobody_serves_ends_the_mount(place: Place, view: Path) -> None:
    record = record_of(place)
    os.kill(record.pid, signal.SIGSTOP)
    os.kill(record.daemon, signal.SIGKILL)
    os.kill(record.pid, signal.SIGTERM)
    os.kill(record.pid, signal.SIGCONT)
    wait_until(gone(record.pid), "the end")
    assert not place.is_mounted()


def test_view_that_is_unmounted_while_nobody_serves_ends(place: Place, view: Path) -> None:
    record = record_of(place)
    os.kill(record.pid, signal.SIGSTOP)
    os.kill(record.daemon, signal.SIGKILL)
    says(run("umount", "-i", "-l", view))
    os.kill(record.pid, signal.SIGCONT)
    wait_until(gone(record.pid), "the end")


# --- older kernels ---------------------------------------------------------------------------------


def test_on_an_older_kernel_the_view_is_mounted_again(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    builders.fill(os.fsencode(place / "bottom"), {"low": "low"})
    monkeypatch.setattr(wire, "HAS_RESEND", 0)
    in_child(lambda: cli.main(["mount", "-o", place.options, str(place.view)]))
    fd = os.open(place.view / "low", os.O_RDONLY)
    kill(place)
    assert (place.view / "low").read_text() == "low"
    for call in (lambda fd: os.getxattr(fd, "user.x"), os.close):
        with pytest.raises(OSError) as failed:
            call(fd)
        assert failed.value.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    assert Path("/proc/self/mountinfo").read_text().count(f" {place.view} ") == 1
    says(place.umount())
