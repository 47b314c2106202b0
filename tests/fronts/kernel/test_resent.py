"""Does a request that another process has read get the right answer, whether that one carried it out or not?

Two processes are two sets of handlers with one ledger. The first one carries the request out, and its reply is lost.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest

from overlayfs_demo.fronts.front import View
from overlayfs_demo.fronts.keeper import Keeper
from overlayfs_demo.fronts.kernel import shared_records, wire
from overlayfs_demo.fronts.kernel.handlers import Requests
from overlayfs_demo.fronts.kernel.io_modes import IoModes
from overlayfs_demo.fronts.kernel.ledger import RESENT, Ledger
from overlayfs_demo.fronts.kernel.request import Payload, Request
from overlayfs_demo.fronts.kernel.resent import Resent
from overlayfs_demo.fronts.kernel.services import Services
from overlayfs_demo.fronts.kernel.wire import Opcode
from overlayfs_demo.linux import syscalls
from overlayfs_demo.overlay.engine import Overlay
from tests.builders import hardlink
from tests.contract.engine_subject import Engine
from tests.overlay.conftest import Make

ROOT = wire.ROOT_ID
_SIZES = {Opcode.MKDIR: wire.MKDIR_IN.size, Opcode.MKNOD: wire.MKNOD_IN.size, Opcode.LINK: wire.LINK_IN.size}


class Process:
    """One process that answers requests."""

    def __init__(self, engine: Engine, memory: int) -> None:
        self.engine = engine
        self.ledger = Ledger(memory)
        services = Services(
            pass_on=lambda: None,
            any_long=lambda: False,
            postpone=lambda _copy: None,
            store=lambda _nodeid, _data: None,
            refresh=lambda _node: None,
            distrust=lambda _nodeid: None,
            io_modes=IoModes(),
        )
        view = View(engine.overlay, b"/nowhere", Counter(), timeout=3600.0)
        self.keeper = Keeper()
        self.requests = Requests(view, services, self.ledger, self.keeper)
        self.resent = Resent(self.requests, engine.overlay, self.ledger)
        self.requests.files.open_files.resume()

    def ask(self, opcode: Opcode, nodeid: int, body: bytes, unique: int = 2) -> Payload | None:
        room = memoryview(bytearray(1 << 16))
        header = (0, opcode, unique, nodeid, os.geteuid(), os.getegid(), os.getpid(), 0, 0)
        request = Request(header, memoryview(body), room)
        if request.is_resent:
            return self.resent.answer(request)
        return self.requests.handlers[opcode](request)

    def id_of(self, name: str, directory: int = ROOT) -> int:
        reply = self.ask(Opcode.LOOKUP, directory, name.encode() + b"\0")
        return int(struct.unpack_from("=Q", reply or b"")[0])


class Both(NamedTuple):
    """The first process, and what starts the second."""

    first: Process
    follow: Callable[[], Process]


@pytest.fixture
def both(overlaid: Make) -> Iterator[Both]:
    with following(overlaid({"a": "1", "b": "2", "d/": None, "d/x": "3"})) as both:
        yield both


@contextmanager
def following(engine: Engine) -> Iterator[Both]:
    memory = shared_records.create()
    made = [Process(engine, memory)]

    def follow() -> Process:
        made[-1].requests.close()
        engine.stop()
        engine.start()
        made.append(Process(engine, memory))
        return made[-1]

    yield Both(made[0], follow)
    made[-1].requests.close()
    os.close(memory)


# For each request that a second attempt would answer wrongly: what it is about, and whether it was carried out.
NAMED: dict[str, tuple[Opcode, bytes]] = {
    "mkdir": (Opcode.MKDIR, wire.MKDIR_IN.pack(0o755, 0) + b"new\0"),
    "mknod": (Opcode.MKNOD, wire.MKNOD_IN.pack(stat.S_IFIFO | 0o644, 0, 0) + b"new\0"),
    "mkfile": (Opcode.MKNOD, wire.MKNOD_IN.pack(stat.S_IFREG | 0o644, 0, 0) + b"new\0"),
    "symlink": (Opcode.SYMLINK, b"new\0target\0"),
    "create": (Opcode.CREATE, wire.CREATE_IN.pack(os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o444, 0, 0) + b"new\0"),
    "create, if it is not there": (Opcode.CREATE, wire.CREATE_IN.pack(os.O_WRONLY | os.O_CREAT, 0, 0, 0) + b"new\0"),
}


@pytest.mark.parametrize("done", [False, True], ids=["not carried out", "carried out"])
@pytest.mark.parametrize("name", NAMED)
def test_what_makes_a_name_makes_it_once(both: Both, name: str, done: bool) -> None:
    opcode, body = NAMED[name]
    if done:
        both.first.ask(opcode, ROOT, body)
    second = both.follow()
    reply = second.ask(opcode, ROOT, body, 2 | RESENT)
    (nodeid,) = struct.unpack_from("=Q", reply or b"")
    assert nodeid == second.id_of("new")
    assert second.requests.nodes.node(nodeid).path() == b"/new"
    if opcode == Opcode.CREATE:
        (number,) = struct.unpack_from("=Q", (reply or b"")[wire.ENTRY_SIZE :])
        assert [file.number for file in second.ledger.files()] == [number]


def test_file_that_an_ordinary_user_cannot_open_again_is_made_once(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(errno.EACCES, "read-only")

    body = wire.CREATE_IN.pack(os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o444, 0, 0) + b"new\0"
    both.first.ask(Opcode.CREATE, ROOT, body)
    second = both.follow()
    monkeypatch.setattr(Overlay, "open", refused)
    reply = second.ask(Opcode.CREATE, ROOT, body, 2 | RESENT)
    assert struct.unpack_from("=Q", reply or b"")[0] == second.id_of("new")


@pytest.mark.parametrize("name", NAMED)
def test_what_makes_a_name_that_others_made_fails(both: Both, name: str) -> None:
    """It was neither the first process nor what it would have made."""
    opcode, body = NAMED[name]
    second = both.follow()
    other = b"owned by another"
    path = second.engine.upper() / "new"
    if opcode == Opcode.MKDIR:
        path.write_bytes(other)
    elif opcode == Opcode.CREATE or "mkfile" in name:
        path.write_bytes(other) if opcode == Opcode.CREATE else path.mkdir()
    else:
        path.mkdir()
    with pytest.raises(OSError) as failed:
        second.ask(opcode, ROOT, body, 2 | RESENT)
    assert failed.value.errno in (errno.EEXIST, errno.ESTALE)


@pytest.mark.parametrize("done", [False, True], ids=["not carried out", "carried out"])
def test_link_is_made_once(both: Both, done: bool) -> None:
    old = both.first.id_of("a")
    body = wire.LINK_IN.pack(old) + b"new\0"
    if done:
        both.first.ask(Opcode.LINK, ROOT, body)
    second = both.follow()
    reply = second.ask(Opcode.LINK, ROOT, body, 2 | RESENT)
    assert struct.unpack_from("=Q", reply or b"")[0] == old == second.id_of("new") == second.id_of("a")
    assert second.engine.overlay.attrs(second.requests.nodes.node(old)).nlink == 2


@pytest.mark.parametrize("done", [False, True], ids=["not carried out", "carried out"])
@pytest.mark.parametrize(("opcode", "name"), [(Opcode.UNLINK, "a"), (Opcode.RMDIR, "empty")])
def test_name_is_removed_once(both: Both, opcode: Opcode, name: str, done: bool) -> None:
    both.first.ask(Opcode.MKDIR, ROOT, wire.MKDIR_IN.pack(0o755, 0) + b"empty\0")
    body = name.encode() + b"\0"
    if done:
        both.first.ask(opcode, ROOT, body)
    second = both.follow()
    assert second.ask(opcode, ROOT, body, 2 | RESENT) == b""
    assert second.id_of(name) == 0


def test_directory_that_is_not_empty_stays(both: Both) -> None:
    second = both.follow()
    with pytest.raises(OSError) as failed:
        second.ask(Opcode.RMDIR, ROOT, b"d\0", 2 | RESENT)
    assert failed.value.errno == errno.ENOTEMPTY


@pytest.mark.parametrize("flags", [0, syscalls.RENAME_EXCHANGE], ids=["move", "exchange"])
@pytest.mark.parametrize("done", ["no", "yes", "noted"])
def test_names_are_moved_once(both: Both, done: str, flags: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before the move, after it, or after it is noted in the ledger, too."""
    first = both.first
    moved, target = first.id_of("a"), first.id_of("b")
    body = wire.RENAME2_IN.pack(first.id_of("d"), flags) + b"a\0x\0"
    directory = first.id_of("d")
    other = first.id_of("x", directory)
    if done == "yes":
        first.engine.overlay.hooks.moved = lambda _node: None
    if done != "no":
        first.ask(Opcode.RENAME2, ROOT, body)
    second = both.follow()
    assert second.ask(Opcode.RENAME2, ROOT, body, 2 | RESENT) == b""
    assert second.id_of("x", directory) == moved
    assert second.requests.nodes.node(moved).path() == b"/d/x"
    assert second.id_of("a") == (other if flags else 0)
    assert second.id_of("b") == target


