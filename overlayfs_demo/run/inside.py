"""The second part of the new process's life: it gives up this machine step by step, and becomes the command.

`python -P -m overlayfs_demo.run.inside PROCESS REPORT PARENT`, which `launch` executes: descriptors of a file with a
`Process` and of a pipe for a report (see `stages`), and the parent's process ID.

Two processes are needed, because only a child of the process that unshares the PID namespace is in it. The first waits
for the second, which is the first of its namespace: when it ends, the kernel kills all others there.
"""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import signal
import socket
import sys
import termios
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

from overlayfs_demo.explain import syscall_filter
from overlayfs_demo.linux import confinement, mounting
from overlayfs_demo.linux.failure import failure
from overlayfs_demo.run.kernel_directories import KernelDirectories
from overlayfs_demo.run.process import Process
from overlayfs_demo.run.stages import READY, reporting, stage
from overlayfs_demo.run.user import find_user

# moby oci/caps/defaults.go, except MKNOD (no cgroup here says which devices may be opened) and AUDIT_WRITE. By their
# numbers in linux/capability.h: CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID, SETPCAP, NET_BIND_SERVICE,
# NET_RAW, SYS_CHROOT, SETFCAP.
_CAPABILITIES = frozenset((0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 31))
_UMASK = 0o022


def main() -> None:
    """Live until the command has ended; exit with its status, 128 and the number if a signal killed it."""
    process, report, parent = map(int, sys.argv[1:])
    os.set_inheritable(report, False)
    reporting(report, lambda: _live(Process.from_file(process), report, parent))


def _live(process: Process, report: int, parent: int) -> int:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    confinement.die_with_parent()
    if os.getppid() != parent:
        return 1  # It ended before it could take us with it.
    # Whatever this machine's files say is read now. From here on nothing may be imported: it would be the image's code.
    last = confinement.last_capability()
    may_set_groups = Path("/proc/self/setgroups").read_text() == "allow\n"  # user_namespaces(7)
    # The view has no sockets of this machine's daemons, and a network namespace has its own abstract ones: unix(7).
    program = syscall_filter.program(platform.machine(), unix_sockets=True)
    import_module("warnings")  # os.execvpe imports it.
    sys.meta_path.clear()
    with stage("unshare"):
        pid = os.fork()
    if pid:
        os.close(report)
        _, status = os.waitpid(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        return code if code >= 0 else 128 - code
    confinement.die_with_parent()
    os.setsid()
    with stage("mount"):
        _enter(process)
    socket.sethostname(process.hostname)
    _become(process, program, last, report, may_set_groups=may_set_groups)
    raise AssertionError("execve(2) returned")


def _enter(process: Process) -> None:
    """Make the view the root. From here on, every path and every link in it lead only into the container."""
    directories = KernelDirectories()
    if process.terminal:
        _take_terminal(*directories.open_terminal())
    # A mount of our own: the kernel locks the one that an ordinary user inherits, mount_namespaces(7).
    root = os.fsencode(process.root)
    mounting.mount(root, root, b"none", mounting.MS_BIND, b"")
    if os.stat(root).st_dev != process.filesystem:
        raise failure(errno.ESTALE, root)  # Somebody has put something else there in the meantime.
    if not process.devices:
        os.chdir("/")
        mounting.make_mount_without_devices(root)
    confinement.enter_root(root)
    directories.fill()


def _take_terminal(master: int, slave: int) -> None:
    """Send the master to the parent, which is at the other end of our standard input; make the slave our streams."""
    with socket.socket(fileno=os.dup(0)) as channel:
        socket.send_fds(channel, [b"\n"], [master])
    os.close(master)
    for number in range(3):
        os.dup2(slave, number)
    os.close(slave)
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def _become(process: Process, program: bytes, last: int, report: int, *, may_set_groups: bool) -> None:
    """Give up what the command must not have, and become it."""
    confinement.make_no_core_dumps()
    with stage("user"):
        user = find_user(process.user)
    with stage("directory"):
        if process.makes_directory:
            os.makedirs(process.directory, exist_ok=True)
    with stage("rights"):
        confinement.filter_system_calls(program)
        confinement.limit_capabilities(_CAPABILITIES, last)
    with stage("user"):
        for number in range(3):
            os.fchown(number, user.uid, -1)  # As runc does, so that the user can open /dev/stdout.
        if may_set_groups:
            os.setgroups(user.groups)
        os.setgid(user.gid)
        os.setuid(user.uid)
    confinement.die_with_parent()  # Again, because the change of user has undone it.
    with stage("directory"):
        os.chdir(process.directory)
    os.umask(_UMASK)
    environment = {"HOME": user.home, **process.environment}
    os.write(report, READY)
    with stage("command"):
        try:
            os.execvpe(process.command[0], process.command, environment)
        except FileNotFoundError:
            # execve(2) also says so of a file that exists, if the interpreter that it names does not.
            if _has_program(process.command[0], environment):
                with stage("interpreter"):
                    raise
            raise


def _has_program(name: str, environment: Mapping[str, str]) -> bool:
    places = [name] if "/" in name else [os.path.join(place, name) for place in os.get_exec_path(environment)]
    return any(os.access(place, os.X_OK) for place in places)


if __name__ == "__main__":
    main()
