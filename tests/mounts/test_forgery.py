"""Can another user make this program, and root most of all, believe what they say about a view?"""

from __future__ import annotations

import json
import os
import re
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from overlayfs_demo.cli import main
from overlayfs_demo.errors import MountError
from overlayfs_demo.mounts import registry, runtime_directory
from overlayfs_demo.mounts.control import client, protocol
from overlayfs_demo.mounts.control.client import Connection
from overlayfs_demo.mounts.control.protocol import Happened, ProtocolError, WhichAnswer
from overlayfs_demo.mounts.control.server import Server
from overlayfs_demo.overlay.factory import open_overlay
from overlayfs_demo.overlay.stack import Stack
from overlayfs_demo.ui.wording import outcome, said, sentence
from tests.conftest import why_no_mounts
from tests.places import MINUTE, Place, fails, run

pytestmark = pytest.mark.skipif(bool(why_no_mounts()), reason=why_no_mounts())

ALICE, MALLORY = 12345, 12346
# What a daemon says of a layer that has nothing.
SAYING = {
    "layer": "upper",
    "says": "nothing",
    "wins": False,
    "size": 0,
    **dict.fromkeys(("mode", "target", "hidden_by", "hidden_at", "deleted_at", "stored_at")),
}


# A daemon's news of one event.
EVENT = {
    "time": 1.5,
    "action": "mkdir",
    "path": "/made",
    "pid": 1,
    "who": "sh",
    "uid": 0,
    "call": "mkdir",
    "layer": "",
    "size": 0,
    "detail": "",
}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A runtime directory of root's."""
    made = tmp_path / "runtime"
    made.mkdir(mode=0o700)
    return made


def give_away(path: Path) -> None:
    os.chown(path, MALLORY, MALLORY)


def open_to_all(path: Path) -> None:
    path.chmod(0o777)


def open_to_group(path: Path) -> None:
    path.chmod(0o770)


def put_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def put_file(path: Path) -> None:
    path.rmdir()
    path.touch()


@pytest.mark.parametrize("spoil", [give_away, open_to_all, open_to_group, put_link, put_file])
def test_directory_that_others_may_write_to_is_refused(directory: Path, spoil: Callable[[Path], None]) -> None:
    with runtime_directory.opened(directory, 0):
        pass
    spoil(directory)
    with pytest.raises(MountError, match="runtime"), runtime_directory.opened(directory, 0):
        pass


def test_roots_directory_is_in_run_whatever_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/tmp")
    assert runtime_directory.of_this_user() == "/run/overlayfs-demo"
    assert runtime_directory.of_user(0) == ("/run/overlayfs-demo",)