@pytest.mark.parametrize("done", [False, True], ids=["not carried out", "carried out"])
def test_attribute_is_created_once(both: Both, done: bool) -> None:
    nodeid = both.first.id_of("a")
    body = wire.SETXATTR_IN.pack(1, os.XATTR_CREATE, 0) + b"user.x\0v"
    if done:
        both.first.ask(Opcode.SETXATTR, nodeid, body)
    second = both.follow()
    assert second.ask(Opcode.SETXATTR, nodeid, body, 2 | RESENT) == b""
    another = wire.SETXATTR_IN.pack(1, os.XATTR_CREATE, 0) + b"user.x\0w"
    with pytest.raises(FileExistsError):
        second.ask(Opcode.SETXATTR, nodeid, another, 4 | RESENT)


@pytest.mark.parametrize("done", [False, True], ids=["not carried out", "carried out"])
def test_attribute_is_removed_once(both: Both, done: bool) -> None:
    nodeid = both.first.id_of("a")
    both.first.ask(Opcode.SETXATTR, nodeid, wire.SETXATTR_IN.pack(1, 0, 0) + b"user.x\0v")
    if done:
        both.first.ask(Opcode.REMOVEXATTR, nodeid, b"user.x\0")
    second = both.follow()
    assert second.ask(Opcode.REMOVEXATTR, nodeid, b"user.x\0", 2 | RESENT) == b""
    assert "user.x" not in os.listxattr(second.engine.upper() / "a")


