"""Does what `explain` runs get out of its sandbox? Every way out that is known is tried, on canaries of our own."""

from __future__ import annotations

import errno
import os
import pty
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from overlayfs_demo.explain import syscall_filter
from overlayfs_demo.mounts import registry
from tests.conftest import wait_until, why_no_sandbox
from tests.contract.conftest import why_unavailable
from tests.places import BIN, MINUTE, Place, run

CANARY = "alive\n"

# The same capabilities as in a container of Docker's, less those for the network, in the bits of capabilities(7).
CAPABILITIES = sum(1 << bit for bit in (0, 1, 3, 4, 5, 6, 7, 8, 18, 27, 31))


@pytest.fixture
def inside(place: Place) -> Place:
    """A view, and a canary beside it."""
    if problem := why_unavailable("kernel-front") or why_no_sandbox():
        pytest.skip(problem)
    (place / "canary").write_text(CANARY)
    (place / "canary").chmod(0o600)
    assert place.mount("--front", "kernel").returncode == 0
    return place


@pytest.fixture
def canary(inside: Place) -> Iterator[Path]:
    """A file that is the same in the end."""
    path = inside / "canary"
    yield path
    assert (path.read_text(), path.stat().st_mode & 0o7777) == (CANARY, 0o600)


def explained(place: Place, *words: str) -> str:
    """What the command says, which ran."""
    done = run("overlayfs-demo", "explain", *words, cwd=place.view)
    assert done.returncode == 0, done.stderr
    return done.stderr


def python(place: Place, code: str) -> str:
    """What this program says in the sandbox."""
    return explained(place, sys.executable, "-c", f"import ctypes, os, socket\n{code}")


def attempt(expression: str) -> str:
    """A program that says by which error an expression fails, or `done`."""
    return f"try:\n    {expression}\n    print('done')\nexcept OSError as error:\n    print(os.strerror(error.errno))\n"


# --- by descriptors ----------------------------------------------------------------------------------


def test_descriptors_that_the_caller_left_open_are_closed(inside: Place, canary: Path) -> None:
    script = f"exec 9<{inside.base}; exec overlayfs-demo explain sh -c 'echo x >/proc/self/fd/9/canary; ls /proc/$$/fd'"
    done = run("sh", "-c", script, cwd=inside.view)
    assert done.returncode == 0
    assert done.stderr.splitlines()[-3:] == ["0", "1", "2"]


@pytest.mark.parametrize("stream", ["stdin", "stderr"])
def test_what_the_standard_streams_lead_to_is_not_changed(inside: Place, canary: Path, stream: str) -> None:
    number = {"stdin": 0, "stderr": 2}[stream]
    with canary.open("rb") as file:
        streams: dict[str, Any] = {stream: file}
        said = subprocess.run(
            [
                str(BIN / "overlayfs-demo"),
                "explain",
                sys.executable,
                "-c",
                f"import os, sys; os.fchmod({number}, 0o666); open('/proc/self/fd/{number}', 'w').close()",
            ],
            cwd=inside.view,
            timeout=MINUTE,
            stdout=subprocess.DEVNULL,
            **streams,
        )
    assert said.returncode in (0, 1)


def test_the_terminal_is_not_typed_into(inside: Place) -> None:
    code = (
        "import fcntl, termios\n"
        "for fd in 0, 1, 2:\n"
        "    for key in b'zyzzyva\\n':\n"
        "        try: fcntl.ioctl(fd, termios.TIOCSTI, bytes([key]))\n"
        "        except OSError: pass\n"
    )
    pid, terminal = pty.fork()
    if not pid:
        os.chdir(inside.view)
        os.execv(BIN / "overlayfs-demo", ["overlayfs-demo", "explain", sys.executable, "-c", code])
    shown = b""
    try:
        while data := os.read(terminal, 1 << 16):
            shown += data
    except OSError as error:
        assert error.errno == errno.EIO  # Nobody has the terminal any more.
    os.close(terminal)
    assert os.waitpid(pid, 0)[1] == 0
    assert b"would change nothing" in shown
    assert b"zyzzyva" not in shown


@pytest.mark.parametrize("name, number", [("TIOCSTI", 0x5412), ("TIOCLINUX", 0x541C)])
def test_no_terminal_takes_typed_text(inside: Place, name: str, number: int) -> None:
    """Not even one of the command's own."""
    code = "import fcntl, pty\nours, theirs = pty.openpty()\n" + attempt(f"fcntl.ioctl(theirs, {number}, b'x')")
    assert python(inside, code) == "Operation not permitted\n", name


