"""What does a mount promise while the kernel reads and writes files of the upper by itself?

Whether it does is seen when the daemon is stopped: whatever needs no answer goes on.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import signal
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from overlayfs_demo.linux import mounting, syscalls
from overlayfs_demo.overlay import inode_flags
from tests import builders
from tests.conftest import PATIENCE, wait_until
from tests.contract.marks import HAS_PASSTHROUGH
from tests.contract.subjects import in_child
from tests.fronts.test_set_id_bits import CAPABILITY, PROGRAM, as_user, run_as
from tests.places import Place
from tests.watch.test_watch import objects, watching

pytestmark = pytest.mark.skipif(not HAS_PASSTHROUGH, reason="passthrough: since Linux 6.9")

# Seconds in which a call that needs no answer would have returned.
_A_MOMENT = 0.3


@pytest.fixture
def view(place: Place) -> Iterator[Path]:
    builders.fill(os.fsencode(place / "bottom"), {"low": "low"})
    builders.fill(os.fsencode(place / "upper"), {"up": "upper", "program": builders.file(PROGRAM, mode=0o4777)})
    assert place.mount("--front", "kernel").returncode == 0
    yield place.view


@contextmanager
def opened(path: Path, flags: int) -> Iterator[int]:
    fd = os.open(path, flags, 0o644)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def stopped(process: int) -> Iterator[None]:
    os.kill(process, signal.SIGSTOP)
    tasks = Path(f"/proc/{process}/task")
    wait_until(lambda: all(proc_state(task) == "T" for task in tasks.iterdir()), "every thread to stop")
    try:
        yield
    finally:
        os.kill(process, signal.SIGCONT)


def proc_state(task: Path) -> str:
    return (task / "stat").read_text().rpartition(") ")[2][0]


def needs_no_answer(place: Place, act: Callable[[], object], patience: float = PATIENCE) -> bool:
    """Does the call return while the daemon is stopped? It is over in any case when this returns."""
    caller = threading.Thread(target=act)
    with stopped(place.daemon()):
        caller.start()
        caller.join(patience)
        alone = not caller.is_alive()
    caller.join(PATIENCE)
    assert not caller.is_alive()
    return alone


def writes_alone(place: Place, fd: int, patience: float = PATIENCE) -> bool:
    os.pwrite(fd, b"1", 0)  # Before the first write the kernel asks for security.capability.
    return needs_no_answer(place, lambda: os.pwrite(fd, b"22", 0), patience)


@pytest.mark.parametrize("name", ["new", "up", "low"])
def test_kernel_writes_a_file_of_the_upper_alone(place: Place, view: Path, name: str) -> None:
    with opened(view / name, os.O_WRONLY | os.O_CREAT) as fd:
        assert writes_alone(place, fd)
    assert (place / "upper" / name).read_bytes().startswith(b"22")
    assert (view / name).read_bytes().startswith(b"22")


def test_unnamed_file_is_written_alone(place: Place, view: Path) -> None:
    with opened(view, os.O_RDWR | os.O_TMPFILE) as fd:
        assert writes_alone(place, fd)
        syscalls.link_path(b"/proc/self/fd/%d" % fd, os.open(view, os.O_RDONLY), b"named")
    assert (view / "named").read_bytes() == b"22"


def test_kernel_reads_a_file_of_the_upper_alone(place: Place, view: Path) -> None:
    with opened(view / "up", os.O_RDONLY) as fd:
        assert needs_no_answer(place, lambda: os.pread(fd, 100, 0))


@pytest.mark.parametrize("writable", [True, False])
def test_kernel_reads_a_large_file_of_a_lower_alone_if_it_cannot_be_copied_up(place: Place, writable: bool) -> None:
    builders.fill(os.fsencode(place / "bottom"), {"large": b"x" * 100_000})
    options = place.options if writable else f"lowerdir={place / 'top'}:{place / 'bottom'}"
    assert place.mount("--front", "kernel", options=options).returncode == 0
    with opened(place.view / "large", os.O_RDONLY) as fd:
        patience = _A_MOMENT if writable else PATIENCE
        assert needs_no_answer(place, lambda: os.pread(fd, 100_000, 0), patience) != writable
        assert os.pread(fd, 200_000, 0) == b"x" * 100_000


def test_option_makes_all_data_go_through_the_daemon(place: Place) -> None:
    assert place.mount("--front", "kernel", options=f"{place.options},passthrough=off").returncode == 0
    with opened(place.view / "new", os.O_WRONLY | os.O_CREAT) as fd:
        assert not writes_alone(place, fd, _A_MOMENT)
    assert (place.view / "new").read_bytes() == b"22"


def test_size_that_was_written_alone_is_seen_at_once(view: Path) -> None:
    path = view / "new"
    with opened(path, os.O_WRONLY | os.O_CREAT) as fd:
        for size in (1, 5000, 5001):
            os.pwrite(fd, b"x", size - 1)
            assert (path.stat().st_size, os.fstat(fd).st_size) == (size, size)


def test_reader_of_the_lower_file_sees_what_is_written_to_the_copy(view: Path) -> None:
    with opened(view / "low", os.O_RDONLY) as before, opened(view / "low", os.O_WRONLY) as writer:
        assert os.pread(before, 10, 0) == b"low"
        os.pwrite(writer, b"LOW!", 0)
        with opened(view / "low", os.O_RDONLY) as after:
            assert (os.pread(before, 10, 0), os.pread(after, 10, 0)) == (b"LOW!", b"LOW!")


@pytest.mark.parametrize("first", [os.O_RDONLY, os.O_WRONLY, os.O_RDWR])
@pytest.mark.parametrize(
    "second", [os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC, os.O_WRONLY | os.O_APPEND]
)
@pytest.mark.parametrize("name", ["up", "low"])
def test_file_can_be_opened_in_any_way_while_it_is_open(view: Path, name: str, first: int, second: int) -> None:
    with opened(view / name, first), opened(view / name, second):
        pass
    with opened(view / name, second), opened(view / name, first):
        assert (view / name).read_bytes() == (b"" if second & os.O_TRUNC else {"up": b"upper", "low": b"low"}[name])


def test_time_of_a_write_through_a_mapping_is_seen(place: Place, view: Path) -> None:
    path = view / "up"
    before = path.stat().st_mtime_ns
    with opened(path, os.O_RDWR) as fd, mmap.mmap(fd, 5) as pages:
        wait_until(lambda: _writes_later(pages, place / "upper/up", before), "a later time on disk")
        assert path.stat().st_mtime_ns == (place / "upper/up").stat().st_mtime_ns
    assert path.stat().st_mtime_ns == (place / "upper/up").stat().st_mtime_ns
    assert path.read_bytes() == b"UPPER"


def _writes_later(pages: mmap.mmap, real: Path, before: int) -> bool:
    pages[:] = b"UPPER"
    pages.flush()
    return real.stat().st_mtime_ns > before


# --- set-id bits --------------------------------------------------------------------------------------


def test_program_with_set_id_bits_is_not_written_alone(place: Place, view: Path) -> None:
    with opened(view / "program", os.O_WRONLY) as fd:
        assert not writes_alone(place, fd, _A_MOMENT)


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_RDWR])
@pytest.mark.parametrize("by", ["chmod", "setcap"])
def test_file_that_became_a_privileged_program_loses_its_rights_by_a_write_through_an_older_handle(
    view: Path, flags: int, by: str
) -> None:
    """Somebody else has the file open, and the kernel writes for him with the daemon's rights."""
    path = view / "tool"
    path.write_bytes(PROGRAM)
    path.chmod(0o777)

    def attack() -> None:
        fd = os.open("tool", flags)
        os.write(ready[1], b"!")
        os.read(go[0], 1)
        os.pwrite(fd, b"evil", len(PROGRAM))
        os.close(fd)
        assert "euid" not in run_as("tool")

    ready, go = os.pipe(), os.pipe()
    attacker = threading.Thread(target=lambda: outcome.append(_error(lambda: as_user(view, attack))))
    outcome: list[BaseException | None] = []
    attacker.start()
    os.read(ready[0], 1)
    if by == "chmod":
        path.chmod(0o6777)
        assert stat.S_IMODE(path.stat().st_mode) == 0o6777
    else:
        os.setxattr(path, "security.capability", CAPABILITY)
    os.write(go[1], b"!")
    attacker.join(PATIENCE)
    assert outcome == [None]
    assert stat.S_IMODE(path.stat().st_mode) == 0o777
    assert "security.capability" not in os.listxattr(path)


