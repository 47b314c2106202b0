"""What do lsattr and chattr show and set, what do their flags forbid, and when was a file born?"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from overlayfs_demo.linux import syscalls, xattr
from overlayfs_demo.linux.libc import AT_FDCWD
from overlayfs_demo.overlay.inode_flags import EXTENDED, PLAIN, Format
from tests.builders import fifo, hardlink, symlink
from tests.contract.conftest import Mount
from tests.contract.engine_subject import Engine
from tests.contract.marks import differs, only
from tests.contract.raw import statx
from tests.contract.subjects import Mounted, Subject, error_of

IMMUTABLE, APPEND, NODUMP = 0x10, 0x20, 0x40

# libfuse 2 through fusepy passes no ioctl on.
SUBJECTS = ["engine", "kernel-front", "kernel"]
fact = only(SUBJECTS, "libfuse 2 through fusepy has no ioctl: ENOTTY")

LOWER = {"imm": "1", "app": "1", "immdir/x": "1", "appdir/x": "1", "plain": "1", "dir/x": "1", "low": "1"}
UPPER = {"upimm": "1", "upapp": "1", "upimmdir/x": "1", "upappdir/x": "1"}


def flags_of(path: Path) -> int:
    fd = os.open(path, os.O_RDONLY)
    value = bytearray(8)
    try:
        fcntl.ioctl(fd, PLAIN.get, value, True)
    finally:
        os.close(fd)
    return int.from_bytes(value[:4], "little")


def chattr(view: Subject, path: str, change: str) -> None:
    """Add `+` or take away `-` a flag through the view."""
    flag = {"i": IMMUTABLE, "a": APPEND, "d": NODUMP}[change[1]]
    before = lsattr(view, path)
    after = before | flag if change[0] == "+" else before & ~flag
    set_value(view, path, PLAIN, after.to_bytes(4, "little"))


def lsattr(view: Subject, path: str) -> int:
    return int.from_bytes(value_of(view, path, PLAIN)[:4], "little")


def value_of(view: Subject, path: str, form: Format) -> bytes:
    if isinstance(view, Engine):
        return view.overlay.get_flags(view.node(path), form)
    assert isinstance(view, Mounted)
    value = bytearray(form.size)
    fd = os.open(view.path(path), os.O_RDONLY | os.O_NONBLOCK)
    try:
        fcntl.ioctl(fd, form.get, value, True)
    finally:
        os.close(fd)
    return bytes(value)


def set_value(view: Subject, path: str, form: Format, value: bytes) -> None:
    if isinstance(view, Engine):
        view.overlay.set_flags(view.node(path), form, value, view.caller)
        return
    assert isinstance(view, Mounted)
    fd = os.open(view.path(path), os.O_RDONLY)
    try:
        fcntl.ioctl(fd, form.set, value)
    finally:
        os.close(fd)


@pytest.fixture
def flagged(mounted: Mount, tmp_path: Path) -> Iterator[Mount]:
    """`mounted`, of `LOWER` and `UPPER` where files that say so are immutable and append-only, those of the upper
    through the view. Nothing stays so."""
    probe = tmp_path / "probe"
    probe.touch()
    try:
        flags_of(probe)
    except OSError as error:
        pytest.skip(f"the filesystem has no inode flags: {error.strerror}")

    def mount(**options: Any) -> Subject:
        view: Subject = mounted(LOWER, upper=UPPER, **options)
        lower = str(view.layers.lowers[0])
        subprocess.run(["chattr", "+i", f"{lower}/imm", f"{lower}/immdir"], check=True)
        subprocess.run(["chattr", "+a", f"{lower}/app", f"{lower}/appdir"], check=True)
        view.remount()
        for path in ("upimm", "upimmdir"):
            chattr(view, path, "+i")
        for path in ("upapp", "upappdir"):
            chattr(view, path, "+a")
        return view

    yield mount
    subprocess.run(["chattr", "-R", "-f", "-i", "-a", str(tmp_path)], check=False)


@fact
def test_flags_of_lower_and_upper_are_shown(flagged: Mount) -> None:
    view = flagged()
    for _ in range(2):
        shown = {path: lsattr(view, path) & (IMMUTABLE | APPEND) for path in (*LOWER, *UPPER)}
        assert shown == {path: 0 for path in shown} | {
            "imm": IMMUTABLE,
            "app": APPEND,
            "upimm": IMMUTABLE,
            "upapp": APPEND,
        }
        assert [lsattr(view, path) & 0x30 for path in ("immdir", "appdir", "upimmdir", "upappdir", "dir")] == [
            IMMUTABLE,
            APPEND,
            IMMUTABLE,
            APPEND,
            0,
        ]
        view.remount()


@fact
def test_protection_stands_in_an_attribute_and_not_on_the_uppers_file(flagged: Mount) -> None:
    view = flagged()
    for path, letter in (("upimm", b"i"), ("upapp", b"a"), ("upimmdir", b"i"), ("upappdir", b"a")):
        assert not flags_of(view.upper(path)) & (IMMUTABLE | APPEND)
        assert xattr.get(os.fsencode(view.upper(path)), "trusted.overlay.protattr") == letter
        assert view.xattrs(path) == []
    chattr(view, "upimm", "+a")
    assert xattr.get(os.fsencode(view.upper("upimm")), "trusted.overlay.protattr") == b"ai"
    for change in ("-a", "-i"):
        chattr(view, "upimm", change)
    assert xattr.get(os.fsencode(view.upper("upimm")), "trusted.overlay.protattr") is None
    view.append("upimm", b"2")


@fact
@pytest.mark.parametrize("path", ["plain", "dir"])
def test_other_flags_are_set_on_the_uppers_copy(flagged: Mount, path: str) -> None:
    view = flagged()
    chattr(view, path, "+d")
    assert lsattr(view, path) & NODUMP
    assert flags_of(view.upper(path)) & NODUMP
    assert view.stat(path).ctime_ns == view.upper(path).stat().st_ctime_ns
    assert not flags_of(view.layers.lowers[0] / path) & NODUMP
    chattr(view, path, "-d")
    assert not lsattr(view, path) & NODUMP


@fact
def test_extended_flags_are_shown_and_set(flagged: Mount) -> None:
    view = flagged()
    assert value_of(view, "imm", EXTENDED)[0] & EXTENDED.immutable
    assert value_of(view, "upapp", EXTENDED)[0] & EXTENDED.append
    value = bytearray(value_of(view, "plain", EXTENDED))
    value[0] |= EXTENDED.immutable
    set_value(view, "plain", EXTENDED, bytes(value))
    assert lsattr(view, "plain") & IMMUTABLE
    assert error_of(lambda: view.append("plain", b"2")) == errno.EPERM


def opened(view: Subject, path: str, flags: int) -> None:
    view.open(path, flags).close()


FILE_CALLS: dict[str, Callable[[Subject, str], object]] = {
    "open": lambda view, path: opened(view, path, os.O_WRONLY),
    "append": lambda view, path: opened(view, path, os.O_WRONLY | os.O_APPEND),
    "append to nothing": lambda view, path: opened(view, path, os.O_WRONLY | os.O_APPEND | os.O_TRUNC),
    "truncate": lambda view, path: view.truncate(path, 0),
    "chmod": lambda view, path: view.chmod(path, 0o600),
    "chown": lambda view, path: view.chown(path, 5, 5),
    "utime": lambda view, path: view.utime(path, 5, 5),
    "setxattr": lambda view, path: view.set_xattr(path, "user.k", b"v"),
    "removexattr": lambda view, path: view.remove_xattr(path, "user.k"),
    "link": lambda view, path: view.link(path, "another"),
    "rename": lambda view, path: view.rename(path, "another"),
    "exchange": lambda view, path: view.rename("plain", path, syscalls.RENAME_EXCHANGE),
    "replace": lambda view, path: view.rename("plain", path),
    "unlink": lambda view, path: view.unlink(path),
}
DIRECTORY_CALLS: dict[str, Callable[[Subject, str], object]] = {
    "create": lambda view, path: opened(view, f"{path}/new", os.O_WRONLY | os.O_CREAT),
    "mkdir": lambda view, path: view.mkdir(f"{path}/newdir"),
    "mknod": lambda view, path: view.mknod(f"{path}/newfifo", stat.S_IFIFO | 0o600),
    "symlink": lambda view, path: view.symlink("x", f"{path}/newlink"),
    "link into": lambda view, path: view.link("plain", f"{path}/hard"),
    "rename into": lambda view, path: view.rename("low", f"{path}/low"),
    "open": lambda view, path: opened(view, f"{path}/x", os.O_WRONLY),
    "unlink": lambda view, path: view.unlink(f"{path}/x"),
    "rename": lambda view, path: view.rename(f"{path}/x", f"{path}/y"),
    "rename out": lambda view, path: view.rename(f"{path}/x", "out"),
    "chmod": lambda view, path: view.chmod(path, 0o700),
    "setxattr": lambda view, path: view.set_xattr(path, "user.k", b"v"),
    "rmdir": lambda view, path: view.rmdir(path),
    "rename it": lambda view, path: view.rename(path, "moved"),
}


@fact
@pytest.mark.parametrize("path", ["imm", "upimm", "app", "upapp"])
def test_what_a_files_flags_forbid_is_eperm(flagged: Mount, path: str) -> None:
    view = flagged()
    allowed = {name for name, call in FILE_CALLS.items() if error_of(partial(call, view, path)) is None}
    assert allowed == ({"append"} if path.endswith("app") else set())
    for name, call in FILE_CALLS.items():
        if name not in allowed:
            assert error_of(partial(call, view, path)) == errno.EPERM, name
    assert view.read(path) == view.read("plain") == b"1"


@only(["kernel-front", "kernel"], "utimensat(2) with UTIME_NOW")
@pytest.mark.parametrize("path", ["imm", "upimm", "app", "upapp"])
def test_append_only_file_can_be_touched(flagged: Mount, path: str) -> None:
    view = flagged()
    assert error_of(lambda: os.utime(view.path(path))) == (None if path.endswith("app") else errno.EPERM)


@fact
def test_append_only_file_can_be_given_room_but_no_holes(flagged: Mount) -> None:
    view = flagged()
    opened = view.open("upapp", os.O_WRONLY | os.O_APPEND)
    assert error_of(lambda: opened.allocate(0x1, 0, 4096)) is None
    assert error_of(lambda: opened.allocate(0x1 | 0x2, 0, 4096)) == errno.EPERM
    opened.close()


def overwrite(path: bytes) -> None:
    """Try to change what an append-only file holds, through a descriptor that may append."""
    fd = os.open(path, os.O_RDWR | os.O_APPEND)
    with contextlib.suppress(OSError):
        fcntl.fcntl(fd, fcntl.F_SETFL, 0)
    with contextlib.suppress(OSError):
        os.pwrite(fd, b"FORGED", 0)
    # No shared mapping, or one that is not written back.
    with contextlib.suppress(OSError), mmap.mmap(fd, 1) as pages:
        pages[:1] = b"!"
        pages.flush()
    with contextlib.suppress(OSError):
        os.close(fd)


@only(["kernel-front", "kernel"], "what somebody does with an open file")
@pytest.mark.parametrize("path", ["app", "upapp"])
def test_append_only_file_keeps_what_it_holds_whatever_becomes_of_o_append(flagged: Mount, path: str) -> None:
    view = flagged()
    before = view.read(path)
    overwrite(view.path(path))
    assert view.upper(path).read_bytes()[: len(before)] == before


@fact
@pytest.mark.parametrize("path", ["immdir", "upimmdir", "appdir", "upappdir"])
def test_what_a_directorys_flags_forbid_is_eperm(flagged: Mount, path: str) -> None:
    view = flagged()
    errors = {name: error_of(partial(call, view, path)) for name, call in DIRECTORY_CALLS.items()}
    allowed = {name for name, error in errors.items() if error is None}
    adding = {"create", "mkdir", "mknod", "symlink", "link into", "rename into"}
    assert allowed == {"open"} | (adding if path.endswith("appdir") else set())
    assert {error for name, error in errors.items() if name not in allowed} == {errno.EPERM}
    assert view.exists(f"{path}/x")


@fact
def test_protection_of_a_lower_survives_its_copy_up(flagged: Mount) -> None:
    view = flagged()
    opened(view, "app", os.O_WRONLY | os.O_APPEND)
    for path in ("immdir/x", "appdir/x"):
        view.append(path, b"2")
    for _ in range(2):
        assert [lsattr(view, path) & 0x30 for path in ("app", "immdir", "appdir")] == [APPEND, IMMUTABLE, APPEND]
        assert error_of(lambda: view.truncate("app", 0)) == errno.EPERM
        assert error_of(lambda: view.unlink("immdir/x")) == errno.EPERM
        view.remount()


@fact
def test_flags_are_the_owners_and_protection_is_roots(flagged: Mount) -> None:
    view = flagged()
    view.chown("plain", 12345, 12345)
    view.chmod("plain", 0o666)
    plain = lsattr(view, "plain")

    def check(change: int, expected: int | None) -> None:
        value = (plain ^ change).to_bytes(4, "little")
        assert error_of(lambda: set_value(view, "plain", PLAIN, value)) == expected

    for uid, change, expected in (
        (12345, NODUMP, None),
        (12345, IMMUTABLE, errno.EPERM),
        (12345, APPEND, errno.EPERM),
        (54321, NODUMP, errno.EPERM),
        (0, IMMUTABLE, None),
    ):
        view.run_as(uid, 0o022, partial(check, change, expected))


@fact
def test_what_is_neither_file_nor_directory_has_no_flags(mounted: Mount) -> None:
    view = mounted({"f": fifo(), "l": symlink("f")})
    assert error_of(lambda: value_of(view, "f", PLAIN)) == errno.ENOTTY


@only(["kernel-front", "fusepy-front", "kernel"], "what the kernel asks for, not the engine")
def test_other_ioctls_are_enotty(mounted: Mount) -> None:
    view = mounted({"a": "1", "d/": None})
    for path in ("a", "d"):
        fd = os.open(view.path(path), os.O_RDONLY)
        for command in (0x5401, 0x80086699, syscalls.FS_IOC_GETFLAGS + 0x40):
            assert error_of(partial(fcntl.ioctl, fd, command, bytes(64))) == errno.ENOTTY
        os.close(fd)


# --- birth ----------------------------------------------------------------------------------------

AT_SYMLINK_NOFOLLOW, STATX_ALL, STATX_BTIME = 0x100, 0xFFF, 0x800


@only(["kernel-front", "fusepy-front", "kernel"], "statx(2)")
@differs("fusepy-front", "libfuse 2 has no such request: no time of birth is told")
def test_time_of_birth_is_the_real_files(mounted: Mount) -> None:
    lower = {"low": "1", "d/x": "1", "l": symlink("x"), "copied": "1"}
    view = mounted(lower, upper={"up": "1", "hard": hardlink("up")})
    view.append("copied", b"2")
    view.write("new", b"")
    for path in ("low", "d", "l", "copied", "up", "hard", "new", "d/x"):
        layer = view.layers.lowers[0] if path in ("low", "d", "l", "d/x") else view.upper()
        real = syscalls.statx(AT_FDCWD, os.fsencode(layer / path)).birth_ns
        if real is None:
            pytest.skip("the filesystem knows no time of birth")
        shown = syscalls.statx(AT_FDCWD, view.path(path)).birth_ns
        assert shown == (None if view.differs else real), path
        status = view.stat(path)
        found = statx(view.path(path), AT_SYMLINK_NOFOLLOW, STATX_ALL)
        assert bool(found.mask & STATX_BTIME) != view.differs
        assert (found.ino, found.mode, found.nlink, found.size, found.uid) == (
            status.ino,
            status.mode,
            status.nlink,
            status.size,
            status.uid,
        )