# --- by device nodes ---------------------------------------------------------------------------------


def test_root_cannot_change_device_nodes_but_use_them(inside: Place) -> None:
    """In a mount namespace of its own, with nodes of its own: the machine's are not put at risk."""
    nodes = "null 1 3|zero 1 5|full 1 7|random 1 8|urandom 1 9|tty 5 0|fuse 10 229"
    make = "; ".join(
        f"mknod -m 666 /dev/{name} c {major} {minor}"
        for name, major, minor in (node.split() for node in nodes.split("|"))
    )
    attack = (
        "for node in null zero full random urandom tty; do chmod 600 /dev/$node; chown 1 /dev/$node; "
        "touch -d 2001-01-01 /dev/$node; done; echo x >/dev/null && head -c1 /dev/zero | wc -c"
    )
    look = "stat -c '%n %a %u %Y' /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty"
    script = (
        f"set -e; mount -t tmpfs dev /dev; {make}; mkdir /dev/pts /dev/shm; {look} >{inside.base}/before\n"
        f"overlayfs-demo explain sh -c {shlex.quote(attack)}; {look} >{inside.base}/after\n"
    )
    done = run("unshare", "--mount", "--propagation", "private", "sh", "-c", script, cwd=inside.view)
    assert done.returncode == 0, done.stderr
    assert (inside / "after").read_text() == (inside / "before").read_text() != ""
    assert done.stderr.endswith("\n1\n")


def test_devices_made_in_the_view_cannot_be_opened(inside: Place) -> None:
    assert explained(inside, "sh", "-c", "mknod disk b 7 0 && cat disk; mknod /dev/disk b 7 0 && cat /dev/disk") == (
        "cat: disk: Permission denied\ncat: /dev/disk: Permission denied\n"
    )


# --- by FIFOs and sockets ----------------------------------------------------------------------------


