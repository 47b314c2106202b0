"""How does a command run that can change nothing but one view?

In a sandbox that bubblewrap makes, bwrap(1): namespaces of mounts, processes, IPC, host name, cgroups and network,
where another directory stands in the place of the view and all else is read-only. Nothing that the command starts
outlives it. bubblewrap sets no_new_privs, so set-uid programs give nothing. We add what bubblewrap leaves to its
caller:

- The command gets pipes, and no descriptor of ours: `relay` passes its standard streams on. A descriptor leads out
  of the sandbox, past its read-only mounts (`/proc/self/fd`, fchmod(2)); a terminal takes typed commands (TIOCSTI).
- Root keeps the capabilities that Docker leaves to a container, without those for the network.
- Root cannot change device nodes. bubblewrap binds the host's own, so they are bound read-only before: that stops
  chmod(2) and the like, and lets data pass.
- `syscall_filter` refuses the system calls that reach things which are in no namespace.
- `sandbox_entry` lets nothing be opened for writing outside the view: that stops FIFOs, which read-only mounts do not.

An ordinary user stays that user, in a user namespace, without any capability.

The command can still read what its user can read, take data out of a FIFO, hold locks on files, and use up memory,
processor time, and space beside the view's work directory.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import FileIO

from overlayfs_demo.errors import MountError
from overlayfs_demo.explain import syscall_filter
from overlayfs_demo.explain.relay import relay
from overlayfs_demo.linux import syscalls

# moby oci/caps/defaults.go, but for what concerns networks.
_CAPABILITIES = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
)
# The nodes that `bwrap --dev` binds.
_DEVICES = (b"null", b"zero", b"full", b"random", b"urandom", b"tty")
_NAMESPACES = ("--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try")
_NEEDS = "that takes Linux 5.12 and the right to make namespaces, which a container, sysctl or AppArmor may forbid"
_READ_ONLY = ("--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--remount-ro", "/proc")


@dataclass(frozen=True, slots=True)
class Sandbox:
    """The directory `instead` is seen at `place`; the command starts in `cwd`, as seen inside. All are absolute."""

    place: bytes
    instead: bytes
    cwd: bytes

    def run(self, command: Sequence[str]) -> int:
        """Run a command; its exit status, as a shell says it.

        It reads our standard input, and all its output goes to our standard error. Call from a process with one
        thread. Raises MountError if no sandbox can be made: then nothing was run.
        """
        sys.stdout.flush()
        sys.stderr.flush()
        with contextlib.ExitStack() as stack:
            ready, says_ready = _pipe(stack)
            given, gives = _pipe(stack)
            shown, shows = _pipe(stack)
            rules, writes_rules = _pipe(stack)
            writes_rules.write(_filter())
            writes_rules.close()
            process = subprocess.Popen(
                [*self._bubblewrap(rules.fileno()), *self._entry(says_ready.fileno()), *command],
                stdin=given,
                stdout=shows,
                stderr=shows,
                pass_fds=(rules.fileno(), says_ready.fileno()),
                preexec_fn=_protect_devices if os.geteuid() == 0 else None,
            )
            stack.enter_context(_ended(process))
            says_ready.close()
            shows.close()
            if not ready.read(1):
                raise _no_sandbox(os.fsdecode(shown.read()).strip() or "it ended at once", _NEEDS)
            relay(given, gives, shown)
            code = process.wait()
        return code if code >= 0 else 128 - code

    def _bubblewrap(self, rules: int) -> list[str | bytes]:
        """The words that make the sandbox; `rules` is the descriptor to read the filter from."""
        words: list[str | bytes] = [_find_bubblewrap(), "--die-with-parent", "--new-session", *_NAMESPACES]
        words += [*_READ_ONLY, "--bind", self.instead, self.place, "--chdir", self.cwd, "--seccomp", str(rules)]
        if os.geteuid() == 0:
            words += ["--cap-drop", "ALL"]
            words += [word for name in _CAPABILITIES for word in ("--cap-add", name)]
        return [*words, "--"]

    def _entry(self, says_ready: int) -> list[str | bytes]:
        # -P: no module comes from the directory that we are in.
        return [sys.executable, "-P", "-m", "overlayfs_demo.explain.sandbox_entry", str(says_ready), self.place]


def _find_bubblewrap() -> str:
    found = shutil.which("bwrap")
    if found is None:
        raise _no_sandbox("there is no bwrap", "install the package bubblewrap")
    return found


def _filter() -> bytes:
    machine = platform.machine()
    if machine not in syscall_filter.MACHINES:
        known = ", ".join(syscall_filter.MACHINES)
        raise _no_sandbox(f"the system calls of {machine} are not known", f"use a machine of these: {known}")
    return syscall_filter.program(machine)


def _no_sandbox(why: str, remedy: str) -> MountError:
    return MountError(f"no sandbox can be made to try the command in: {why}", remedy)


def _protect_devices() -> None:
    """In the new process, before bubblewrap: a mount namespace of its own, where root cannot chmod the devices."""
    try:
        syscalls.unshare(syscalls.CLONE_NEWNS)
        syscalls.mount(b"none", b"/", b"none", syscalls.MS_REC | syscalls.MS_PRIVATE, b"")
        for name in _DEVICES:
            path = b"/dev/" + name
            syscalls.mount(path, path, b"none", syscalls.MS_BIND, b"")
            syscalls.make_mount_read_only(path)
    except OSError as failure:
        where = f"{os.fsdecode(failure.filename)}: " if failure.filename else ""
        os.write(2, os.fsencode(f"{where}{failure.strerror}\n"))
        os._exit(1)


@contextlib.contextmanager
def _ended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Afterwards the process has ended, and with it, by --die-with-parent, all that runs in the sandbox."""
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _pipe(stack: contextlib.ExitStack) -> tuple[FileIO, FileIO]:
    """Its ends for reading and writing, which close with the stack."""
    reading, writing = os.pipe()
    return stack.enter_context(FileIO(reading, "r")), stack.enter_context(FileIO(writing, "w"))
