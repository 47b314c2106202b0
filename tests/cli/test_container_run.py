"""Do `run`, `exec` and `shell` run what Docker would, and does nothing that runs reach this machine?"""

from __future__ import annotations

import errno
import io
import json
import os
import platform
import re
import shutil
import struct
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.test_containers import static_busybox
from tests.conftest import unmount_all, why_no_mounts
from tests.places import BIN, at_terminal, fails, run

Run = Callable[..., subprocess.CompletedProcess[str]]
_APPLETS = (
    "sh",
    "cat",
    "ls",
    "id",
    "pwd",
    "mknod",
    "mount",
    "chroot",
    "dd",
    "ln",
    "chmod",
    "env",
    "stty",
    "sleep",
    "tty",
)
_PASSWD = "root:x:0:0:root:/root:/bin/sh\nbob:x:1000:1001::/home/bob:/bin/sh\n"


def image(tool: str, **links: str) -> bytes:
    """A tree with busybox, a device, and these symbolic links in its root, as a tar."""
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as archive:
        archive.add(tool, "bin/busybox")
        for applet in _APPLETS:
            info = tarfile.TarInfo(f"bin/{applet}")
            info.type, info.linkname = tarfile.SYMTYPE, "busybox"
            archive.addfile(info)
        for name in {"proc", "dev", "etc", "tmp"} - set(links):
            info = tarfile.TarInfo(name)
            info.type, info.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(info)
        for name, target in links.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            archive.addfile(info)
        zero = tarfile.TarInfo("zero")
        zero.type, zero.mode, zero.devmajor, zero.devminor = tarfile.CHRTYPE, 0o666, 1, 5
        archive.addfile(zero)
        if "etc" not in links:
            info = tarfile.TarInfo("etc/passwd")
            info.size = len(_PASSWD)
            archive.addfile(info, io.BytesIO(_PASSWD.encode()))
    return written.getvalue()


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Run]:
    """`overlayfs-demo` on a store with the image a:1, a busybox, and the container c1 that was made from it."""
    if problem := why_no_mounts():
        pytest.skip(problem)

    def command(*words: str | Path) -> subprocess.CompletedProcess[str]:
        return run("overlayfs-demo", words[0], "--store", tmp_path / "store", *words[1:])

    load(command, tmp_path, image(static_busybox()), "a:1")
    assert command("create", "a:1", "--name", "c1").returncode == 0
    yield command
    unmount_all(str(tmp_path))


def load(demo: Run, tmp_path: Path, tar: bytes, name: str) -> None:
    (tmp_path / "root.tar").write_bytes(tar)
    assert demo("import", tmp_path / "root.tar", name).returncode == 0


def says(done: subprocess.CompletedProcess[str], status: int = 0) -> str:
    assert (done.returncode, done.stderr) == (status, "")
    return done.stdout


def piped(tmp_path: Path, given: bytes, *words: str) -> subprocess.CompletedProcess[bytes]:
    command: list[str | Path] = [BIN / "overlayfs-demo", words[0], "--store", tmp_path / "store", *words[1:]]
    return subprocess.run(command, input=given, capture_output=True, timeout=60)


# --- as docker does ---------------------------------------------------------------------------------


def test_run_makes_a_container_and_gives_the_commands_status(demo: Run) -> None:
    assert says(demo("run", "--name", "c2", "a:1", "sh", "-c", "echo new > /new; pwd; exit 7"), 7) == "/\n"
    assert says(demo("ps", "-q", "--filter", "status=exited")) == "c2\n"
    assert says(demo("diff", "c2")) == "A /new\n"
    assert says(demo("run", "--rm", "a:1", "sh", "-c", "kill -9 $$; echo alive")) == "alive\n"
    assert says(demo("ps", "-q")) == "c1\nc2\n"