def test_fifos_outside_cannot_be_written(inside: Place) -> None:
    os.mkfifo(inside / "fifo")
    reading = os.open(inside / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    said = explained(inside, "sh", "-c", f"echo x >{inside / 'fifo'}; mkfifo f; cat f & echo through >f; wait")
    assert "Permission denied" in said
    assert said.endswith("through\n")
    assert os.read(reading, 10) == b""
    os.close(reading)


def test_sockets_outside_cannot_be_reached(inside: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(inside.base)  # A name of a socket is at most 107 bytes.
    with (
        closing(socket.socket(socket.AF_UNIX)) as stream,
        closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as datagrams,
    ):
        stream.bind("stream")
        stream.listen()
        datagrams.bind("datagrams")
        for server in (stream, datagrams):
            server.setblocking(False)
        said = python(
            inside,
            "os.chdir('..')\n"
            + "".join(
                attempt(one)
                for one in (
                    "socket.socket(socket.AF_UNIX).connect('stream')",
                    "socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0].sendto(b'x', 'datagrams')",
                    "socket.socketpair(socket.AF_UNIX, socket.SOCK_RAW)[0].sendto(b'x', 'datagrams')",
                    "socket.socketpair()[0].connect('stream')",
                    "(lambda one, other: one.sendall(b'x'))(*socket.socketpair())",
                )
            ),
        )
        assert said.splitlines() == [
            os.strerror(errno.EAFNOSUPPORT),
            os.strerror(errno.EPERM),
            os.strerror(errno.EPERM),
            os.strerror(errno.EISCONN),
            "done",
        ]
        with pytest.raises(BlockingIOError):
            stream.accept()
        with pytest.raises(BlockingIOError):
            datagrams.recv(10)


def test_only_the_sandbox_s_own_network_has_sockets(inside: Place) -> None:
    said = python(
        inside,
        (
            "for family in range(46):\n"
            "    for kind in 1, 2, 3, 5:\n"
            "        try: socket.socket(family, kind).close()\n"
            "        except OSError as error: continue\n"
            "        print(family)\n"
        ),
    )
    assert set(said.splitlines()) <= {str(int(one)) for one in (socket.AF_INET, socket.AF_INET6)} != set()


# --- by system calls ---------------------------------------------------------------------------------

REFUSED = (
    "add_key",
    "bpf",
    "fanotify_init",
    "finit_module",
    "fsopen",
    "io_uring_setup",
    "kcmp",
    "kexec_load",
    "keyctl",
    "mount",
    "mount_setattr",
    "move_mount",
    "open_by_handle_at",
    "open_tree",
    "perf_event_open",
    "pivot_root",
    "quotactl",
    "reboot",
    "request_key",
    "setns",
    "settimeofday",
    "swapon",
    "syslog",
    "umount2",
    "unshare",
    "userfaultfd",
)


def test_calls_that_reach_what_is_in_no_namespace_are_refused(inside: Place) -> None:
    column = list(syscall_filter.MACHINES).index(os.uname().machine)
    numbers = {name: syscall_filter.REFUSED[name][column] for name in REFUSED}
    said = python(
        inside,
        (
            "call = ctypes.CDLL(None, use_errno=True).syscall\n"
            f"for name, number in {numbers}.items():\n"
            "    ctypes.set_errno(0)\n"
            "    call(number, -1, -1, -1, -1, -1, -1)\n"
            "    print(name, ctypes.get_errno())\n"
        ),
    )
    assert said.splitlines() == [f"{name} {errno.EPERM}" for name in REFUSED]


def test_the_user_s_keys_are_out_of_reach(inside: Place) -> None:
    """Refused with EPERM, with arguments that would add a key to the session's."""
    column = list(syscall_filter.MACHINES).index(os.uname().machine)
    number = syscall_filter.REFUSED["add_key"][column]
    said = python(
        inside,
        (
            "call = ctypes.CDLL(None, use_errno=True).syscall\n"
            f"print(call({number}, b'user', b'overlayfs-demo-test', b'x', 1, -2), ctypes.get_errno())\n"
        ),
    )
    assert said == f"-1 {errno.EPERM}\n"


@pytest.mark.parametrize("command, argument", [("F_SETLEASE", "fcntl.F_RDLCK"), ("F_NOTIFY", "fcntl.DN_MODIFY")])
def test_nobody_outside_waits_for_the_command_or_is_watched_by_it(
    inside: Place, canary: Path, command: str, argument: str
) -> None:
    """A lease on a file makes those outside who open it for writing wait until it is given back."""
    what = repr(str(canary if command == "F_SETLEASE" else canary.parent))
    call = f"fcntl.fcntl(os.open({what}, os.O_RDONLY), fcntl.{command}, {argument})"
    assert python(inside, "import fcntl\n" + attempt(call)) == "Operation not permitted\n"


def test_files_outside_are_locked_as_ever(inside: Place, canary: Path) -> None:
    call = f"fcntl.lockf(os.open({str(canary)!r}, os.O_RDONLY), fcntl.LOCK_SH)"
    assert python(inside, "import fcntl\n" + attempt(call)) == "done\n"


@pytest.mark.parametrize("words", [["-U"], ["-m"], ["-n"]])
def test_no_further_namespaces_are_made(inside: Place, words: list[str]) -> None:
    assert "Operation not permitted" in explained(inside, "unshare", *words, "true")


def test_threads_and_processes_are_made_as_ever(inside: Place) -> None:
    code = "import threading, subprocess; t = threading.Thread(target=print, args=('thread',)); t.start(); t.join()\n"
    assert python(inside, code + "print(subprocess.run(['true']).returncode)") == "thread\n0\n"


def test_a_call_that_is_newer_than_the_filter_does_not_exist(inside: Place) -> None:
    code = "c = ctypes.CDLL(None, use_errno=True); c.syscall(1000); print(os.strerror(ctypes.get_errno()))"
    assert python(inside, code) == "Function not implemented\n"


# --- by privileges -----------------------------------------------------------------------------------


def test_root_keeps_the_capabilities_of_a_container(inside: Place) -> None:
    """And execve(2) gives it no more, for it may get no new privileges."""
    said = explained(inside, "grep", "-E", "^(CapEff|CapPrm|NoNewPrivs):", "/proc/self/status")
    values = dict(line.split(":\t") for line in said.splitlines())
    assert {int(values[name], 16) for name in ("CapEff", "CapPrm")} == {CAPABILITIES}
    assert values["NoNewPrivs"] == "1"


def test_a_crash_starts_no_handler_outside(inside: Place) -> None:
    """core(5): not with this limit, which nobody in there may raise."""
    code = "import resource\nprint(resource.getrlimit(resource.RLIMIT_CORE))\n"
    raised = "resource.setrlimit(resource.RLIMIT_CORE, (9, 9))"
    assert python(inside, code + f"try: {raised}\nexcept ValueError: print('refused')\n") == "(1, 1)\nrefused\n"


def test_no_module_of_the_view_is_loaded(inside: Place) -> None:
    for name in ("signal.py", "overlayfs_demo.py", "sitecustomize.py"):
        (inside.view / name).write_text("print('loaded')\n")
    assert explained(inside, "echo", "said") == "said\n"


def test_the_kernel_s_settings_are_read_only(inside: Place) -> None:
    for path in ("/proc/sys/kernel/core_pattern", "/proc/self/oom_score_adj", "/sys/kernel/uevent_seqnum"):
        said = python(inside, attempt(f"os.open({path!r}, os.O_WRONLY)"))
        assert said in ("Read-only file system\n", "Permission denied\n"), path


def test_root_is_root_in_the_view(inside: Place) -> None:
    script = "touch f && chown 12:34 f && stat -c %u:%g f && mkdir -m 0 e && touch e/x && rm -r e && id -u"
    assert explained(inside, "sh", "-c", script) == "12:34\n0\n"


# --- and it is as if there were no sandbox -----------------------------------------------------------


def test_files_move_between_directories_of_the_view(inside: Place) -> None:
    script = "mkdir a b && echo x >a/f && mv a/f b/f && ln b/f a/g && cat a/g"
    assert explained(inside, "sh", "-c", script) == "x\n"


def test_what_is_the_sandbox_s_own_can_be_written(inside: Place) -> None:
    assert explained(inside, "sh", "-c", "echo x >/dev/shm/x && echo y >/dev/stdout && echo z >/dev/null") == "y\n"


def test_signals_are_not_ignored(inside: Place) -> None:
    assert explained(inside, "sh", "-c", "yes | head -n 1") == "y\n"
    assert explained(inside, "grep", "SigIgn", "/proc/self/status") == f"SigIgn:\t{0:016x}\n"


def test_standard_input_comes_through(inside: Place) -> None:
    (inside / "given").write_bytes(os.urandom(300_000))
    done = run("sh", "-c", "overlayfs-demo explain sh -c 'cat >copy; stat -c %s copy' <../given", cwd=inside.view)
    assert (done.returncode, done.stderr) == (0, "300000\n")


def test_a_file_that_is_not_read_to_its_end_is_left_to_others(inside: Place) -> None:
    (inside / "names").write_text("a\nb\nc\n")
    script = "while read name; do overlayfs-demo explain sh -c 'read x; echo $x' >/dev/null; echo $name; done <../names"
    done = run("sh", "-c", script, cwd=inside.view)
    assert (done.stdout, done.stderr) == ("a\nc\n", "b\n\n")


def test_without_standard_input_there_is_nothing_to_read(inside: Place) -> None:
    done = run("sh", "-c", "overlayfs-demo explain sh -c 'cat; echo said' <&-", cwd=inside.view)
    assert (done.returncode, done.stderr) == (0, "said\n")


def test_a_dead_view_elsewhere_does_not_matter(inside: Place) -> None:
    """Its mount answers ENOTCONN, also to a sandbox that makes all mounts read-only."""
    (inside / "other").mkdir()
    for name in ("u2", "w2"):
        (inside / name).mkdir()
    options = f"lowerdir={inside / 'top'},upperdir={inside / 'u2'},workdir={inside / 'w2'}"
    assert run("overlayfs-demo", "mount", "-o", options, inside / "other").returncode == 0
    record = registry.find_record(str(inside / "other"))
    assert record is not None
    os.kill(record.pid, 9)
    wait_until(lambda: not Path(f"/proc/{record.pid}").exists(), "the daemon's end")
    assert explained(inside, "echo", "said") == "said\n"


# --- where there can be none -------------------------------------------------------------------------


def test_without_bubblewrap_it_says_what_to_install(inside: Place, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    for name in ("sh", "rm"):
        (tmp_path / "bin" / name).symlink_to(f"/bin/{name}")
    done = subprocess.run(
        [BIN / "overlayfs-demo", "explain", "rm", "motd"],
        cwd=inside.view,
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": str(tmp_path / "bin")},
        timeout=MINUTE,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "install the package bubblewrap" in done.stderr
    assert (inside.view / "motd").exists()
    assert not list((inside / "work").glob("explain-*"))
