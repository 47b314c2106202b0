"""The life of the new process: it gives up this machine step by step, and becomes the command.

Two processes are needed, because only a child of the process that unshares the PID namespace is in it. The first waits
for the second, which is the first of its namespace: when it ends, the kernel kills all others there.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import stat
import sys
import termios
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

from overlayfs_demo.linux import confinement, mounting
from overlayfs_demo.run.process import Process
from overlayfs_demo.run.user import find_user

_NAMESPACES = (
    mounting.CLONE_NEWNS
    | mounting.CLONE_NEWPID
    | mounting.CLONE_NEWUTS
    | mounting.CLONE_NEWIPC
    | mounting.CLONE_NEWCGROUP
    | mounting.CLONE_NEWNET
)
# moby oci/caps/defaults.go, except MKNOD (no cgroup here says which devices may be opened) and AUDIT_WRITE. By their
# numbers in linux/capability.h: CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID, SETPCAP, NET_BIND_SERVICE,
# NET_RAW, SYS_CHROOT, SETFCAP.
_CAPABILITIES = frozenset((0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 31))
_DEVICES = (b"null", b"zero", b"full", b"random", b"urandom", b"tty")
_LINKS = {"fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2", "ptmx": "pts/ptmx"}
_UMASK = 0o022
_SAFE = mounting.MS_NOSUID | mounting.MS_NODEV | mounting.MS_NOEXEC


class _StageError(Exception):
    """What failed, for a report to the parent: the stage, the errno (0 if none), and the problem in words."""


def live(process: Process, program: bytes, streams: Sequence[int], report: int, *, terminal: bool) -> NoReturn:
    """Be the forked process until it ends. It writes [stage, errno, problem] to the pipe `report` if it fails.

    `streams` become its standard descriptors, and `program` filters its system calls.
    """
    status = 1
    try:
        status = _live(process, program, streams, report, terminal=terminal)
    except _StageError as error:
        os.write(report, json.dumps(error.args).encode())
    except BaseException as error:  # noqa: BLE001 - a child must not go on as its parent, whatever happens
        os.write(report, json.dumps(["start", 0, str(error) or type(error).__name__]).encode())
    os._exit(status)


@contextmanager
def _stage(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _StageError(name, error.errno or 0, error.strerror or str(error)) from error
    except LookupError as error:
        raise _StageError(name, 0, str(error.args[0])) from error


def _live(process: Process, program: bytes, streams: Sequence[int], report: int, *, terminal: bool) -> int:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    _take_streams(streams, report)
    confinement.die_with_parent()
    # Whatever this machine's files say is read now. From here on nothing may be imported: it would be the image's code.
    last = confinement.last_capability()
    sys.meta_path.clear()
    is_root = os.geteuid() == 0
    with _stage("unshare"):
        _unshare()
        pid = os.fork()
    if pid:
        os.close(report)
        _, status = os.waitpid(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        return code if code >= 0 else 128 - code
    confinement.die_with_parent()
    os.setsid()
    if terminal:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    with _stage("mount"):
        _enter(process)
    socket.sethostname(process.hostname)
    _become(process, program, last, is_root=is_root)
    raise AssertionError("execve(2) returned")


def _take_streams(streams: Sequence[int], report: int) -> None:
    """Keep the standard streams and the report, and no other descriptor: one would lead out of the container."""
    # First above the numbers that are assigned next, so that none is lost.
    kept = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in streams]
    for number, fd in enumerate(kept):
        os.dup2(fd, number)
    os.closerange(3, report)
    os.closerange(report + 1, os.sysconf("SC_OPEN_MAX"))


def _unshare() -> None:
    if os.geteuid() == 0:
        mounting.unshare(_NAMESPACES)
        return
    uid, gid = os.geteuid(), os.getegid()
    mounting.unshare(_NAMESPACES | mounting.CLONE_NEWUSER)
    # user_namespaces(7): without privileges, groups must be given up before they are mapped.
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        fd = os.open(f"/proc/self/{name}", os.O_WRONLY | os.O_CLOEXEC)
        os.write(fd, text.encode())
        os.close(fd)


# --- its root --------------------------------------------------------------------------------------


def _enter(process: Process) -> None:
    """Make the view the root. From here on, every path and every link in it lead only into the container."""
    mounting.mount(b"none", b"/", b"none", mounting.MS_REC | mounting.MS_PRIVATE, b"")
    # Read-only mounts keep root from changing the host's own nodes by chmod(2); data passes.
    devices = [(name, mounting.clone_mount_read_only(b"/dev/" + name)) for name in _DEVICES]
    # A mount of our own: the kernel locks the one that an ordinary user inherits, mount_namespaces(7).
    mounting.mount(process.root, process.root, b"none", mounting.MS_BIND, b"")
    if not process.devices:
        os.chdir("/")
        mounting.make_mount_without_devices(process.root)
    confinement.enter_root(process.root)
    if _is_directory("/proc"):
        # An ordinary user may not, if something is mounted over a part of the host's /proc: then there is none.
        with contextlib.suppress(PermissionError):
            mounting.mount(b"proc", b"/proc", b"proc", _SAFE | mounting.MS_RDONLY, b"")
    if _is_directory("/dev"):
        _fill_dev(devices)
    for _, fd in devices:
        os.close(fd)


def _is_directory(path: str) -> bool:
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except FileNotFoundError:
        return False


def _fill_dev(devices: Sequence[tuple[bytes, int]]) -> None:
    mounting.mount(b"tmpfs", b"/dev", b"tmpfs", mounting.MS_NOSUID | mounting.MS_NOEXEC, b"mode=755,size=64k")
    for name, fd in devices:
        place = b"/dev/" + name
        os.close(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        confinement.attach_mount(fd, place)
    for link, target in _LINKS.items():
        os.symlink(target, f"/dev/{link}")
    for directory in ("/dev/pts", "/dev/shm"):
        os.mkdir(directory)
    options = b"newinstance,ptmxmode=0666,mode=0620"
    mounting.mount(b"devpts", b"/dev/pts", b"devpts", mounting.MS_NOSUID | mounting.MS_NOEXEC, options)
    mounting.mount(b"tmpfs", b"/dev/shm", b"tmpfs", _SAFE, b"mode=1777,size=64m")


# --- its rights ------------------------------------------------------------------------------------


def _become(process: Process, program: bytes, last: int, *, is_root: bool) -> None:
    """Give up what the command must not have, and become it. An ordinary user (not `is_root`) may not set groups."""
    confinement.make_no_core_dumps()
    with _stage("user"):
        user = find_user(process.user)
    with _stage("directory"):
        if process.makes_directory:
            os.makedirs(process.directory, exist_ok=True)
    with _stage("rights"):
        confinement.filter_system_calls(program)
        confinement.limit_capabilities(_CAPABILITIES, last)
    with _stage("user"):
        if is_root:
            os.setgroups(user.groups)
        os.setgid(user.gid)
        os.setuid(user.uid)
    confinement.die_with_parent()  # Again, because the change of user has undone it.
    with _stage("directory"):
        os.chdir(process.directory)
    os.umask(_UMASK)
    environment = {"HOME": user.home, **process.environment}
    with _stage("command"):
        os.execvpe(process.command[0], process.command, environment)
