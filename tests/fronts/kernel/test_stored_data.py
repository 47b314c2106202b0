"""Is a small file's data sent along with its open only when that can neither hang the mount nor be wrong?"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from overlayfs_demo.fronts.kernel import wire
from overlayfs_demo.fronts.kernel.wire import Opcode
from overlayfs_demo.linux import mounting
from overlayfs_demo.overlay.handle import Handle
from overlayfs_demo.overlay.node import FileNode
from tests import builders
from tests.conftest import PATIENCE, wait_until
from tests.contract.engine_subject import Engine
from tests.fronts.kernel.fake_kernel import FakeKernel, Reply, serving
from tests.overlay.conftest import Make
from tests.places import Place

# Seconds. Without the rule that stores follow, the mount hangs in the first of them.
_LOAD = 8
_A_MOMENT = 0.2


@pytest.fixture
def view(overlaid: Make) -> Engine:
    return overlaid({"small": "data", "large": "x" * 65537, "empty": "", "other": "1"})


@pytest.fixture
def kernel(view: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKernel]:
    with serving(view, monkeypatch) as one:
        yield one


def stored(nodeid: int, data: bytes) -> Reply:
    return Reply(wire.NOTIFY_STORE, wire.NOTIFY_STORE_OUT.pack(nodeid, 0, len(data)) + data)


def cut(kernel: FakeKernel, nodeid: int) -> int:
    """Ask for a file to become empty: the request's number."""
    return kernel.send(Opcode.SETATTR, nodeid, wire.SETATTR_IN.pack(wire.FATTR_SIZE, *(0,) * 10))


class HeldStore:
    """The kernel does not take what is stored until it is told to."""

    def __init__(self, kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.may_end = threading.Event(), threading.Event()
        self._store = kernel.session._store
        files = kernel.session._requests.files
        monkeypatch.setattr(files, "_services", files._services._replace(store=self))

    def __call__(self, nodeid: int, data: memoryview) -> None:
        self.begun.set()
        assert self.may_end.wait(PATIENCE)
        self._store(nodeid, data)


def test_first_open_brings_the_data_of_a_small_file(kernel: FakeKernel) -> None:
    nodes = {name: kernel.lookup(name) for name in ("small", "large", "empty")}
    for node in nodes.values():
        for _ in range(2):
            kernel.release(node, kernel.open(node))
    assert kernel.notices == [stored(nodes["small"], b"data")]


def test_nothing_is_stored_while_another_handle_of_the_file_is_open(kernel: FakeKernel) -> None:
    """The kernel may wait for data of a page, and hold its lock, for anybody who has the file open."""
    node, nodes = kernel.lookup("small"), kernel.session._requests.nodes
    first = kernel.open(node)
    nodes.forget_stored(node)
    second = kernel.open(node)
    kernel.release(node, first)
    third = kernel.open(node)
    assert kernel.notices == [stored(node, b"data")]
    kernel.release(node, second)
    kernel.release(node, third)
    kernel.open(node)
    assert kernel.notices == [stored(node, b"data")] * 2


def test_handle_cannot_be_used_before_the_data_is_stored(
    view: Engine, kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    node, store = kernel.lookup("small"), HeldStore(kernel, monkeypatch)
    opens = [kernel.send_open(node, os.O_RDONLY)]
    assert store.begun.wait(PATIENCE)
    opens.append(kernel.send_open(node, os.O_RDONLY))
    file = view.node("small")
    assert isinstance(file, FileNode)
    wait_until(lambda: len(file.handles) == 2, "the second handle")
    assert not kernel.receive(_A_MOMENT)
    store.may_end.set()
    assert [kernel.reply(unique).code for unique in opens] == [0, 0]
    assert kernel.notices == [stored(node, b"data")]


def test_new_size_is_not_told_before_the_old_data_is_stored(
    view: Engine, kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel would take the file for as large as what is stored."""
    node, store = kernel.lookup("small"), HeldStore(kernel, monkeypatch)
    opened = kernel.send_open(node, os.O_RDONLY)
    assert store.begun.wait(PATIENCE)
    done = cut(kernel, node)
    wait_until(view.upper("small").exists, "the copy-up")
    while kernel.receive(_A_MOMENT):  # What the copy-up tells of other attributes.
        assert done not in kernel.replies
    store.may_end.set()
    assert {kernel.reply(unique).code for unique in (opened, done)} == {0}


def test_data_that_was_read_before_a_copy_up_is_not_stored_after_it(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    node, read_into, cuts = kernel.lookup("small"), Handle.read_into, []

    def read_and_be_late(handle: Handle, buffer: memoryview, offset: int) -> int:
        size = read_into(handle, buffer, offset)
        cuts.append(cut(kernel, node))
        assert kernel.reply(cuts[0]).code == 0
        return size

    monkeypatch.setattr(Handle, "read_into", read_and_be_late)
    opened = kernel.send_open(node, os.O_RDONLY)
    wait_until(lambda: cuts and cuts[0] in kernel.replies, "the cut")
    assert kernel.reply(opened).code == 0
    assert [one for one in kernel.notices if one.code == wire.NOTIFY_STORE] == []


# --- the real kernel ----------------------------------------------------------------------------------

# Opens and reads of uncached files of a lower whose files seem to change all the time, in nine processes.
_LOAD_PROGRAM = """
import os, random, sys, time
view, lower, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
names = sorted(os.listdir(view))
end = time.monotonic() + seconds
def open_some():
    os.close(os.open(f"{view}/{random.choice(names)}", os.O_RDONLY))
files = []
def read_all():
    files[:] = files or [os.open(f"{view}/{name}", os.O_RDONLY) for name in names]
    for fd in files:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.pread(fd, 60000, 0)
def touch():
    for name in names:
        os.utime(f"{lower}/{name}")
    time.sleep(0.002)
for work in [open_some] * 5 + [read_all] * 3 + [touch]:
    if not os.fork():
        while time.monotonic() < end:
            work()
        os._exit(0)
for _ in range(9):
    os.wait()
"""


def answers(view: Path, name: str) -> bool:
    """Does somebody who asks for a name that is not there hear so in time? Otherwise all requests fail from then on."""
    process = subprocess.Popen(["test", "-e", view / name])
    try:
        return process.wait(PATIENCE) == 1
    except subprocess.TimeoutExpired:
        with contextlib.suppress(OSError):  # EBUSY
            mounting.unmount(os.fsencode(view), mounting.MNT_FORCE)
        process.wait(PATIENCE)
        return False


def test_files_that_are_opened_and_read_while_they_change_do_not_hang_the_mount(place: Place) -> None:
    builders.fill(os.fsencode(place / "bottom"), {f"many/{number}": "x" * 60000 for number in range(8)})
    done = place.mount("--front", "kernel")
    assert done.returncode == 0, done.stderr
    words: list[str | Path] = [
        sys.executable,
        "-c",
        _LOAD_PROGRAM,
        place.view / "many",
        place / "bottom/many",
        str(_LOAD),
    ]
    with subprocess.Popen(words) as load:
        asked = 0
        while load.poll() is None:
            assert answers(place.view, f"nothing-{asked}"), "the mount hangs"
            asked += 1
    assert load.returncode == 0
    assert place.umount().returncode == 0
