"""What takes rights away from this process and its children: pivot_root(2), capabilities(7), seccomp(2), prctl(2)."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import struct
from collections.abc import Collection

from overlayfs_demo.linux import capabilities
from overlayfs_demo.linux.libc import AT_FDCWD, check, libc
from overlayfs_demo.linux.mounting import MNT_DETACH, unmount

_PR_SET_PDEATHSIG = 1
_PR_SET_SECCOMP = 22
_PR_CAPBSET_DROP = 24
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_SECCOMP_MODE_FILTER = 2
_SYS_MOVE_MOUNT = 429
_MOVE_MOUNT_F_EMPTY_PATH = 4
_LAST_CAPABILITY = "/proc/sys/kernel/cap_last_cap"

libc.prctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong)


def enter_root(path: bytes) -> None:
    """Make the mount at `path` the root of this mount namespace, and let go of the old one: pivot_root(2), "(., .)".

    Nothing leads back, unlike after chroot(2). Propagation must be private. Raises OSError: EINVAL inside a chroot.
    """
    os.chdir(path)
    check(libc.pivot_root(b".", b"."), path)
    unmount(b".", MNT_DETACH)
    os.chdir("/")


def attach_mount(mount: int, path: bytes) -> None:
    """Attach a detached mount, as `mounting.clone_mount` returns one, at a path: move_mount(2)."""
    check(libc.syscall(_SYS_MOVE_MOUNT, mount, ctypes.c_char_p(b""), AT_FDCWD, path, _MOVE_MOUNT_F_EMPTY_PATH), path)


def die_with_parent() -> None:
    """Let the kernel kill this process when its parent ends. A change of user undoes this: PR_SET_PDEATHSIG(2const)."""
    check(libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0))


def make_no_core_dumps() -> None:
    """Let no crash of this process or its children start a core dump handler, which would run outside: core(5).

    There, a limit of 1 means that, and a limit of 0 does not. A limit may be lowered but not raised, so 0 stays.
    """
    if resource.getrlimit(resource.RLIMIT_CORE)[1]:
        resource.setrlimit(resource.RLIMIT_CORE, (1, 1))


def last_capability() -> int:
    """Return the number of the kernel's last capability. Raises OSError."""
    fd = os.open(_LAST_CAPABILITY, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return int(os.read(fd, 32))
    finally:
        os.close(fd)


def limit_capabilities(keep: Collection[int], last: int) -> None:
    """Let no program that this process executes get a capability but those to `keep`: capabilities(7), bounding set.

    `last` is what `last_capability` returned. Needs CAP_SETPCAP. Raises OSError.
    """
    check(libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0))
    _clear_inheritable()
    for number in range(last + 1):
        if number not in keep:
            check(libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0))


def _clear_inheritable() -> None:
    """Let programs inherit no capability by our inheritable set, which the bounding set does not limit: capset(2)."""
    effective, permitted, _, *upper = capabilities.present()
    capabilities.apply(capabilities.packed((effective, permitted, 0, upper[0], upper[1], 0)))


def filter_system_calls(program: bytes) -> None:
    """Run a filter, instructions of classic BPF, before each system call from now on: seccomp(2).

    Needs CAP_SYS_ADMIN. Raises OSError.
    """
    instructions = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: the number of instructions, and a pointer to them.
    header = ctypes.create_string_buffer(struct.pack("@HP", len(program) // 8, ctypes.addressof(instructions)))
    check(libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(header), 0, 0))
