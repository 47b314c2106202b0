"""Which system calls does a fact need that Python does not offer, and how is another process had?"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from overlayfs_demo.linux.libc import AT_EMPTY_PATH, AT_FDCWD
from tests.contract.subjects import Subject

_libc = ctypes.CDLL(None, use_errno=True)
_libc.statx.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_char_p)
_libc.linkat.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_int)
_libc.getdents64.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t)
_libc.getdents64.restype = ctypes.c_ssize_t

STATX_BASIC_STATS = 0x7FF

_CLONE_NEWNS = 0x00020000
_CLONE_NEWUSER = 0x10000000
_PR_SET_DUMPABLE = 4


def _check(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def link_descriptor(fd: int, path: bytes) -> None:
    """linkat(2) with AT_EMPTY_PATH: the file open as `fd` gets a name."""
    _check(_libc.linkat(fd, b"", AT_FDCWD, path, AT_EMPTY_PATH))


def become_root_of_namespace() -> None:
    """Go into a user and a mount namespace of our own, where we are root, as `unshare -Urm` does: unshare(2)."""
    uid, gid = os.geteuid(), os.getegid()
    _check(_libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNS))
    # After setuid(2) our files in /proc belong to root: proc(5).
    _check(_libc.prctl(_PR_SET_DUMPABLE, ctypes.c_ulong(1), 0, 0, 0))
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        Path("/proc/self", name).write_text(text)


_SYS_FSOPEN, _SYS_FSCONFIG, _SYS_FSMOUNT = 430, 431, 432
_FSCONFIG_SET_FLAG, _FSCONFIG_SET_STRING, _FSCONFIG_CMD_CREATE = 0, 1, 6


def kernel_takes(key: str, value: str | None) -> bool:
    """Whether fsconfig(2) takes this option for the kernel's overlayfs; None: it is a bare word."""
    context = _check(_libc.syscall(_SYS_FSOPEN, b"overlay", 1))
    command = _FSCONFIG_SET_FLAG if value is None else _FSCONFIG_SET_STRING
    text = None if value is None else ctypes.c_char_p(os.fsencode(value))
    try:
        return int(_libc.syscall(_SYS_FSCONFIG, context, command, ctypes.c_char_p(key.encode()), text, 0)) == 0
    finally:
        os.close(context)


def kernel_overlay(options: Sequence[tuple[str, str]]) -> list[str]:
    """The names in the root of the kernel's overlay of these options, each given to fsconfig(2) by itself."""
    context = _check(_libc.syscall(_SYS_FSOPEN, b"overlay", 1))
    try:
        for key, value in options:
            words = ctypes.c_char_p(key.encode()), ctypes.c_char_p(os.fsencode(value))
            _check(_libc.syscall(_SYS_FSCONFIG, context, _FSCONFIG_SET_STRING, *words, 0))
        _check(_libc.syscall(_SYS_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0))
        mounted = _check(_libc.syscall(_SYS_FSMOUNT, context, 1, 0))
    finally:
        os.close(context)
    try:
        return sorted(os.listdir(f"/proc/self/fd/{mounted}/"))
    finally:
        os.close(mounted)


class Statx(NamedTuple):
    """The first fields of struct statx, with the device's number behind them."""

    mask: int
    blksize: int
    attributes: int
    nlink: int
    uid: int
    gid: int
    mode: int
    ino: int
    size: int
    blocks: int
    attributes_mask: int


def statx(path: bytes, flags: int, mask: int) -> Statx:
    """statx(2)."""
    buffer = ctypes.create_string_buffer(256)
    _check(_libc.statx(AT_FDCWD, path, flags, mask, buffer))
    return Statx(*struct.unpack_from("=IIQIIIH2xQQQQ", buffer.raw))


class Entry(NamedTuple):
    """A directory entry: `offset` is where the next one stands, `kind` a DT_* value."""

    offset: int
    kind: int
    name: bytes


_DIRENT = struct.Struct("=QQHB")


def getdents(fd: int, size: int = 1024) -> list[Entry]:
    """One call of getdents64(2); empty at the end."""
    buffer = ctypes.create_string_buffer(size)
    length = _check(_libc.getdents64(fd, buffer, size))
    found, start = [], 0
    while start < length:
        _, offset, record, kind = _DIRENT.unpack_from(buffer.raw, start)
        name = buffer.raw[start + _DIRENT.size : start + record].split(b"\0")[0]
        found.append(Entry(offset, kind, name))
        start += record
    return found


def all_entries(fd: int, size: int = 1024) -> list[Entry]:
    """All that is left of a directory, without `.` and `..`."""
    found = []
    while portion := getdents(fd, size):
        found += [entry for entry in portion if entry.name not in (b".", b"..")]
    return found


@contextmanager
def meanwhile(view: Subject, action: Callable[[int], Any]) -> Iterator[None]:
    """Another process calls `action(0)`, `action(1)`, ... meanwhile. Of the engine it is another thread."""
    with _thread(action) if view.kind == "engine" else _process(action):
        yield


@contextmanager
def _thread(action: Callable[[int], Any]) -> Iterator[None]:
    done, failures = threading.Event(), []

    def run() -> None:
        number = 0
        try:
            while not done.is_set():
                action(number)
                number += 1
        except BaseException as error:  # noqa: BLE001 - it is raised by whoever started the thread
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    assert not failures, failures


@contextmanager
def _process(action: Callable[[int], Any]) -> Iterator[None]:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writing)
        status, number = 1, 0
        try:
            # The pipe ends when the parent closes it, or ends itself.
            while not select.select([reading], [], [], 0)[0]:
                action(number)
                number += 1
            status = 0
        finally:
            os._exit(status)
    os.close(reading)
    try:
        yield
    except BaseException:
        os.kill(child, signal.SIGKILL)
        raise
    finally:
        os.close(writing)
        _, status = os.waitpid(child, 0)
    assert status == 0, "the other process failed"
