"""The first part of the new process's life: in namespaces of its own, it becomes another interpreter.

That is not only to begin afresh. A process that executes /proc/self/exe executes its own program, with libraries of the
container, and can then change that program's file on this machine: overwrite it, or make it set-user-ID. A link to
/proc/self/exe in an image is enough (CVE-2019-5736). So the interpreter that enters the container is executed from a
read-only mount of its file, as runc does with itself.
"""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from overlayfs_demo.linux import mounting
from overlayfs_demo.run.stages import reporting, stage

_NAMESPACES = (
    mounting.CLONE_NEWNS
    | mounting.CLONE_NEWPID
    | mounting.CLONE_NEWUTS
    | mounting.CLONE_NEWIPC
    | mounting.CLONE_NEWCGROUP
    | mounting.CLONE_NEWNET
)
# -P: do not import modules from the working directory.
_WORDS = ("-P", "-m", "overlayfs_demo.run.inside")


def launch(process: int, streams: Sequence[int], report: int) -> NoReturn:
    """Be the forked process until it is the interpreter that runs `inside`.

    `process` is what `Process.to_file` returned, and `streams` become its standard descriptors. Failures are written
    to the pipe `report`.
    """
    reporting(report, lambda: _launch(process, streams, report))


def _launch(process: int, streams: Sequence[int], report: int) -> NoReturn:
    parent = os.getppid()
    _keep(streams, process, report)
    with stage("unshare"):
        _unshare()
    with stage("interpreter"):
        program = os.path.realpath(sys.executable)
        mounting.mount(b"none", b"/", b"none", mounting.MS_REC | mounting.MS_PRIVATE, b"")
        mounting.mount(os.fsencode(program), os.fsencode(program), b"none", mounting.MS_BIND, b"")
        mounting.make_mount_read_only(os.fsencode(program))
        # By the name that we were called by, next to which Python finds its environment (venv).
        os.execv(program, [sys.executable, *_WORDS, str(process), str(report), str(parent)])


def _keep(streams: Sequence[int], *others: int) -> None:
    """Keep the standard streams and these descriptors, and no other: one would lead out of the container."""
    # First above the numbers that are assigned next, so that none is lost.
    kept = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in streams]
    for number, fd in enumerate(kept):
        os.dup2(fd, number)
    first = len(kept)
    for fd in sorted(others):
        os.closerange(first, fd)
        os.set_inheritable(fd, True)
        first = fd + 1
    os.closerange(first, os.sysconf("SC_OPEN_MAX"))


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
