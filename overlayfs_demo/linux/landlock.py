"""Restriction of a process to some directories: landlock(7)."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Sequence

from overlayfs_demo.linux.libc import check, libc

_SYS_LANDLOCK_CREATE_RULESET = 444
_SYS_LANDLOCK_ADD_RULE = 445
_SYS_LANDLOCK_RESTRICT_SELF = 446

# linux/landlock.h. LANDLOCK_ACCESS_FS_REFER allows a file to be linked or renamed into another directory.
_LANDLOCK_VERSION = 1
_LANDLOCK_REFER_VERSION = 2
_LANDLOCK_PATH_BENEATH = 1
_LANDLOCK_WRITE_FILE = 1 << 1
_LANDLOCK_REFER = 1 << 13


def write_only_beneath(directories: Sequence[bytes]) -> bool:
    """Restrict this process and its children, so that they open files for writing only beneath these: landlock(7).

    Without CAP_SYS_ADMIN it needs no_new_privs. Pipes and other files without a name stay writable. Returns False,
    without a restriction, if Landlock is turned off, or before Linux 5.19, where it would also forbid rename(2) into
    another directory.
    """
    version = libc.syscall(_SYS_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), _LANDLOCK_VERSION)
    if version < _LANDLOCK_REFER_VERSION:
        return False
    access = _LANDLOCK_WRITE_FILE | _LANDLOCK_REFER
    handled = ctypes.create_string_buffer(struct.pack("=Q", access), 8)
    rules = check(libc.syscall(_SYS_LANDLOCK_CREATE_RULESET, handled, ctypes.c_size_t(8), 0))
    for directory in directories:
        fd = os.open(directory, os.O_PATH | os.O_CLOEXEC)
        rule = ctypes.create_string_buffer(struct.pack("=Qi", access, fd), 12)
        check(libc.syscall(_SYS_LANDLOCK_ADD_RULE, rules, _LANDLOCK_PATH_BENEATH, rule, 0), directory)
        os.close(fd)
    check(libc.syscall(_SYS_LANDLOCK_RESTRICT_SELF, rules, 0))
    os.close(rules)
    return True