def test_a_command_that_cannot_be_run_has_dockers_status(demo: Run, tmp_path: Path) -> None:
    for verb in (("run", "--rm", "a:1"), ("exec", "c1"), ("shell", "c1")):
        fails(demo(*verb, "/bin/nothing"), "cannot run /bin/nothing", "No such file", status=127)
        fails(demo(*verb, "/etc/passwd"), "cannot run /etc/passwd", "Permission denied", status=126)
    script = tmp_path / "script"
    script.write_text("#!/bin/missing\n")
    script.chmod(0o755)
    assert demo("cp", script, "c1:/bin/script").returncode == 0
    for name in ("/bin/script", "script"):
        fails(demo("exec", "c1", name), f"cannot run {name}: the container has this file, but not the", status=127)
    fails(demo("run", "--rm", "a:1"), "no command was given", status=2)
    fails(demo("exec", "c1"), "no command was given", status=2)
    fails(demo("run", "--rm", "scratch", "/x"), "cannot run /x", status=127)
    assert says(demo("ps", "-q")) == "c1\n"


def test_user_directory_and_environment(demo: Run) -> None:
    words = ("-u", "bob", "-w", "/work/x", "-e", "A=1", "-e", "NO_SUCH_VARIABLE")
    told = says(demo("run", "--rm", *words, "a:1", "sh", "-c", "id; pwd; env"))
    assert told.startswith("uid=1000(bob) gid=1001 groups=1001\n/work/x\n")
    assert {"A=1", "HOME=/home/bob"} <= set(told.splitlines()) and "NO_SUCH_VARIABLE" not in told
    assert says(demo("exec", "-u", "5:7", "c1", "id", "-g")) == "7\n"
    fails(demo("exec", "-u", "eve", "c1", "id"), "no such user", status=126)
    for number in ("99999999999", "4294967295", "²", "-1", f"0:{'9' * 30}"):
        fails(demo("exec", "-u", number, "c1", "id"), "the user", status=126)
    fails(demo("exec", "-w", "/nothing", "c1", "id"), "/nothing", status=126)
    fails(demo("exec", "-w", "etc", "c1", "id"), "not absolute", status=2)


def load_with(demo: Run, tmp_path: Path, settings: dict[str, object], name: str) -> None:
    """Load the image a:1 again under another name and with other settings."""
    path = next((tmp_path / "store/images").iterdir())
    changed = json.loads(path.read_text()) | {"config": settings}
    archive, unpacked = tmp_path / "changed.tar", tmp_path / "unpacked"
    assert demo("save", "a:1", "-o", archive).returncode == 0
    run("sh", "-c", f"mkdir {unpacked} && tar -C {unpacked} -xf {archive}")
    manifest = json.loads((unpacked / "manifest.json").read_text())
    (unpacked / "config.json").write_text(json.dumps(changed))
    manifest[0] |= {"Config": "config.json", "RepoTags": [name]}
    (unpacked / "manifest.json").write_text(json.dumps(manifest))
    for other in ("index.json", "oci-layout"):
        (unpacked / other).unlink()
    assert demo("load", unpacked).returncode == 0


def test_the_settings_of_the_image_are_the_defaults(demo: Run, tmp_path: Path) -> None:
    settings: dict[str, object] = {
        "Entrypoint": ["/bin/sh", "-c"],
        "Cmd": ["echo $A $0; pwd; id -u", "x"],
        "Env": ["A=image"],
        "WorkingDir": "/etc",
        "User": "bob",
    }
    load_with(demo, tmp_path, settings, "b:1")
    assert says(demo("run", "--rm", "b:1")) == "image x\n/etc\n1000\n"
    assert says(demo("run", "--rm", "-e", "A=mine", "-u", "0", "b:1", "echo $A")) == "mine\n"
    assert says(demo("run", "--rm", "--entrypoint", "pwd", "b:1")) == "/etc\n"
    assert says(demo("run", "--rm", "--entrypoint", "", "b:1", "pwd")) == "/etc\n"


