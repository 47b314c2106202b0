"""What do several processes see that use one file at once: through pages, past them, mapped, locked?"""

from __future__ import annotations

import errno
import faulthandler
import fcntl
import mmap
import os
import resource
import signal
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import pytest

from tests.builders import sparse
from tests.contract.conftest import Mount
from tests.contract.marks import CACHED, differs, only
from tests.contract.subjects import Subject, in_child

mounts = only(
    ["kernel-front", CACHED, "fusepy-front", "kernel"], "pages, mappings and locks are not the engine's affair"
)

PAGE = mmap.PAGESIZE


@contextmanager
def opened(view: Subject, path: str, flags: int = os.O_RDONLY) -> Iterator[int]:
    """The descriptor of a file of the view."""
    fd = os.open(os.path.join(os.fsencode(view.layers.mountpoint), os.fsencode(path)), flags, 0o644)
    try:
        yield fd
    finally:
        os.close(fd)


# --- past the pages: O_DIRECT -------------------------------------------------------------------------


@contextmanager
def direct(view: Subject, path: str, flags: int) -> Iterator[int]:
    """A descriptor with O_DIRECT; skips the fact where the layers' filesystem has no such thing."""
    try:
        with opened(view, path, flags | os.O_DIRECT) as fd:
            yield fd
    except OSError as error:
        if error.errno != errno.EINVAL or view.kind != "kernel":
            raise
        pytest.skip("the layers' filesystem has no O_DIRECT")