def _error(act: Callable[[], object]) -> BaseException | None:
    try:
        act()
    except BaseException as error:  # noqa: BLE001 - the other thread looks at it
        return error
    return None


def test_writer_beside_a_reader_takes_set_id_bits_that_came_in_between(view: Path) -> None:
    path = view / "tool"
    path.write_bytes(PROGRAM)
    path.chmod(0o777)
    with opened(path, os.O_RDONLY):
        path.chmod(0o4777)

        def attack() -> None:
            with opened(Path("tool"), os.O_WRONLY) as fd:
                os.pwrite(fd, b"evil", len(PROGRAM))
            assert "euid" not in run_as("tool")

        as_user(view, attack)


def test_bits_set_through_the_descriptor_that_wrote_the_program_stay(view: Path) -> None:
    """So tar and install do it."""
    with opened(view / "tool", os.O_WRONLY | os.O_CREAT) as fd:
        os.write(fd, PROGRAM)
        os.fchmod(fd, 0o4755)
    assert stat.S_IMODE((view / "tool").stat().st_mode) == 0o4755

    def run() -> None:
        assert "euid=0" in run_as("tool")

    as_user(view, run)


# --- who watches --------------------------------------------------------------------------------------


def written(place: Place, act: Callable[[], object]) -> list[tuple[str, str, int]]:
    """The writes that a watcher hears of: the action, the path and the size."""
    with watching(place, "--json") as watcher:
        act()
        assert place.umount().returncode == 0
        told = objects(watcher.ends())
    return [(event["action"], event["path"], event.get("size", 0)) for event in told if "write" in event["action"]]