@pytest.mark.parametrize(
    ("settings", "said", "status"),
    [
        ({"WorkingDir": "../.."}, "is not absolute", 2),
        ({"Env": ["=x"]}, "has no name", 2),
        ({"Env": ["A=\0"]}, "could not be started", 125),
        ({"User": "²"}, "no such user", 126),
        ({"User": "4294967295"}, "not a number that a user", 126),
        ({"Entrypoint": ["/proc/self/exe\0"]}, "could not be started", 125),
        ({"WorkingDir": "/proc/self/fd/3"}, "/proc/self/fd/3", 126),
    ],
)
def test_hostile_settings_of_an_image_are_one_line(
    demo: Run, tmp_path: Path, settings: dict[str, object], said: str, status: int
) -> None:
    load_with(demo, tmp_path, settings, "b:1")
    fails(demo("run", "--rm", "b:1", "ls"), said, status=status)
    assert says(demo("ps", "-q")) == "c1\n"


def test_standard_input_is_read_only_if_asked_for(demo: Run, tmp_path: Path) -> None:
    assert piped(tmp_path, b"data", "exec", "-i", "c1", "cat").stdout == b"data"
    assert piped(tmp_path, b"data", "exec", "c1", "cat").stdout == b""
    assert piped(tmp_path, b"data", "shell", "c1", "cat").stdout == b"data"
    much = os.urandom(1 << 20)
    assert piped(tmp_path, much, "run", "--rm", "-i", "a:1", "cat").stdout == much


def test_output_that_nobody_reads_ends_the_command(demo: Run, tmp_path: Path) -> None:
    words = f"overlayfs-demo exec --store {tmp_path}/store c1 sh -c 'while :; do echo y; done' 2>/dev/null | head -n 1"
    done = subprocess.run(
        ["sh", "-c", words], env={**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}, capture_output=True, timeout=60
    )
    assert done.stdout == b"y\n"


def test_a_terminal_is_given_if_asked_for(demo: Run, tmp_path: Path) -> None:
    told = at_terminal("", "exec", "--store", str(tmp_path / "store"), "-it", "c1", "sh", "-c", "test -t 0 && exit 3")
    assert told.endswith("status 3")
    told = at_terminal("", "exec", "--store", str(tmp_path / "store"), "-i", "c1", "sh", "-c", "test -t 0 || exit 4")
    assert told.endswith("status 4")
    assert b"-t needs a terminal" in piped(tmp_path, b"", "exec", "-it", "c1", "sh").stderr


def test_the_terminal_is_one_of_the_container_and_its_users(demo: Run, tmp_path: Path) -> None:
    words = ["exec", "--store", str(tmp_path / "store"), "-it", "-u", "bob", "c1"]
    assert "/dev/pts/0\nopened" in at_terminal("", *words, "sh", "-c", "tty; echo opened > /dev/pts/0")
    assert demo("create", "scratch", "--name", "c2").returncode == 0
    shutil.copy(static_busybox(), tmp_path / "store/containers/c2/merged/busybox")
    words = ["exec", "--store", str(tmp_path / "store"), "-it", "c2"]
    assert at_terminal("", *words, "/busybox", "sh", "-c", "test -t 0 && exit 3").endswith("status 3")
    assert at_terminal("", *words, "/nothing").endswith("status 127")


def test_a_user_may_open_the_streams_by_their_names(demo: Run) -> None:
    script = "echo out > /dev/stdout; echo err > /dev/stderr"
    done = demo("exec", "-u", "bob", "c1", "sh", "-c", script)
    assert (done.returncode, done.stdout, done.stderr) == (0, "out\n", "err\n")


def test_options_that_mean_nothing_here_are_answered_in_one_line(demo: Run) -> None:
    for option, said in (("-p", "no network"), ("--network", "no network"), ("-v", "cp"), ("-d", "foreground")):
        done = demo("run", option, "x", "a:1", "sh")
        fails(done, f"{option}: ", said, status=2)
    fails(demo("exec", "--privileged", "c1", "sh"), "--privileged: the rights", status=2)
    assert says(demo("ps", "-q")) == "c1\n"


# --- and nothing reaches this machine ----------------------------------------------------------------


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    (tmp_path / "host").mkdir()
    (tmp_path / "host/secret").write_text("canary")
    return tmp_path / "host/secret"


def inside(demo: Run, script: str) -> str:
    return demo("exec", "c1", "sh", "-c", f"({script}) 2>&1").stdout