def aligned(data: bytes) -> mmap.mmap:
    """Memory at the start of a page, as O_DIRECT needs it."""
    memory = mmap.mmap(-1, -(-max(len(data), 1) // PAGE) * PAGE)
    memory[: len(data)] = data
    return memory


def read_direct(fd: int, size: int = 4 * PAGE) -> bytes:
    memory = aligned(bytes(size))
    return memory[: os.preadv(fd, [memory], 0)]


@mounts
@pytest.mark.parametrize("where", ["lower", "upper"])
def test_direct_reader_sees_what_is_in_the_file(mounted: Mount, where: str) -> None:
    view = mounted({"lower": "data" * PAGE}, upper={"upper": "data" * PAGE})
    with direct(view, where, os.O_RDONLY) as fd:
        assert read_direct(fd) == b"data" * PAGE
        view.write(where, b"DATA", flags=0)
        assert read_direct(fd)[:8] == b"DATAdata"


@mounts
def test_direct_and_cached_users_see_each_others_data(mounted: Mount) -> None:
    view = mounted({"a": b"a" * 2 * PAGE})
    with opened(view, "a", os.O_RDWR) as cached, direct(view, "a", os.O_RDWR) as fd:
        assert os.pread(cached, 2 * PAGE, 0) == b"a" * 2 * PAGE
        assert os.pwritev(fd, [aligned(b"b" * PAGE)], 0) == PAGE
        assert os.pread(cached, 2 * PAGE, 0) == b"b" * PAGE + b"a" * PAGE
        os.pwrite(cached, b"c", PAGE)
        assert read_direct(fd) == b"b" * PAGE + b"c" + b"a" * (PAGE - 1)
        assert os.pwritev(fd, [aligned(b"d" * PAGE)], 2 * PAGE) == PAGE
        assert os.fstat(cached).st_size == 3 * PAGE
        assert os.pread(cached, 3 * PAGE, 2 * PAGE) == b"d" * PAGE


@mounts
@differs("cached-kernel-front", "data goes through the daemon, so it needs no alignment")
@differs("fusepy-front", "as above")
@pytest.mark.on_disk  # In memory there are no blocks to align to.
def test_direct_write_must_be_aligned(mounted: Mount) -> None:
    view = mounted({"a": b"a" * PAGE})
    with direct(view, "a", os.O_RDWR) as fd:
        if view.differs:
            assert os.pwrite(fd, b"xyz", 1) == 3
            assert view.read("a")[:5] == b"axyza"
        else:
            with pytest.raises(OSError) as failure:
                os.pwrite(fd, b"xyz", 1)
            assert failure.value.errno == errno.EINVAL


# --- appending ----------------------------------------------------------------------------------------


def child(action: Callable[[], None]) -> int:
    """Start `action` in a process of its own; the process's id."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            action()
            status = 0
        finally:
            os._exit(status)
    return pid


@mounts
@pytest.mark.parametrize("where", ["lower", "upper", "new"])
def test_two_processes_append_and_nothing_is_lost(mounted: Mount, where: str) -> None:
    view = mounted({"lower": "begin\n"}, upper={"upper": "begin\n"})
    view.names()

    def append(mark: bytes) -> None:
        with opened(view, where, os.O_WRONLY | os.O_APPEND | os.O_CREAT) as fd:
            for number in range(200):
                assert os.write(fd, b"%s %d\n" % (mark, number)) > 0

    children = [child(partial(append, mark)) for mark in (b"one", b"two")]
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0]
    lines = view.read(where).splitlines()
    assert lines[: where != "new"] == [b"begin"][: where != "new"]
    for mark in (b"one", b"two"):
        assert [line for line in lines if line.startswith(mark)] == [b"%s %d" % (mark, n) for n in range(200)]
    assert view.upper(where).read_bytes() == view.read(where)


@mounts
def test_appending_descriptor_ignores_where_it_stands(mounted: Mount) -> None:
    view = mounted({"a": "data"})
    with opened(view, "a", os.O_RDWR | os.O_APPEND) as fd, opened(view, "a", os.O_RDWR) as other:
        os.write(other, b"DATA and more")
        os.lseek(fd, 0, os.SEEK_SET)
        os.write(fd, b"!")
        os.ftruncate(other, 4)
        os.write(fd, b"?")
    assert view.read("a") == b"DATA?"


# --- mappings -----------------------------------------------------------------------------------------

PAGES = b"a" * PAGE + b"b" * PAGE + b"c" * 100


@mounts
@pytest.mark.parametrize("where", ["lower", "upper"])
def test_shared_mapping_is_written_to_the_upper(mounted: Mount, where: str) -> None:
    view = mounted({"lower": PAGES}, upper={"upper": PAGES})
    with opened(view, where, os.O_RDWR) as fd:
        memory = mmap.mmap(fd, len(PAGES))
        assert memory[:] == PAGES
        memory[PAGE] = ord("X")
        memory[-1] = ord("Z")
        expected = PAGES[:PAGE] + b"X" + PAGES[PAGE + 1 : -1] + b"Z"
        assert view.read(where) == expected
        memory.flush()
        assert view.upper(where).read_bytes() == expected
    memory[0] = ord("Y")
    memory.close()  # After the descriptor's end.
    assert view.upper(where).read_bytes() == view.read(where) == b"Y" + expected[1:]
    assert (view.layers.lowers[0] / "lower").read_bytes() == PAGES


@mounts
def test_shared_mapping_sees_what_is_written_and_cut(mounted: Mount) -> None:
    view = mounted({"a": PAGES})
    with opened(view, "a", os.O_RDWR) as fd:
        memory = mmap.mmap(fd, len(PAGES))
        assert memory[:] == PAGES
        view.write("a", b"X", flags=0, offset=PAGE)
        assert memory[PAGE - 1 : PAGE + 2] == b"aXb"
        view.truncate("a", PAGE + 1)
        view.truncate("a", 3 * PAGE)
        assert memory[PAGE - 1 : PAGE + 3] == b"aX\0\0"
        memory.close()


@mounts
@differs("kernel", "the mapping is one of the lower file, and stays it")
@pytest.mark.parametrize("flags", [mmap.MAP_SHARED, mmap.MAP_PRIVATE])
@pytest.mark.parametrize("touched", [True, False])
def test_read_mapping_from_before_sees_what_is_written_after(mounted: Mount, flags: int, touched: bool) -> None:
    view = mounted({"a": PAGES})
    with opened(view, "a") as fd:
        memory = mmap.mmap(fd, len(PAGES), flags=flags, prot=mmap.PROT_READ)
    if touched:
        assert memory[:] == PAGES
    view.write("a", b"X", flags=0)
    view.write("a", b"Y", flags=0, offset=PAGE)
    seen = memory[0:2], memory[PAGE : PAGE + 2]
    memory.close()
    assert seen == ((b"aa", b"bb") if view.differs else (b"Xa", b"Yb"))


@mounts
def test_time_of_a_write_through_a_mapping_whose_descriptor_is_closed_is_seen(mounted: Mount) -> None:
    view = mounted({}, upper={"a": PAGES})
    path = os.path.join(view.layers.mountpoint, "a")

    def write() -> None:
        numbers = _descriptors()
        memory = mmap.mmap(os.open(path, os.O_RDWR), len(PAGES))
        for number in _descriptors() - numbers:  # Also the copy that the object keeps.
            os.close(number)
        time.sleep(0.1)  # The release of a file is not waited for.
        before = os.stat(path).st_mtime_ns
        time.sleep(0.02)
        memory[0] = ord("X")
        memory.flush()
        assert os.stat(path).st_mtime_ns == view.upper("a").stat().st_mtime_ns > before

    in_child(write)
    assert view.read("a") == b"X" + PAGES[1:]


def _descriptors() -> set[int]:
    return {int(number) for number in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{number}")}


@mounts
def test_private_mapping_keeps_its_own_changes(mounted: Mount) -> None:
    view = mounted({"a": PAGES})
    with opened(view, "a") as fd:
        memory = mmap.mmap(fd, len(PAGES), flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        memory[0] = ord("X")
        memory.close()
    assert view.read("a") == PAGES
    assert view.upper_names() == []


@mounts
def test_mapping_of_a_hole_fills_it(mounted: Mount) -> None:
    view = mounted({"a": sparse(1 << 20, {})})
    with opened(view, "a", os.O_RDWR) as fd:
        memory = mmap.mmap(fd, 1 << 20)
        memory[512 << 10] = ord("X")
        memory.close()
    data = view.upper("a").read_bytes()
    assert (len(data), data.strip(b"\0"), data.index(b"X")) == (1 << 20, b"X", 512 << 10)


@mounts
def test_reading_past_the_end_of_a_mapped_file_is_a_bus_error(mounted: Mount) -> None:
    view = mounted({"a": PAGES})

    def touch() -> None:
        faulthandler.disable()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with opened(view, "a", os.O_RDWR) as fd:
            memory = mmap.mmap(fd, len(PAGES))
            os.ftruncate(fd, 10)
            _ = memory[PAGE]

    _, status = os.waitpid(child(touch), 0)
    assert os.WTERMSIG(status) == signal.SIGBUS


# --- locks --------------------------------------------------------------------------------------------

Lock = Callable[[int, int], object]


def record_lock(fd: int, kind: int) -> object:
    """A POSIX lock of the whole file, as lockf(3) and `F_SETLK` make it: the process's."""
    return fcntl.lockf(fd, kind if kind == fcntl.LOCK_UN else kind | fcntl.LOCK_NB)


def open_file_lock(fd: int, kind: int) -> object:
    """The same for the open file: `F_OFD_SETLK`."""
    types = {fcntl.LOCK_SH: fcntl.F_RDLCK, fcntl.LOCK_EX: fcntl.F_WRLCK, fcntl.LOCK_UN: fcntl.F_UNLCK}
    # struct flock: type, whence, start, length (0: to the end), process (0 here).
    return fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", types[kind], os.SEEK_SET, 0, 0, 0))


def flock(fd: int, kind: int) -> None:
    fcntl.flock(fd, kind | fcntl.LOCK_NB)


LOCKS: dict[str, Lock] = {"flock": flock, "POSIX": record_lock, "open file": open_file_lock}


def refused(lock: Lock, view: Subject, path: str, kind: int, flags: int) -> bool:
    """Is another process refused the lock?"""

    def attempt() -> None:
        with opened(view, path, flags) as fd:
            lock(fd, kind)

    try:
        in_child(attempt)
    except (BlockingIOError, PermissionError):
        return True
    return False


@mounts
@pytest.mark.parametrize("lock", LOCKS)
@pytest.mark.parametrize("where", ["lower", "upper"])
def test_locks_keep_another_process_out(mounted: Mount, where: str, lock: str) -> None:
    view = mounted({"lower": "data"}, upper={"upper": "data"})
    call = LOCKS[lock]
    with opened(view, where, os.O_RDWR) as fd:
        call(fd, fcntl.LOCK_EX)
        assert refused(call, view, where, fcntl.LOCK_EX, os.O_RDWR)
        assert refused(call, view, where, fcntl.LOCK_SH, os.O_RDONLY)
        call(fd, fcntl.LOCK_SH)
        assert refused(call, view, where, fcntl.LOCK_EX, os.O_RDWR)
        assert not refused(call, view, where, fcntl.LOCK_SH, os.O_RDONLY)
        call(fd, fcntl.LOCK_UN)
        assert not refused(call, view, where, fcntl.LOCK_EX, os.O_RDWR)
        call(fd, fcntl.LOCK_EX)
    assert not refused(call, view, where, fcntl.LOCK_EX, os.O_RDWR)


@mounts
@pytest.mark.parametrize("lock", LOCKS)
def test_lock_of_a_lower_file_holds_over_its_copy_up(mounted: Mount, lock: str) -> None:
    view = mounted({"a": "data"})
    call = LOCKS[lock]
    with opened(view, "a") as fd:
        call(fd, fcntl.LOCK_SH)
        assert refused(call, view, "a", fcntl.LOCK_EX, os.O_RDWR)
        assert view.upper("a").read_bytes() == b"data"
    assert not refused(call, view, "a", fcntl.LOCK_EX, os.O_RDWR)


@mounts
def test_ranges_of_a_file_are_locked_by_themselves(mounted: Mount) -> None:
    view = mounted({"a": "0123456789"})

    def attempt(start: int) -> None:
        with opened(view, "a", os.O_RDWR) as fd:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 2, start)

    with opened(view, "a", os.O_RDWR) as fd:
        fcntl.lockf(fd, fcntl.LOCK_EX, 4, 2)
        in_child(lambda: attempt(0))
        in_child(lambda: attempt(6))
        with pytest.raises((BlockingIOError, PermissionError)):
            in_child(lambda: attempt(5))
