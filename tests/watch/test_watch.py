"""Is everyone who watches a mount told all that happens in it, and is nobody else disturbed?"""

from __future__ import annotations

import json
import os
import re
import select
import signal
import socket
import stat
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from overlayfs_demo.events import Action, Event
from overlayfs_demo.mounts import registry
from overlayfs_demo.mounts.control.client import Connection
from overlayfs_demo.mounts.control.protocol import Dropped, Happened
from overlayfs_demo.mounts.control.server import Server
from overlayfs_demo.overlay.engine import Overlay
from overlayfs_demo.overlay.factory import open_overlay
from overlayfs_demo.overlay.stack import Stack
from tests.command import started
from tests.conftest import PATIENCE, wait_until
from tests.contract.subjects import in_child
from tests.places import MINUTE, Place, fails, run


class Watcher:
    """A running `watch`, which is known to be attached."""

    def __init__(self, place: Place, *words: str) -> None:
        self.process = started(
            ["watch", place.view / "d", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stderr is not None
        assert f"watching {place.view} " in self.process.stderr.readline()

    def ends(self, status: int = 0) -> str:
        """What it has printed, once it has ended by itself."""
        told, complaint = self.process.communicate(timeout=MINUTE)
        assert self.process.returncode == status, complaint
        assert "Traceback" not in complaint
        return str(told)


@contextmanager
def watching(place: Place, *words: str) -> Iterator[Watcher]:
    """Watch the view, named by a directory in it."""
    watcher = Watcher(place, *words)
    try:
        yield watcher
    finally:
        watcher.process.kill()
        watcher.process.wait(MINUTE)


def shell(place: Place, script: str) -> int:
    """Run a script in the view; the shell's process ID."""
    with subprocess.Popen(["sh", "-c", script], cwd=place.view) as process:
        assert process.wait(MINUTE) == 0
        return process.pid


def objects(told: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in told.splitlines()]


# --- what is told ---------------------------------------------------------------------------------


def test_a_copy_up_is_told_with_command_pid_path_layer_and_bytes(mounted: Place) -> None:
    with watching(mounted) as watcher:
        pid = shell(mounted, "echo x >> motd")
        assert mounted.umount().returncode == 0
        assert watcher.ends() == (
            f"sh[{pid}] copied up /motd (6B) from layer 2 (top) to write to it\n"
            f"sh[{pid}] wrote 2B to /motd in the upper\n"
        )


def test_json_has_the_same_in_fields(mounted: Place) -> None:
    with watching(mounted, "--json") as watcher:
        pid = shell(mounted, "echo x >> motd")
        assert mounted.umount().returncode == 0
        first, second = objects(watcher.ends())
    assert first.pop("time") <= second.pop("time")
    assert first == {
        "action": "copy-up",
        "path": "/motd",
        "pid": pid,
        "who": "sh",
        "uid": 0,
        "call": "open",
        "layer": "layer 2 (top)",
        "size": 6,
        "detail": "",
    }
    assert (second["action"], second["size"], second["who"]) == ("write", 2, "sh")


def test_rm_tells_of_a_whiteout_and_names_a_process_that_has_gone(mounted: Place) -> None:
    with watching(mounted) as watcher:
        shell(mounted, "rm motd")
        assert mounted.umount().returncode == 0
        told = watcher.ends()
    assert re.fullmatch(r"rm\[\d+\] created whiteout for /motd, hiding the one in layer 2 \(top\)\n", told)


def test_a_big_copy_is_few_lines(mounted: Place) -> None:
    with watching(mounted, "--only", "write") as watcher:
        shell(mounted, "dd if=/dev/zero of=big bs=4096 count=1000 status=none; echo x > small")
        assert mounted.umount().returncode == 0
        lines = watcher.ends().splitlines()
    assert 2 <= len(lines) < 100
    assert "/small" in lines[-1] and all("/big" in line for line in lines[:-1])


def test_a_write_is_told_though_nothing_follows(mounted: Place) -> None:
    with watching(mounted, "--only", "write") as watcher:
        shell(mounted, "echo x > new")
        assert watcher.process.stdout is not None
        assert select.select([watcher.process.stdout], [], [], PATIENCE)[0]
        assert "wrote 2B to /new" in watcher.process.stdout.readline()


def test_only_and_path_choose(mounted: Place) -> None:
    script = "mkdir d/made; echo x > d/one; echo x > two; mv d/one d/three; rm motd"
    with (
        watching(mounted, "--json", "--only", "create,mkdir") as some,
        watching(mounted, "--json", "--path", "/d/three") as third,
    ):
        shell(mounted, script)
        assert mounted.umount().returncode == 0
        assert [(one["action"], one["path"]) for one in objects(some.ends())] == [
            ("mkdir", "/d/made"),
            ("create", "/d/one"),
            ("create", "/two"),
        ]
        assert [(one["action"], one["path"]) for one in objects(third.ends())] == [("rename", "/d/one")]


def test_any_bytes_of_a_name_are_told(mounted: Place) -> None:
    name = b"\xff\n\x1b"
    with watching(mounted, "--json") as as_json, watching(mounted) as as_text:
        os.mkdir(os.path.join(os.fsencode(mounted.view), name))
        assert mounted.umount().returncode == 0
        [event] = objects(as_json.ends())
        assert os.fsencode(event["path"]) == b"/" + name
        assert as_text.ends().endswith("created directory /\\xff\\n\\x1b in the upper\n")


def test_questions_are_counted_and_told_in_the_end_beside_the_sentences(mounted: Place) -> None:
    with watching(mounted) as watcher:
        shell(mounted, "cat motd > /dev/null; ls -l . d > /dev/null; cat nothing 2> /dev/null || true")
        assert mounted.umount().returncode == 0
        told, complaint = watcher.process.communicate(timeout=MINUTE)
    assert told == ""
    last = complaint.splitlines()[-1]
    assert last.startswith("overlayfs-demo: requests answered: ")
    numbers = {word.rstrip("s"): int(number) for number, word in re.findall(r"(\d+) ([a-z ]+)", last)}
    assert numbers["open"] == 1 and numbers["directory read"] >= 2
    # libfuse asks for attributes where the kernel asks for a name, and what was listed need not be asked for.
    assert numbers.get("lookup", 0) + numbers.get("stat", 0) >= 1


def test_a_watcher_that_is_interrupted_knows_the_last_counters(mounted: Place) -> None:
    with watching(mounted) as watcher:
        shell(mounted, "cat motd > /dev/null")
        watcher.process.send_signal(signal.SIGINT)
        told, complaint = watcher.process.communicate(timeout=MINUTE)
    assert told == "" and re.search(r"requests answered: .*\b1 open\b", complaint)


def test_what_was_asked_before_is_not_told(mounted: Place) -> None:
    shell(mounted, "cat motd > /dev/null")
    with watching(mounted) as watcher:
        assert mounted.umount().returncode == 0
        _, complaint = watcher.process.communicate(timeout=MINUTE)
    assert not re.search(r"\bopens?\b", complaint)


# --- who watches ----------------------------------------------------------------------------------


def test_two_watchers_are_told_the_same(mounted: Place) -> None:
    with watching(mounted) as first, watching(mounted) as second:
        shell(mounted, "mkdir made")
        assert mounted.umount().returncode == 0
        told = first.ends()
        assert "/made" in told and second.ends() == told


def test_a_watcher_may_come_again(mounted: Place) -> None:
    for name in ("one", "two"):
        with watching(mounted) as watcher:
            shell(mounted, f"mkdir {name}")
            assert watcher.process.stdout is not None
            assert select.select([watcher.process.stdout], [], [], PATIENCE)[0]
            watcher.process.send_signal(signal.SIGINT)
            assert f"/{name}" in watcher.ends(130)


def test_a_watcher_that_is_killed_or_does_not_read_disturbs_nobody(mounted: Place) -> None:
    with watching(mounted) as killed, watching(mounted) as stopped:
        stopped.process.send_signal(signal.SIGSTOP)
        killed.process.kill()
        shell(mounted, "for name in $(seq 200); do echo x > file$name; done")
        assert (mounted.view / "file200").read_text() == "x\n"
        assert mounted.umount().returncode == 0


def test_a_watcher_that_does_not_read_hardly_delays_the_end(served: tuple[Overlay, Path], place: Place) -> None:
    overlay, path = served
    server = Server(path.with_name("other.sock"), overlay, Counter())
    server.start()
    with Connection(path.with_name("other.sock"), "view") as connection:
        connection.attach()
        for _ in range(10_000):
            overlay.events.emit(Event(Action.MKDIR, b"/made" * 100, 0, 0, "mkdir"))
        start = time.monotonic()
        server.close()
        assert time.monotonic() - start < PATIENCE
        assert not overlay.events.listening


def test_a_foreground_mount_can_be_watched(place: Place) -> None:
    with started(["mount", "-f", "-o", place.options, place.view]) as daemon:
        try:
            wait_until(lambda: place.is_mounted() and registry.find_record(str(place.view)), "the mount")
            with watching(place) as watcher:
                shell(place, "mkdir made")
                daemon.send_signal(signal.SIGTERM)
                assert "/made" in watcher.ends()
            assert daemon.wait(MINUTE) == 0
        finally:
            daemon.kill()


def test_the_socket_is_private_and_goes_with_the_mount(mounted: Place) -> None:
    path = Path(registry.socket_path(str(mounted.view)))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert mounted.umount().returncode == 0
    assert not path.exists()


# --- what is refused ------------------------------------------------------------------------------


def test_what_is_no_view_cannot_be_watched(place: Place) -> None:
    fails(run("overlayfs-demo", "watch", place.view), str(place.view), "is not in a view")


def test_a_daemon_without_a_socket_is_named(mounted: Place) -> None:
    Path(registry.socket_path(str(mounted.view))).unlink()
    fails(run("overlayfs-demo", "watch", mounted.view), str(mounted.view), "if it was killed", "a different version")


def test_an_unknown_action_is_wrong_usage(place: Place) -> None:
    done = run("overlayfs-demo", "watch", "--only", "write,sing", place.view)
    assert done.returncode == 2 and "'sing' is not an action" in done.stderr


# --- the socket itself ----------------------------------------------------------------------------


@pytest.fixture
def served(place: Place) -> Iterator[tuple[Overlay, Path]]:
    """An overlay that nothing mounts, and a socket to ask about it, at a path too long for sun_path."""
    directory = place / ("long" * 40)
    directory.mkdir()
    lowers = tuple(os.fsencode(place / name) for name in ("top", "bottom"))
    overlay = open_overlay(Stack(lowers, os.fsencode(place / "upper"), os.fsencode(place / "work")))
    server = Server(directory / "it.sock", overlay, Counter())
    server.start()
    yield overlay, directory / "it.sock"
    server.close()
    overlay.close()


def test_the_engine_listens_only_while_somebody_is_attached(served: tuple[Overlay, Path]) -> None:
    overlay, path = served
    assert not overlay.events.listening
    for _ in range(2):
        with Connection(path, "view") as connection:
            connection.which(b"/motd")
            assert not overlay.events.listening
            connection.attach()
            assert overlay.events.listening
        wait_until(lambda: not overlay.events.listening, "the listener is detached")


def test_events_that_nobody_reads_are_counted(served: tuple[Overlay, Path]) -> None:
    overlay, path = served
    many = 40_000
    with Connection(path, "view") as connection:
        connection.attach()
        for _ in range(many):
            overlay.events.emit(Event(Action.MKDIR, b"/made", 0, 0, "mkdir"))
        told = dropped = 0
        while told + dropped < many:
            update = connection.receive(MINUTE)
            assert update is not None
            told += isinstance(update, Happened)
            dropped += update.count if isinstance(update, Dropped) else 0
    assert told + dropped == many and dropped > 0


def test_nobody_but_its_user_and_root_is_answered(served: tuple[Overlay, Path]) -> None:
    overlay, path = served
    path.chmod(0o666)  # Were the file's mode all that keeps others out, this would let them in.

    def stranger() -> None:
        os.chdir(path.parent)  # Nobody else may go through the directories above.
        os.setresuid(65534, 65534, 65534)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(PATIENCE)
            connection.connect(path.name)
            with connection.makefile() as answers:  # It is refused before it has asked.
                said = answers.read()
        assert json.loads(said) == {"error": "only user 0 and root may ask this daemon"}, said

    in_child(stranger)
    assert not overlay.events.listening


@pytest.mark.parametrize(
    "line",
    [
        b"x\n",
        b"[]\n",
        b'{"verb": "sing"}\n',
        b'{"verb": "explain"}\n',
        b'{"verb": "explain", "path": 1}\n',
        b'{"verb": "explain", "path": "/\\ud800"}\n',
        b'{"verb": "explain", "path": "/\\u0000"}\n',
    ],
)
def test_what_is_no_request_is_answered_so(served: tuple[Overlay, Path], line: bytes) -> None:
    with Connection(served[1], "view") as connection:
        connection._socket.sendall(line)
        assert "not a valid request" in json.loads(connection._socket.recv(1000))["error"]
        assert connection.which(b"/motd")


def test_no_path_leads_out_of_the_layers(served: tuple[Overlay, Path], place: Place) -> None:
    with Connection(served[1], "view") as connection:
        assert not any(one.wins for one in connection.which(b"/../../bottom/motd").statements)
        assert connection.which(b"/d/../../motd") == connection.which(b"/motd")
