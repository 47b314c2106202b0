"""A sandbox for a command that may change nothing but one view.

bubblewrap, bwrap(1), makes it: it creates namespaces of mounts, processes, IPC, host name, cgroups and network, in
which another directory replaces the view and everything else is read-only. Nothing that the command starts
outlives it. bubblewrap sets no_new_privs, so set-uid programs gain no privileges. This module adds what bubblewrap
leaves to its caller:

- The command gets pipes instead of our descriptors, and `relay` passes its standard streams on. A descriptor would
  lead out of the sandbox, past its read-only mounts (`/proc/self/fd`, fchmod(2)), and a terminal accepts typed
  commands (TIOCSTI).
- Root keeps the capabilities that Docker leaves to a container, except those for the network.
- Root cannot change device nodes. bubblewrap binds the host's own, so they are first bound read-only: that prevents
  chmod(2) and similar calls, but lets data pass.
- `syscall_filter` refuses the system calls that reach things outside all namespaces.
- `sandbox_entry` prevents opening anything for writing outside the view. That includes FIFOs, which read-only mounts
  do not protect.

An ordinary user stays that user, in a user namespace, without any capability.

The command can still read what its user can read, take data out of a FIFO, hold locks on files, and use up memory,
processor time, and the space of the filesystem that the view's work directory is on.
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
from overlayfs_demo.linux import mounting

# moby oci/caps/defaults.go, except the capabilities that concern networks.
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
# The device nodes that `bwrap --dev` binds.
_DEVICES = (b"null", b"zero", b"full", b"random", b"urandom", b"tty")
_NAMESPACES = ("--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try")
_NEEDS = "this needs Linux 5.12 and permission to create namespaces, which a container, sysctl or AppArmor may deny"
_READ_ONLY = ("--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--remount-ro", "/proc")


@dataclass(frozen=True, slots=True)
class Sandbox:
    """A sandbox in which the directory `instead` appears at `place`, and the command starts in `cwd`.

    All paths are absolute, and `cwd` is as seen inside.
    """

    place: bytes
    instead: bytes
    cwd: bytes

    def run(self, command: Sequence[str]) -> int:
        """Run a command, and return its exit status in a shell's form.

        The command reads our standard input, and all its output goes to our standard error. Call this from a process
        with one thread. Raises MountError if no sandbox can be made; the command was then not run.
        """
        sys.stdout.flush()
        sys.stderr.flush()
        with contextlib.ExitStack() as stack:
            ready, says_ready = _pipe(stack)
            given, gives = _pipe(stack)
            shown, shows = _pipe(stack)
            rules, writes_rules = _pipe(stack)
            # The filter fits into the pipe's buffer, so the write does not wait for bubblewrap to read it.
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
            # Close our copies, or reading would not end when the command does.
            says_ready.close()
            shows.close()
            if not ready.read(1):
                raise _no_sandbox(os.fsdecode(shown.read()).strip() or "it exited immediately", _NEEDS)
            relay(given, gives, shown)
            code = process.wait()
        return code if code >= 0 else 128 - code

    def _bubblewrap(self, rules: int) -> list[str | bytes]:
        """Return the words that make the sandbox; `rules` is the descriptor from which bubblewrap reads the filter."""
        words: list[str | bytes] = [_find_bubblewrap(), "--die-with-parent", "--new-session", *_NAMESPACES]
        words += [*_READ_ONLY, "--bind", self.instead, self.place, "--chdir", self.cwd, "--seccomp", str(rules)]
        if os.geteuid() == 0:
            words += ["--cap-drop", "ALL"]
            words += [word for name in _CAPABILITIES for word in ("--cap-add", name)]
        return [*words, "--"]

    def _entry(self, says_ready: int) -> list[str | bytes]:
        # -P: do not import modules from the working directory.
        return [sys.executable, "-P", "-m", "overlayfs_demo.explain.sandbox_entry", str(says_ready), self.place]


def _find_bubblewrap() -> str:
    found = shutil.which("bwrap")
    if found is None:
        raise _no_sandbox("bwrap is not installed", "install the package bubblewrap")
    return found


def _filter() -> bytes:
    machine = platform.machine()
    if machine not in syscall_filter.MACHINES:
        known = ", ".join(syscall_filter.MACHINES)
        raise _no_sandbox(f"the system calls of {machine} are unknown", f"use one of these architectures: {known}")
    return syscall_filter.program(machine)


def _no_sandbox(why: str, remedy: str) -> MountError:
    return MountError(f"cannot create a sandbox for the command: {why}", remedy)


def _protect_devices() -> None:
    """Create a mount namespace in which root cannot chmod the devices. Runs in the new process, before bubblewrap."""
    try:
        mounting.unshare(mounting.CLONE_NEWNS)
        mounting.mount(b"none", b"/", b"none", mounting.MS_REC | mounting.MS_PRIVATE, b"")
        for name in _DEVICES:
            path = b"/dev/" + name
            mounting.mount(path, path, b"none", mounting.MS_BIND, b"")
            mounting.make_mount_read_only(path)
    except OSError as failure:
        where = f"{os.fsdecode(failure.filename)}: " if failure.filename else ""
        os.write(2, os.fsencode(f"{where}{failure.strerror}\n"))
        os._exit(1)


@contextlib.contextmanager
def _ended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """End the process afterwards, and with it, because of --die-with-parent, everything that runs in the sandbox."""
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _pipe(stack: contextlib.ExitStack) -> tuple[FileIO, FileIO]:
    """Return the ends of a new pipe for reading and writing, which close with the stack."""
    reading, writing = os.pipe()
    return stack.enter_context(FileIO(reading, "r")), stack.enter_context(FileIO(writing, "w"))