@pytest.mark.parametrize("done", [False, True], ids=["not carried out", "carried out"])
def test_file_is_opened_once(both: Both, done: bool) -> None:
    nodeid = both.first.id_of("a")
    body = wire.OPEN_IN.pack(os.O_RDWR, 0)
    if done:
        both.first.ask(Opcode.OPEN, nodeid, body)
    second = both.follow()
    reply = second.ask(Opcode.OPEN, nodeid, body, 2 | RESENT)
    (number,) = struct.unpack_from("=Q", reply or b"")
    assert [file.number for file in second.ledger.files()] == [number]


@pytest.mark.parametrize("done", [False, True], ids=["not carried out", "carried out"])
def test_file_is_released_once(both: Both, done: bool) -> None:
    nodeid = both.first.id_of("a")
    reply = both.first.ask(Opcode.OPEN, nodeid, wire.OPEN_IN.pack(os.O_RDONLY, 0))
    (number,) = struct.unpack_from("=Q", reply or b"")
    body = wire.RELEASE_IN.pack(number, 0, 0)
    if done:
        both.first.ask(Opcode.RELEASE, nodeid, body)
    second = both.follow()
    assert second.ask(Opcode.RELEASE, nodeid, body, 4 | RESENT) == b""
    assert not second.ledger.files()


def test_file_that_loses_its_name_while_it_is_opened_is_handed_over(both: Both) -> None:
    both.first.engine.overlay.hooks.losing_name = lambda _node: None  # The handle had no number yet.
    nodeid = both.first.id_of("a")
    reply = both.first.ask(Opcode.OPEN, nodeid, wire.OPEN_IN.pack(os.O_RDONLY, 0))
    both.first.ask(Opcode.UNLINK, ROOT, b"a\0")
    assert both.first.keeper._kept == set(struct.unpack_from("=Q", reply or b""))


def test_open_file_is_read_and_written_on(both: Both) -> None:
    nodeid = both.first.id_of("a")
    reply = both.first.ask(Opcode.OPEN, nodeid, wire.OPEN_IN.pack(os.O_RDWR, 0))
    (number,) = struct.unpack_from("=Q", reply or b"")
    second = both.follow()
    second.ask(Opcode.WRITE, nodeid, wire.WRITE_IN.pack(number, 1, 3, 0) + b"234", 4)
    found = second.ask(Opcode.READ, nodeid, wire.READ_IN.pack(number, 0, 100, 0), 6)
    assert bytes(found or b"") == b"1234"


def test_request_that_ends_every_process_is_given_up(both: Both) -> None:
    second = both.follow()
    for _ in range(8):
        second.ask(Opcode.LOOKUP, ROOT, b"a\0", 2 | RESENT)
    with pytest.raises(OSError) as failed:
        second.ask(Opcode.LOOKUP, ROOT, b"a\0", 2 | RESENT)
    assert failed.value.errno == errno.EIO


# --- nodes -----------------------------------------------------------------------------------------


def test_node_keeps_its_id_whichever_way_it_is_met(both: Both) -> None:
    directory = both.first.id_of("d")
    nodeid = both.first.id_of("x", directory)
    second = both.follow()
    assert second.id_of("d") == directory
    assert second.requests.nodes.node(nodeid).path() == b"/d/x"
    third = both.follow()
    assert third.requests.nodes.node(nodeid).path() == b"/d/x"
    assert third.id_of("d") == directory and third.id_of("x", directory) == nodeid