def test_watcher_sees_each_write_to_a_file_that_is_opened_meanwhile(place: Place, view: Path) -> None:
    def act() -> None:
        with opened(view / "up", os.O_WRONLY) as fd:
            os.write(fd, b"abc")
            os.write(fd, b"de")

    assert written(place, act) == [("write", "/up", 3), ("write", "/up", 2)]


def test_watcher_hears_once_of_a_file_that_was_open_before(place: Place, view: Path) -> None:
    fds = [os.open(view / "up", os.O_WRONLY), os.open(view / "new", os.O_WRONLY | os.O_CREAT)]

    def act() -> None:
        for fd in fds[:1]:
            os.write(fd, b"abc")
            os.write(fd, b"de")
        for fd in fds:
            os.close(fd)

    assert written(place, act) == [("write-through", "/up", 0)]


def test_writes_of_callers_are_no_changes_behind_the_view(place: Place, view: Path) -> None:
    """The kernel may keep what it has cached of other files, and is told of what somebody else really changes."""
    with opened(view / "up", os.O_WRONLY) as fd:
        os.write(fd, b"mine!")
    assert (view / "up").stat().st_size == 5
    (place / "upper/up").write_bytes(b"changed behind")
    wait_until(lambda: (view / "up").stat().st_size == 14, "the new size")
    assert (view / "up").read_bytes() == b"changed behind"


def test_change_behind_the_view_is_seen_while_the_file_is_open_for_writing(place: Place, view: Path) -> None:
    def behind() -> None:
        with (place / "upper/up").open("ab") as real:
            real.write(b"behind")

    assert (view / "up").stat().st_size == 5
    with opened(view / "up", os.O_WRONLY) as fd:
        in_child(behind)
        wait_until(lambda: (view / "up").stat().st_size == 11, "the new size")
        os.pwrite(fd, b"U", 0)
        assert (view / "up").stat().st_size == 11
        in_child(behind)
    wait_until(lambda: (view / "up").stat().st_size == 17, "the new size after the release")
    assert (view / "up").read_bytes() == b"Upperbehindbehind"


# --- O_DIRECT ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_read_before", [True, False])
def test_direct_open_of_a_file_whose_filesystem_has_no_such_thing_is_no_io_error(
    place: Place, is_read_before: bool
) -> None:
    layer = place / "ramfs"
    layer.mkdir()
    mounting.mount(b"none", os.fsencode(layer), b"ramfs", 0, b"")
    try:
        builders.fill(os.fsencode(layer), {"large": b"x" * 100_000})
        assert place.mount("--front", "kernel", options=f"lowerdir={layer}:{place / 'bottom'}").returncode == 0
        path = place.view / "large"
        with ExitStack() as held:
            if is_read_before:
                held.enter_context(opened(path, os.O_RDONLY))
                with pytest.raises(OSError) as caught:
                    os.open(path, os.O_RDONLY | os.O_DIRECT)
                assert caught.value.errno == errno.EINVAL
            else:
                with opened(path, os.O_RDONLY | os.O_DIRECT) as fd:
                    assert os.pread(fd, 200_000, 0) == b"x" * 100_000
        assert place.umount().returncode == 0
    finally:
        mounting.unmount(os.fsencode(layer), mounting.MNT_DETACH)


# --- append-only files --------------------------------------------------------------------------------


def set_append_only(path: Path, on: bool = True) -> None:
    with opened(path, os.O_RDONLY) as fd:
        flags = inode_flags.PLAIN.append if on else 0
        fcntl.ioctl(fd, inode_flags.PLAIN.set, flags.to_bytes(8, sys.byteorder))


@pytest.mark.parametrize("is_read_before", [True, False])
def test_append_only_file_cannot_be_overwritten_through_a_mapping(view: Path, is_read_before: bool) -> None:
    """The kernel maps the real file of an open that passes, whatever the flags of the view's file."""
    path = view / "up"
    set_append_only(path)
    with ExitStack() as held:
        if is_read_before:
            held.enter_context(opened(path, os.O_RDONLY))
        with opened(path, os.O_RDWR | os.O_APPEND) as fd:
            with pytest.raises(OSError):
                mmap.mmap(fd, 5)
            os.write(fd, b"+")
    set_append_only(path, False)
    assert path.read_bytes() == b"upper+"


def test_file_that_becomes_append_only_while_it_is_open_cannot_be_opened_for_mapping(view: Path) -> None:
    path = view / "up"
    with opened(path, os.O_RDONLY):
        set_append_only(path)
        with pytest.raises(PermissionError):
            os.open(path, os.O_RDWR | os.O_APPEND)
        with opened(path, os.O_WRONLY | os.O_APPEND) as fd:
            os.write(fd, b"+")
    with opened(path, os.O_RDWR | os.O_APPEND) as fd:
        os.write(fd, b"+")
    set_append_only(path, False)
    assert path.read_bytes() == b"upper++"
