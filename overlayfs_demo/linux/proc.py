"""What proc(5) says about processes, and its paths for descriptors.

getxattrat(2) exists only since Linux 6.13, and linkat(2) of a descriptor needs CAP_DAC_READ_SEARCH: so the file that
a descriptor is open on, or a name below it, is reached through /proc/self/fd.
"""

from __future__ import annotations

import os


def path_of(dir_fd: int, name: bytes) -> bytes:
    """Return a path that leads to `name` in the directory `dir_fd` (or `name` itself, if it is absolute)."""
    return name if name.startswith(b"/") else b"/proc/self/fd/%d/%s" % (dir_fd, name)


def fd_path(fd: int) -> bytes:
    """Return a path that leads to the file open as `fd`, even if that is unlinked. It must be followed."""
    return b"/proc/self/fd/%d" % fd


def supplementary_groups(pid: int) -> list[int]:
    """Return the supplementary groups of a process: proc_pid_status(5). Empty if the process is gone."""
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as status:  # noqa: PTH123
            groups = next(line for line in status if line.startswith("Groups:"))
    except OSError:
        return []
    return [int(word) for word in groups.split()[1:]]


def pending_and_blocked_signals(pid: int) -> tuple[int, int]:
    """Return the signals that a thread has not handled yet, and those that it blocks, as bit masks: proc_pid_status(5).

    `pid` may be the id of any thread. Raises OSError if it is gone.
    """
    with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as status:  # noqa: PTH123
        masks = dict(line.split(":") for line in status if line.startswith(("SigPnd", "ShdPnd", "SigBlk")))
    return int(masks["SigPnd"], 16) | int(masks["ShdPnd"], 16), int(masks["SigBlk"], 16)


def command_name(pid: int) -> str:
    """Return the name of a process, at most 15 bytes: proc_pid_comm(5). "" if it is gone, and for pid 0.

    Reading /proc/PID/cmdline could hang: it takes a lock that a process may hold while it waits for this very mount.
    """
    try:
        with open(f"/proc/{pid}/comm", "rb") as name:  # noqa: PTH123
            return os.fsdecode(name.read().removesuffix(b"\n"))
    except (FileNotFoundError, ProcessLookupError):
        return ""


def in_user_namespace() -> bool:
    """Return whether this process is not in the first user namespace.

    The first one maps every user to itself: user_namespaces(7).
    """
    with open("/proc/self/uid_map") as ranges:  # noqa: PTH123
        return ranges.read().split() != ["0", "0", "4294967295"]
