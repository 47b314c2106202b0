"""The seccomp(2) filter of the system calls that the sandbox refuses.

It is a program for the classic BPF machine, with instructions of 8 bytes (linux/filter.h). It reads a
`struct seccomp_data` (linux/seccomp.h) and returns the action to take. It refuses what Docker's default profile
refuses a container without further capabilities (moby profiles/seccomp/default.json): calls that reach things outside
all namespaces (keys, the clock, modules, BPF, performance counters), that make namespaces and mounts, or that do the
work of other calls past this filter (io_uring). It also refuses these, by their arguments:

- sockets of all kinds except those of the network, which is the sandbox's own: a process can connect to a daemon's
  socket even in a read-only directory, and AF_VSOCK reaches the host of a virtual machine;
- pairs of sockets, unless they stay connected to each other (with `unix_sockets`, for where no socket of this machine's
  daemons can be reached, local sockets of all kinds are allowed);
- the ioctls that type into a terminal, TIOCSTI and TIOCLINUX;
- the fcntl commands that ask for notices of other processes' calls: F_SETLEASE, which makes processes that open a file
  for writing wait (/proc/sys/fs/lease-break-time), and F_NOTIFY.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Mapping

from overlayfs_demo.named_tuple import NamedTuple


class _Machine(NamedTuple):
    """An architecture: its number in linux/audit.h, and its column in the table of calls."""

    audit: int
    column: int


_MACHINES = {"x86_64": _Machine(0xC000003E, 0), "aarch64": _Machine(0xC00000B7, 1)}
MACHINES = tuple(_MACHINES)

# By name: the numbers on x86_64 (asm/unistd_64.h) and aarch64 (asm-generic/unistd.h); None if there is no such call.
REFUSED: Mapping[str, tuple[int | None, int | None]] = {
    "_sysctl": (156, None),
    "acct": (163, 89),
    "add_key": (248, 217),
    "bpf": (321, 280),
    "clock_adjtime": (305, 266),
    "clock_settime": (227, 112),
    "create_module": (174, None),
    "delete_module": (176, 106),
    "fanotify_init": (300, 262),
    "finit_module": (313, 273),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "get_kernel_syms": (177, None),
    "init_module": (175, 105),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
    "ioperm": (173, None),
    "iopl": (172, None),
    "kcmp": (312, 272),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "lookup_dcookie": (212, 18),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "nfsservctl": (180, 42),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "open_tree_attr": (467, 467),
    "perf_event_open": (298, 241),
    "pivot_root": (155, 41),
    "query_module": (178, None),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "reboot": (169, 142),
    "request_key": (249, 218),
    "setns": (308, 268),
    "settimeofday": (164, 170),
    "swapoff": (168, 225),
    "swapon": (167, 224),
    "sysfs": (139, None),
    "syslog": (103, 116),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "uselib": (134, None),
    "userfaultfd": (323, 282),
    "vhangup": (153, 58),
}
# The last call that was reviewed, file_setattr of Linux 6.17. Later calls get ENOSYS, so that a program does without
# them. That also covers the calls of x86_64's other ABI, x32, whose numbers are larger.
_LAST = 469
_CLONE, _CLONE3, _FCNTL, _IOCTL = (56, 220), (435, 435), (72, 25), (16, 29)
_SOCKET, _SOCKETPAIR = (41, 198), (53, 199)

_CLONE_NEW = 0x7E020000  # All CLONE_NEW* flags that clone(2) accepts.
_AF_UNIX, _AF_INET, _AF_INET6 = 1, 2, 10
# Only pairs of these types cannot be connected to anything else. The higher bits are SOCK_CLOEXEC and SOCK_NONBLOCK.
_SOCK_STREAM, _SOCK_SEQPACKET, _SOCK_TYPE = 1, 5, 0xF
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
_F_SETLEASE, _F_NOTIFY = 1024, 1026

# Offsets in struct seccomp_data. Those of the arguments are of the lower half, because the kernel uses only that here.
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT, _SECOND_ARGUMENT = 0, 4, 16, 24

_LOAD, _AND, _RETURN = 0x20, 0x54, 0x06
_IF_EQUAL, _IF_GREATER, _IF_ANY_BIT = 0x15, 0x25, 0x45

_ALLOW, _KILL_PROCESS, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000


def program(machine: str, *, unix_sockets: bool = False) -> bytes:
    """Return the filter for a machine, as `uname -m` calls it. Raises KeyError for one that is not in MACHINES.

    `unix_sockets` allows all sockets of unix(7).
    """
    audit, column = _MACHINES[machine]
    refused = [numbers[column] for numbers in REFUSED.values()]
    return b"".join(
        [
            _do(_LOAD, _ARCHITECTURE),
            _do(_IF_EQUAL, audit, then=1),
            _do(_RETURN, _KILL_PROCESS),
            _do(_LOAD, _NUMBER),
            _when(_IF_GREATER, _LAST, _fail(errno.ENOSYS)),
            *(_when(_IF_EQUAL, number, _fail(errno.EPERM)) for number in refused if number is not None),
            # The flags of clone3 are in memory, which a filter cannot read; without it the C library uses clone(2).
            _when(_IF_EQUAL, _CLONE3[column], _fail(errno.ENOSYS)),
            _when(_IF_EQUAL, _CLONE[column], _namespaces()),
            _when(_IF_EQUAL, _IOCTL[column], _commands(_TIOCSTI, _TIOCLINUX)),
            _when(_IF_EQUAL, _FCNTL[column], _commands(_F_SETLEASE, _F_NOTIFY)),
            _when(_IF_EQUAL, _SOCKET[column], _families(_AF_INET, _AF_INET6, *([_AF_UNIX] if unix_sockets else []))),
            _when(_IF_EQUAL, _SOCKETPAIR[column], _families(_AF_UNIX) if unix_sockets else _pairs()),
            _do(_RETURN, _ALLOW),
        ]
    )


def _do(code: int, operand: int, then: int = 0, otherwise: int = 0) -> bytes:
    """Return one instruction, a `struct sock_filter`. A jump skips `then` instructions if true, or `otherwise`."""
    return struct.pack("=HBBI", code, then, otherwise, operand)


def _when(test: int, operand: int, body: bytes) -> bytes:
    """Return code that runs the body, which must end with a return, if the loaded value passes the test."""
    return _do(test, operand, otherwise=len(body) // 8) + body


def _fail(code: int) -> bytes:
    return _do(_RETURN, _ERRNO | code)


def _namespaces() -> bytes:
    return _do(_LOAD, _FIRST_ARGUMENT) + _when(_IF_ANY_BIT, _CLONE_NEW, _fail(errno.EPERM)) + _do(_RETURN, _ALLOW)


def _commands(*refused: int) -> bytes:
    """Return code that refuses these commands of ioctl or fcntl, which have the command as their second argument."""
    some = b"".join(_when(_IF_EQUAL, command, _fail(errno.EPERM)) for command in refused)
    return _do(_LOAD, _SECOND_ARGUMENT) + some + _do(_RETURN, _ALLOW)


def _families(*allowed: int) -> bytes:
    """Return code that refuses sockets of other families, which are the first argument of socket and socketpair."""
    some = b"".join(_when(_IF_EQUAL, family, _do(_RETURN, _ALLOW)) for family in allowed)
    return _do(_LOAD, _FIRST_ARGUMENT) + some + _fail(errno.EAFNOSUPPORT)


def _pairs() -> bytes:
    kinds = b"".join(_when(_IF_EQUAL, kind, _do(_RETURN, _ALLOW)) for kind in (_SOCK_STREAM, _SOCK_SEQPACKET))
    kind = _do(_LOAD, _SECOND_ARGUMENT) + _do(_AND, _SOCK_TYPE) + kinds + _fail(errno.EPERM)
    return _do(_LOAD, _FIRST_ARGUMENT) + _when(_IF_EQUAL, _AF_UNIX, kind) + _fail(errno.EAFNOSUPPORT)