def test_file_is_found_if_the_kernel_holds_it_only_by_another_name(both: Both) -> None:
    """The place that is noted is in a directory that the kernel has forgotten."""
    directory = both.first.id_of("d")
    nodeid = both.first.id_of("x", directory)
    both.first.ask(Opcode.LINK, ROOT, wire.LINK_IN.pack(nodeid) + b"again\0")
    both.first.ask(Opcode.FORGET, directory, wire.FORGET_IN.pack(1))
    nodes = both.follow().requests.nodes
    assert nodes.node(nodeid).path() == b"/d/x"
    nodes.forget(nodeid, 2)
    assert len(nodes) == 1


def test_node_in_a_directory_that_was_never_met_again_is_stale(both: Both) -> None:
    """The kernel asks again by name."""
    directory = both.first.id_of("d")
    nodeid = both.first.id_of("x", directory)
    second = both.follow()
    second.ask(Opcode.FORGET, directory, wire.FORGET_IN.pack(1))
    with pytest.raises(OSError) as failed:
        second.requests.nodes.node(nodeid)
    assert failed.value.errno == errno.ESTALE
    assert second.id_of("x", second.id_of("d")) != 0


def test_hard_links_of_a_lower_are_not_taken_for_each_other(overlaid: Make) -> None:
    """Without an index they are separate files that have one inode number."""
    with following(overlaid({"a": "1", "d/": None, "d/x": hardlink("../a")}, index=False)) as both:
        nodeid = both.first.id_of("a")
        second = both.follow()
        assert second.id_of("x", second.id_of("d")) != nodeid
        assert second.id_of("a") == nodeid
        assert second.requests.nodes.node(nodeid).path() == b"/a"


def test_file_that_got_another_inode_number_by_its_copy_up_is_found(overlaid: Make) -> None:
    """As the copy of a hard-linked file does without an index."""
    with following(overlaid({"a": "1", "b": hardlink("a")}, index=False)) as both:
        nodeid = both.first.id_of("a")
        reply = both.first.ask(Opcode.OPEN, nodeid, wire.OPEN_IN.pack(os.O_RDWR, 0))
        (number,) = struct.unpack_from("=Q", reply or b"")
        second = both.follow()
        assert second.requests.nodes.node(nodeid).path() == b"/a"
        assert bytes(second.ask(Opcode.READ, nodeid, wire.READ_IN.pack(number, 0, 9, 0)) or b"") == b"1"


def test_node_whose_file_was_replaced_meanwhile_is_stale(both: Both) -> None:
    nodeid = both.first.id_of("a")
    both.follow()
    second = both.follow()
    (second.engine.upper() / "a").write_text("another")
    with pytest.raises(OSError) as failed:
        second.requests.nodes.node(nodeid)
    assert failed.value.errno == errno.ESTALE
    assert second.id_of("a") not in (0, nodeid)


def test_node_that_was_never_met_again_is_forgotten(both: Both) -> None:
    nodeid = both.first.id_of("a")
    second = both.follow()
    second.ask(Opcode.FORGET, nodeid, wire.FORGET_IN.pack(1))
    with pytest.raises(OSError) as failed:
        second.requests.nodes.node(nodeid)
    assert failed.value.errno == errno.ESTALE
    assert second.id_of("a") not in (0, nodeid)


def test_reader_in_the_middle_of_a_directory_misses_nothing(both: Both) -> None:
    """Names that come and go meanwhile change the order on disk."""
    first = both.first
    names = {f"name {number}" for number in range(100)}
    for name in names:
        first.ask(Opcode.MKNOD, ROOT, wire.MKNOD_IN.pack(stat.S_IFREG | 0o644, 0, 0) + name.encode() + b"\0")
    seen, offset = _read(first, 0)
    assert 10 < len(seen) < 90
    for name in seen & names:
        first.ask(Opcode.UNLINK, ROOT, name.encode() + b"\0")
    process = both.follow()
    while True:
        more, offset = _read(process, offset)
        if not more:
            break
        assert not seen & more
        seen |= more
    assert seen >= names


def _read(process: Process, offset: int) -> tuple[set[str], int]:
    """The next names of the root, and the offset after them."""
    reply = bytes(process.ask(Opcode.READDIR, ROOT, wire.READ_IN.pack(0, offset, 2048, 0)) or b"")
    names = set()
    while reply:
        _, offset, length, _ = struct.unpack_from("=QQII", reply)
        names.add(reply[24 : 24 + length].decode())
        reply = reply[24 + (length + 7) // 8 * 8 :]
    return names - {".", ".."}, offset