def test_ordinary_users_directory_is_checked_wherever_the_environment_puts_it(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root of a user namespace, who may not write to /run, is in the same place."""
    monkeypatch.setattr(runtime_directory, "of_this_user", lambda: directory)
    record = registry.MountRecord("/view", os.getpid(), "kernel", [], None, [], [], [], "", os.getpid())
    registry.Registration(record)
    assert registry.find_record("/view") == record
    give_away(directory)
    for ask in (registry.find_record, registry.is_served, registry.forget_dead):
        with pytest.raises(MountError, match="belongs to user 12346, not to user 0"):
            ask("/view")
    with pytest.raises(MountError, match="belongs to user 12346"):
        registry.Registration(record)


@contextmanager
def forged_by_mallory(mountpoint: Path) -> Iterator[Path]:
    """A record in a directory of Mallory's that has the name of root's in /tmp, and a socket at which she answers."""
    directory = Path("/tmp/overlayfs-demo-0")
    if directory.exists():
        pytest.skip(f"{directory} exists")
    name = Path(registry.socket_path(str(mountpoint))).name
    directory.mkdir(mode=0o755)
    try:
        forged = {"mountpoint": str(mountpoint), "pid": 1, "front": "kernel", "lowers": ["/root"], "labels": ["root"]}
        (directory / name).with_suffix(".json").write_text(json.dumps(forged))
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
            listening.bind(str(directory / name))
            listen_as(MALLORY, listening)
            for path in (directory, *directory.iterdir()):
                give_away(path)
            yield directory / name
    finally:
        for path in directory.iterdir():
            path.unlink()
        directory.rmdir()


def listen_as(uid: int, listening: socket.socket) -> None:
    """Who calls listen(2) is the peer: unix(7), SO_PEERCRED."""
    os.seteuid(uid)
    try:
        listening.listen()
    finally:
        os.seteuid(0)


def test_root_asks_its_own_daemon_and_not_who_forges_its_socket_in_tmp(place: Place) -> None:
    assert place.mount().returncode == 0
    with forged_by_mallory(place.view):
        found = registry.place_in_view(os.fsencode(place.view), follow=True)
        assert Path(found.socket).parent == Path("/run/overlayfs-demo")
        done = run("overlayfs-demo", "which", place.view / "motd")
        assert done.returncode == 0 and "visible" in done.stdout
        record = registry.find_record(str(place.view))
        assert record is not None and record.lowers == [str(place / "top"), str(place / "bottom")]


@pytest.fixture
def alices(directory: Path) -> Iterator[socket.socket]:
    """A socket in Alice's directory, at which nobody listens yet."""
    os.chown(directory, ALICE, ALICE)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(str(directory / "it.sock"))
        listening.settimeout(10)
        yield listening


@pytest.mark.parametrize("who", [MALLORY, 0])
def test_nothing_is_said_to_a_daemon_of_another_user_than_the_mounts(
    directory: Path, alices: socket.socket, who: int
) -> None:
    listen_as(who, alices)
    with pytest.raises(MountError, match=f"mounted by user {ALICE}, but user {who} answers"):
        Connection(directory / "it.sock", "view", ALICE)
    with alices.accept()[0] as connection:
        assert connection.recv(100) == b""


def test_socket_in_a_directory_of_somebody_else_is_not_connected_to(directory: Path, alices: socket.socket) -> None:
    listen_as(ALICE, alices)
    Connection(directory / "it.sock", "view", ALICE).__exit__()
    give_away(directory)
    with pytest.raises(MountError, match="belongs to user 12346, not to user 12345"):
        Connection(directory / "it.sock", "view", ALICE)


def test_link_to_the_socket_of_another_service_is_seen_through(directory: Path, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as service:
        service.bind(str(tmp_path / "service"))
        service.listen()
        (directory / "it.sock").symlink_to(tmp_path / "service")
        os.chown(directory, ALICE, ALICE)
        with pytest.raises(MountError, match="user 0 answers"):
            Connection(directory / "it.sock", "view", ALICE)


def test_daemon_makes_no_socket_in_a_directory_of_somebody_else(directory: Path, place: Place) -> None:
    overlay = open_overlay(Stack((os.fsencode(place / "top"),)))
    give_away(directory)
    server = Server(directory / "it.sock", overlay, Counter())
    with pytest.raises(MountError, match="belongs to user 12346"):
        server.start()
    server.close()
    overlay.close()
    assert os.listdir(directory) == []


def test_root_does_not_serve_the_view_of_another_user(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """What her record names would be read with root's rights."""
    from overlayfs_demo.cli.view_or_image import own_view

    assert place.mount().returncode == 0
    assert own_view(str(place.view), "serve") is not None
    monkeypatch.setattr(registry, "_owner", lambda mounted: ALICE)
    with pytest.raises(
        MountError, match="mounted by user 12345, and only that user may serve its layers: run this as that"
    ):
        own_view(str(place.view), "serve")


def test_a_failing_check_is_one_line_for_a_person(place: Place) -> None:
    assert place.mount().returncode == 0
    runtime = Path(registry.socket_path(str(place.view))).parent
    assert runtime == Path("/run/overlayfs-demo")
    command = f"mount -t tmpfs -o mode=777 none {runtime} && exec overlayfs-demo which {place.view}/motd"
    done = run("unshare", "--mount", "--propagation", "private", "sh", "-c", command)
    fails(done, str(runtime), "writable by users other")


def which_answer(**statement: object) -> bytes:
    """A line about /x, in which the upper has these fields."""
    return line(path="/x", layers=[{**SAYING, **statement}])


def line(**fields: object) -> bytes:
    return json.dumps(fields).encode() + b"\n"


def test_escapes_in_what_a_daemon_says_do_not_reach_the_terminal() -> None:
    strange = {"path": "/\x1b[1m", "call": "\x1b[2m", "layer": "\x1b[3m", "detail": "\x1b[4m", "who": "\x1b[5m"}
    happened = protocol.decode_answer(line(**{**EVENT, **strange}))
    assert isinstance(happened, Happened)
    assert "\x1b" not in sentence(happened.event, happened.who)
    link = {"says": "a file", "mode": 0o120777, "target": "\x1b", "hidden_by": "\x1b", "hidden_at": "\x1b"}
    for forged in (link, {"says": "deleted", "deleted_at": "\x1b[3m"}):
        answer = protocol.decode_answer(which_answer(**forged))
        assert isinstance(answer, WhichAnswer)
        [statement] = answer.provenance.statements
        assert "\x1b" not in said(statement, b"/x") + outcome(statement, b"/x")


FORGED_STATEMENTS: tuple[dict[str, object], ...] = (
    {"layer": 1},
    {"says": "\x1b[6m"},
    {"says": "a file"},
    {"wins": 1},
    {"mode": "\x1b[6m"},
    {"mode": -1},
    {"mode": True},
    {"size": 1 << 2000, "mode": 0o100644},
    {"size": None, "mode": 0o100644},
    {"target": 7},
    {"hidden_by": ["upper"]},
    {"deleted_at": "\ud800"},
    {"stored_at": "a\0b"},
)
FORGED_EVENTS: tuple[dict[str, object], ...] = (
    {"time": "now"},
    {"time": float("nan")},
    {"time": 1e300},
    {"time": True},
    {"action": "\x1b[6m"},
    {"action": ["mkdir"]},
    {"path": None},
    {"path": "\ud800"},
    {"path": "/a\0b"},
    {"pid": -1},
    {"pid": 1.5},
    {"who": 7},
    {"uid": 1 << 32},
    {"call": None},
    {"layer": {}},
    {"size": 1 << 2000},
    {"action": "rename", "detail": "\ud800"},
)
FORGED_LINES = (
    b"\n",
    b"x\n",
    b"\xff\n",
    b"[]\n",
    b"null\n",
    b"{}\n",
    b"[" * 100_000 + b"\n",
    b'{"dropped": ' + b"9" * 10_000 + b"}\n",
    line(error=["\x1b[6m"]),
    line(attached="yes"),
    line(attached=False),
    line(dropped=-1),
    line(dropped=True),
    line(counters=[1]),
    line(counters={"lookup": "\x1b[6m"}),
    line(layers={}, path="/x"),
    line(layers=[7], path="/x"),
    line(layers=[]),
    line(layers=[{}], path="/x"),
    *(which_answer(**forged) for forged in FORGED_STATEMENTS),
    *(line(**{**EVENT, **forged}) for forged in FORGED_EVENTS),
    *(line(**{name: value for name, value in EVENT.items() if name != left_out}) for left_out in EVENT),
)


def test_lines_of_a_true_daemon_are_decoded() -> None:
    """Else the forged ones, which differ from these in one field each, would prove nothing."""
    assert isinstance(protocol.decode_answer(which_answer()), WhichAnswer)
    assert isinstance(protocol.decode_answer(line(**EVENT)), Happened)


@pytest.mark.parametrize("forged", FORGED_LINES, ids=lambda forged: repr(forged[:60]))
def test_line_that_no_daemon_of_ours_writes_is_not_an_answer(forged: bytes) -> None:
    with pytest.raises(ProtocolError):
        protocol.decode_answer(forged)


@contextmanager
def hostile_daemon(directory: Path, *lines: bytes) -> Iterator[Path]:
    """The path of a socket that answers the first client with these lines, and reads nothing."""

    def answer() -> None:
        with listening.accept()[0] as connection:
            connection.sendall(b"".join(lines))
            while connection.recv(1 << 16):
                pass

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(str(directory / "it.sock"))
        listening.listen()
        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield directory / "it.sock"
        thread.join(MINUTE)


@pytest.mark.parametrize("words", [("watch", "--json"), ("watch",), ("which",)], ids=" ".join)
@pytest.mark.parametrize("forged", FORGED_LINES, ids=lambda forged: repr(forged[:60]))
def test_forged_line_is_one_line_for_a_person(
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    forged: bytes,
) -> None:
    attached = [line(attached=True)] if words[0] == "watch" else []
    with hostile_daemon(directory, *attached, forged) as path:
        monkeypatch.setattr(
            registry, "place_in_view", lambda given, follow: registry.Place("/view", "/x", str(path), 0)
        )
        assert main.main([*words, "/view/x"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    complaint = err.removeprefix("overlayfs-demo: watching /view until it is unmounted\n")
    assert re.fullmatch(r"overlayfs-demo: /view: its daemon's answer is not valid: [ -~]{1,300}\n", complaint)


@pytest.mark.parametrize("unasked", [line(attached=True), line(**EVENT), line(dropped=1), line(counters={})])
def test_answer_to_something_else_makes_no_sense(directory: Path, unasked: bytes) -> None:
    with (
        hostile_daemon(directory, unasked) as path,
        Connection(path, "view") as connection,
        pytest.raises(MountError, match="view: its daemon's answer is not valid: it answers a different question"),
    ):
        connection.which(b"/x")


@pytest.mark.parametrize("unasked", [which_answer(), line(**EVENT), line(dropped=1), line(counters={})])
def test_client_is_not_attached_by_another_answer(directory: Path, unasked: bytes) -> None:
    with (
        hostile_daemon(directory, unasked) as path,
        Connection(path, "view") as connection,
        pytest.raises(MountError, match="view: its daemon's answer is not valid: it answers a different question"),
    ):
        connection.attach()


def test_line_that_does_not_end_is_given_up(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_LONGEST_ANSWER", 1000)
    with (
        hostile_daemon(directory, b"x" * 2000) as path,
        Connection(path, "view") as connection,
        pytest.raises(MountError, match="view: its daemon sent a line without an end"),
    ):
        connection.which(b"/x")


def test_refusal_is_printed_without_its_escapes(directory: Path) -> None:
    with (
        hostile_daemon(directory, line(error="\x1b[6m")) as path,
        Connection(path, "view") as connection,
        pytest.raises(MountError, match=r"^view: \\x1b\[6m$"),
    ):
        connection.which(b"/x")