def test_no_path_leads_out(demo: Run, canary: Path) -> None:
    up = "../" * 20
    assert "No such file" in inside(demo, f"cat {canary}")
    assert "No such file" in inside(demo, f"cd {up} && cat {str(canary)[1:]}")
    assert "No such file" in inside(demo, f"cat /proc/1/root{canary} /proc/self/cwd/{up}{canary}")
    # A second chroot lets a process out of the first, chroot(2); a changed root has nothing above it.
    assert "No such file" in inside(demo, f"chroot /tmp /bin/sh; cat {up}{canary}")
    assert set(inside(demo, "ls /proc/self/fd").split()) == {"0", "1", "2", "3"}


def test_no_device_of_the_image_can_be_opened_and_none_can_be_made(demo: Run) -> None:
    assert "ermission denied" in inside(demo, "dd if=/zero bs=1 count=1")
    assert "not permitted" in inside(demo, "mknod /tmp/disk b 254 0")
    assert "ermission denied" in inside(demo, "mount -t tmpfs x /tmp")
    assert inside(demo, "dd if=/dev/zero bs=3 count=1 2>/dev/null | dd of=/dev/null 2>/dev/null; echo $?") == "0\n"
    before = os.stat("/dev/full").st_mode
    assert "ead-only" in inside(demo, "chmod 640 /dev/full")
    assert os.stat("/dev/full").st_mode == before


def test_devices_work_in_a_container_that_was_made_so(demo: Run) -> None:
    assert demo("create", "a:1", "--name", "c2", "-o", "dev").returncode == 0
    assert demo("exec", "c2", "dd", "if=/zero", "of=/dev/null", "bs=1", "count=1").returncode == 0


def test_the_kernel_of_this_machine_cannot_be_set_and_its_network_not_seen(demo: Run) -> None:
    assert "ead-only" in inside(demo, "echo x > /proc/sys/kernel/core_pattern")
    names = inside(demo, "cat /proc/net/dev").splitlines()[2:]
    assert {name.split(":")[0].strip() for name in names} <= {"lo"}


def test_our_descriptors_stay_ours(demo: Run, tmp_path: Path, canary: Path) -> None:
    """Through /proc/self/fd/0 a file that was opened for reading could be opened for writing."""
    script = "cat; echo overwritten > /proc/self/fd/0; chmod 777 /proc/self/fd/0 /proc/self/fd/1"
    words: list[str | Path] = [
        BIN / "overlayfs-demo",
        "exec",
        "--store",
        tmp_path / "store",
        "-i",
        "c1",
        "sh",
        "-c",
        script,
    ]
    canary.chmod(0o600)
    with canary.open("rb") as given, (tmp_path / "out").open("wb") as out:
        os.fchmod(out.fileno(), 0o600)
        subprocess.run(words, stdin=given, stdout=out, stderr=subprocess.DEVNULL, timeout=60)
    assert canary.read_text() == "canary" and canary.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "out").read_text().startswith("canary") and (tmp_path / "out").stat().st_mode & 0o777 == 0o600


def _machine_code() -> bytes:
    """A program for x86-64 that calls chmod("/proc/self/exe", 0755), which is the mode already; it exits with errno."""
    code = (
        b"\x48\x8d\x3d\x17\x00\x00\x00"  # lea rdi, [the path below]
        b"\xbe\xed\x01\x00\x00"  # mov esi, 0755
        b"\xb8\x5a\x00\x00\x00\x0f\x05"  # chmod
        b"\xf7\xd8\x89\xc7"  # edi = -eax
        b"\xb8\x3c\x00\x00\x00\x0f\x05"  # exit
        b"/proc/self/exe\0"
    )
    at = 64 + 56
    header = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1", 3, 62, 1, at, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    size = at + len(code)
    return header + struct.pack("<IIQQQQQQ", 1, 5, 0, 0, 0, size, size, 4096) + code


