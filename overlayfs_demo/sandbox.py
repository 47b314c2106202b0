"""How does a command run that can change nothing but one view?

In namespaces of its own: of mounts, processes, IPC, host name and network. There another directory stands in the
place of the view, and all else is read-only, also for root: whatever writes there fails with EROFS. Nothing that
the command starts outlives it. What would give root a way out is taken from it: the capabilities are those that
Docker leaves to a container, and of the devices only those that hold no data can be opened. An ordinary user
stays that user, in a user namespace (which `unshare --map-root-user` would make root, and chown(1) or tar(1) would do
something else), without any capability.

What this does not hold back: sockets in the file system, by which a daemon may be asked to do something, and what
the standard input, output and error lead to.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn

from overlayfs_demo import syscalls
from overlayfs_demo.errors import MountError

_NAMESPACES = (
    syscalls.CLONE_NEWNS | syscalls.CLONE_NEWPID | syscalls.CLONE_NEWUTS | syscalls.CLONE_NEWIPC | syscalls.CLONE_NEWNET
)
# moby oci/caps/defaults.go, but for what concerns networks.
_CAPABILITIES = (
    "chown", "dac_override", "fsetid", "fowner", "mknod", "setgid", "setuid", "setfcap", "setpcap", "sys_chroot",
    "kill",
)
_DEVICES = (b"null", b"zero", b"full", b"random", b"urandom", b"tty", b"pts")
_FROM_TERMINAL = (signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP)


@dataclass(frozen=True, slots=True)
class Sandbox:
    """The directory `instead` is seen at `place`; the command starts in `cwd`, as seen inside. All are absolute."""

    place: bytes
    instead: bytes
    cwd: bytes

    def run(self, command: Sequence[str]) -> int:
        """Run a command, its standard output going to our standard error; its exit status, as a shell says it.

        Call from a process with one thread. Raises MountError if no sandbox can be made: then nothing was run.
        """
        sys.stdout.flush()
        sys.stderr.flush()
        reading, writing = os.pipe()
        outer = os.fork()
        if not outer:
            os.close(reading)
            self._outside(command, writing)
        os.close(writing)
        with os.fdopen(reading, "rb") as answers:
            return _follow(outer, answers)

    def _outside(self, command: Sequence[str], answers: int) -> NoReturn:
        """Make the namespaces, and wait for their first process. It says first who that is, or what went wrong."""
        _ignore_terminal()
        try:
            _unshare()
            syscalls.end_with_parent(signal.SIGKILL)
            ready, go = os.pipe()
            first = os.fork()
            if not first:
                os.close(go)
                os.read(ready, 1)
                self._inside(command, answers)
            os.write(answers, b"%d\n" % first)
            os.close(go)
            os.close(answers)
            os.waitpid(first, 0)
        except OSError as failure:
            os.write(answers, f"\n{failure.strerror}\n".encode())
        finally:  # Whatever happens, a child does not go on as its parent.
            os._exit(0)

    def _inside(self, command: Sequence[str], answers: int) -> NoReturn:
        """The first process: finish the sandbox, run the command, and say how it ended."""
        syscalls.end_with_parent(signal.SIGKILL)
        try:
            _seal(self.place, self.instead)
            os.chdir(self.cwd)
            os.write(answers, b"ready\n")
            os.write(answers, b"%d\n" % _run(command))
        except OSError as failure:
            where = f"{os.fsdecode(failure.filename)}: " if failure.filename else ""
            os.write(answers, os.fsencode(f"{where}{failure.strerror}\n"))
        finally:
            os._exit(0)


def _ignore_terminal() -> None:
    """What a terminal sends is for the command; and what a process sends is for who started all this."""
    for number in (*_FROM_TERMINAL, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def _unshare() -> None:
    if os.geteuid() == 0:
        syscalls.unshare(_NAMESPACES)
        return
    uid, gid = os.geteuid(), os.getegid()
    syscalls.own_proc_files()
    syscalls.unshare(_NAMESPACES | syscalls.CLONE_NEWUSER)
    # user_namespaces(7): a map of one id needs no privilege, for groups once setgroups(2) is given up.
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        Path(f"/proc/self/{name}").write_text(text)


def _follow(outer: int, answers: BinaryIO) -> int:
    """Wait for the command; whatever comes in between, all that runs in the sandbox ends with us."""
    first = answers.readline().strip()
    try:
        said = answers.readline().strip()
        if said != b"ready":
            raise MountError(
                f"no sandbox can be made to try the command in: {os.fsdecode(said) or 'it ended at once'}",
                "that takes Linux 5.12 and the right to make namespaces, which a container or sysctl may forbid",
            )
        return int(answers.readline() or 128 + signal.SIGKILL)
    finally:
        if first:
            # The outer process, which has not waited for it unless it has ended, too, keeps its number from others.
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(first), signal.SIGKILL)
        os.waitpid(outer, 0)


# --- inside ----------------------------------------------------------------------------------------


def _seal(place: bytes, instead: bytes) -> None:
    """Put one directory in the place of another, and make all others read-only. Raises OSError."""
    syscalls.mount(b"none", b"/", b"none", syscalls.MS_REC | syscalls.MS_PRIVATE, b"")
    syscalls.mount(b"proc", b"/proc", b"proc", syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC, b"")
    syscalls.mount(instead, place, b"none", syscalls.MS_BIND, b"")
    forbidden = syscalls.MOUNT_ATTR_RDONLY | syscalls.MOUNT_ATTR_NODEV
    syscalls.set_mount_attributes(b"/", on=forbidden, recursive=True)
    syscalls.set_mount_attributes(place, off=syscalls.MOUNT_ATTR_RDONLY)
    for name in _DEVICES:
        path = b"/dev/" + name
        with contextlib.suppress(FileNotFoundError):
            syscalls.mount(path, path, b"none", syscalls.MS_BIND, b"")
            syscalls.set_mount_attributes(path, off=forbidden)


def _run(command: Sequence[str]) -> int:
    """Run the command without capabilities that lead out; its exit status. Meanwhile wait for orphans, as init does."""
    if os.geteuid() == 0:
        kept = ",".join(f"+{one}" for one in _CAPABILITIES)
        words = ["setpriv", f"--bounding-set=-all,{kept}", "--inh-caps=-all", "--ambient-caps=-all"]
    else:
        words = ["setpriv", "--no-new-privs"]
    child = os.fork()
    if not child:
        for number in (*_FROM_TERMINAL, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        os.dup2(2, 1)
        try:
            os.execvp("setpriv", [*words, "--", *command])
        except OSError as failure:
            os.write(2, f"setpriv: {failure.strerror}\n".encode())
        os._exit(127)
    while True:
        pid, status = os.wait()
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
