"""A command that runs with a container's view as its root, and its exit status.

It runs in namespaces of its own: of mounts, processes, IPC, host name, cgroups and network, the last one empty. Its
root is changed by pivot_root(2), so nothing of this machine's tree is left to reach. It cannot open devices of the
image unless the container was made with `-o dev`, and it gets the usual ones in its own /dev. Root has no more
capabilities than Docker leaves to a container, less those for devices and the audit log, and `syscall_filter` refuses
the system calls that reach things outside all namespaces. What the command can reach of the program that starts it is
read-only, see `launch`. For an ordinary user there is a user namespace as well, in which that user is root.

The command never holds a descriptor of ours: it could change the file behind it, or type into the terminal. See
`relay`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import signal

from overlayfs_demo.errors import OverlayError, printable
from overlayfs_demo.explain import syscall_filter
from overlayfs_demo.run.launch import launch
from overlayfs_demo.run.process import Process
from overlayfs_demo.run.relay import Relay
from overlayfs_demo.run.stages import Failure, read_report

# Docker's exit statuses, docker-run(1): it could not run the command, the command cannot be executed, there is none.
FAILED, NOT_EXECUTABLE, NOT_FOUND = 125, 126, 127


class RunError(OverlayError):
    """The command was not run; `exit_code` says why, with Docker's numbers."""

    def __init__(self, problem: str, remedy: str, exit_code: int) -> None:
        super().__init__(problem, remedy)
        self.exit_code = exit_code


def run(process: Process, *, interactive: bool) -> int:
    """Run the command to its end; return its exit status, 128 and the number if a signal killed it.

    `interactive`: it reads our standard input, and otherwise nothing. Its terminal, if it gets one, is shown by ours.
    Everything that it started ends with it. Raises RunError if it was not run.
    """
    if platform.machine() not in syscall_filter.MACHINES:
        raise RunError(
            f"a command cannot be confined here: the system calls of {platform.machine()} are unknown",
            f"use one of these architectures: {', '.join(syscall_filter.MACHINES)}",
            FAILED,
        )
    reading, writing = os.pipe()
    described = process.to_file()
    with Relay(interactive=interactive, terminal=process.terminal) as relay, os.fdopen(reading, "rb") as report:
        pid = os.fork()
        if pid == 0:
            launch(described, relay.theirs, writing)
        process_fd = os.pidfd_open(pid)
        try:
            os.close(writing)
            os.close(described)
            relay.start(lambda: _kill(process_fd))
            if failure := read_report(report.read()):
                raise _error(process, failure)
            _, status = os.waitpid(pid, 0)
            pid = 0
        finally:
            if pid:
                _kill(process_fd)
                os.waitpid(pid, 0)
    # Only now, because the threads of the relay may have used it until its end.
    os.close(process_fd)
    if relay.failure is not None:
        raise RunError(
            f"the command's output cannot be written: {relay.failure.strerror}",
            "the command was ended; give it another output",
            FAILED,
        )
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _kill(process_fd: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(process_fd, signal.SIGKILL)


def _error(process: Process, failure: Failure) -> RunError:
    stage, code, problem = failure.stage, failure.code, failure.problem
    if stage == "command":
        status = NOT_FOUND if code == errno.ENOENT else NOT_EXECUTABLE
        return RunError(
            f"cannot run {printable(process.command[0])}: {problem}", "name a program of the container", status
        )
    if stage == "interpreter":
        return RunError(
            f"cannot run {printable(process.command[0])}: the container has this file, but not the interpreter or "
            "loader that it needs",
            "name a program of an image that has both",
            NOT_FOUND,
        )
    if stage == "directory":
        return RunError(
            f"the working directory {printable(process.directory)}: {problem}", "choose another with -w", NOT_EXECUTABLE
        )
    if stage == "user" and code == errno.EINVAL:  # user_namespaces(7): only our own user is mapped.
        return RunError("only root can run a command as another user", "leave out -u, or use -u 0", NOT_EXECUTABLE)
    if stage == "user":
        return RunError(f"the user '{printable(process.user)}': {problem}", "choose another with -u", NOT_EXECUTABLE)
    if stage == "start":
        return RunError(
            f"the command could not be started: {problem}",
            "'inspect' shows the image's settings, of which one may be invalid",
            FAILED,
        )
    return RunError(
        f"cannot create namespaces for the command ({stage}): {problem}",
        "this needs Linux 5.12, and no chroot, container, sysctl or AppArmor that forbids namespaces",
        FAILED,
    )