@pytest.mark.skipif(platform.machine() != "x86_64", reason="has machine code for x86-64")
def test_a_program_that_runs_our_interpreter_cannot_change_its_file(demo: Run, tmp_path: Path) -> None:
    """CVE-2019-5736: a link to /proc/self/exe starts the host's program with a dynamic linker of the image."""
    linker = re.search(rb"/lib[^\0]*/ld-[^\0]+", Path(os.path.realpath(sys.executable)).read_bytes())
    assert linker is not None
    written = io.BytesIO(image(static_busybox(), program="/proc/self/exe"))
    with tarfile.open(fileobj=written, mode="a") as archive:
        info = tarfile.TarInfo(os.fsdecode(linker[0]))
        info.size, info.mode = len(_machine_code()), 0o755
        archive.addfile(info, io.BytesIO(_machine_code()))
    load(demo, tmp_path, written.getvalue(), "trap:1")
    assert demo("run", "--rm", "trap:1", "/program").returncode == errno.EROFS


def test_capabilities_of_the_caller_are_not_inherited(demo: Run, tmp_path: Path) -> None:
    inheriting = ("setpriv", "--inh-caps", "+sys_admin")
    words = (*inheriting, str(BIN / "overlayfs-demo"), "exec", "--store", str(tmp_path / "store"), "c1")
    status = run(*words, "cat", "/proc/self/status").stdout
    sets = {line[:6]: int(line[8:], 16) for line in status.splitlines() if line.startswith("Cap")}
    assert len(sets) == 5 and not any(rights & 1 << 21 for rights in sets.values())


def test_local_sockets_work_and_none_of_this_machine_is_in_reach(demo: Run) -> None:
    tools = "for tool in syslogd logger grep; do ln -s busybox /bin/$tool; done"
    # syslogd binds /dev/log, to which logger connects.
    log = "for try in $(seq 100); do logger hello; sleep 0.1; grep hello /tmp/log && break; done"
    assert "user.notice root: hello" in inside(demo, f"{tools}; ln -s busybox /bin/seq; syslogd -O /tmp/log; {log}")
    assert len(inside(demo, "cat /proc/net/unix").splitlines()) == 1  # The header.


def test_what_proc_tells_of_this_machine_is_masked(demo: Run) -> None:
    assert inside(demo, "cat /proc/keys /proc/interrupts /proc/timer_list") == ""
    assert inside(demo, "ls /proc/acpi").count("\n") <= 1


def test_links_in_the_place_of_system_directories_lead_nowhere(demo: Run, tmp_path: Path, canary: Path) -> None:
    (canary.parent / "passwd").write_text("eve:x:0:0::/:/bin/sh\n")
    host = str(canary.parent)
    load(demo, tmp_path, image(static_busybox(), dev=host, proc=host, etc=host, work=host), "trap:1")
    done = demo("run", "--rm", "trap:1", "sh", "-c", "ls -a /dev/ /proc/ /etc/; echo x > /etc/secret")
    assert "canary" not in done.stdout
    fails(demo("run", "--rm", "-u", "eve", "trap:1", "id"), "no such user", status=126)
    done = demo("run", "--rm", "-w", "/work/deep", "trap:1", "pwd")
    assert done.returncode in (0, 126)
    assert sorted(os.listdir(host)) == ["passwd", "secret"] and canary.read_text() == "canary"


def test_what_a_command_started_ends_with_it(demo: Run) -> None:
    mark = f"{os.getpid()}77"
    assert says(demo("exec", "c1", "sh", "-c", f"sleep {mark} & echo started")) == "started\n"
    assert not [line for line in run("ps", "ax", "-o", "args").stdout.splitlines() if line == f"sleep {mark}"]


def test_shell_reads_the_image_of_a_container_that_has_no_directories_for_the_kernel(demo: Run, tmp_path: Path) -> None:
    assert demo("create", "scratch", "--name", "c2").returncode == 0
    shutil.copy(static_busybox(), tmp_path / "store/containers/c2/merged/busybox")
    assert says(demo("shell", "c2", "/busybox", "ls", "/")) == "busybox\n"
    assert says(demo("diff", "c2")) == "A /busybox\n"
