"""Wrappers for the Linux system calls that Python does not offer.

All raw calls of the program are in this module. Each wrapper takes and returns what the `os`
module would (descriptors, byte paths), raises OSError with the errno of the call, and names its man page.
Calls without a C library wrapper have unified numbers (the same on every architecture since Linux 5.0).
"""

from __future__ import annotations

import ctypes
import ctypes.util
import errno
import fcntl
import functools
import os
import resource
import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

_libc = ctypes.CDLL(None, use_errno=True)

_SYS_OPEN_TREE = 428
_SYS_OPENAT2 = 437
_SYS_MOUNT_SETATTR = 442
_SYS_LANDLOCK_CREATE_RULESET = 444
_SYS_LANDLOCK_ADD_RULE = 445
_SYS_LANDLOCK_RESTRICT_SELF = 446
AT_FDCWD = -100
_AT_SYMLINK_NOFOLLOW = 0x100
AT_SYMLINK_FOLLOW = 0x400
AT_EMPTY_PATH = 0x1000
_AT_HANDLE_FID = 0x200

RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
RENAME_WHITEOUT = 4

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_SYNCHRONOUS = 16
MS_REMOUNT = 32
MS_DIRSYNC = 128
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
MS_NOATIME = 1024
MS_NODIRATIME = 2048
MS_RELATIME = 1 << 21
MS_STRICTATIME = 1 << 24
MS_LAZYTIME = 1 << 25
MNT_FORCE = 1
MNT_DETACH = 2

CLONE_NEWNS = 0x00020000

MOUNT_ATTR_RDONLY = 1
MOUNT_ATTR_RELATIME = 0
MOUNT_ATTR_NODEV = 4
MOUNT_ATTR_NOATIME = 0x10
MOUNT_ATTR_STRICTATIME = 0x20
MOUNT_ATTR_NODIRATIME = 0x80
_MOUNT_ATTR_ATIME = 0x70
_OPEN_TREE_CLONE = 1

FALLOC_FL_KEEP_SIZE = 1

# linux/landlock.h. LANDLOCK_ACCESS_FS_REFER allows a file to be linked or renamed into another directory.
_LANDLOCK_VERSION = 1
_LANDLOCK_REFER_VERSION = 2
_LANDLOCK_PATH_BENEATH = 1
_LANDLOCK_WRITE_FILE = 1 << 1
_LANDLOCK_REFER = 1 << 13

FICLONE = 0x40049409
FS_IOC_GETFLAGS = 0x80006601 | struct.calcsize("l") << 16
FS_IOC_SETFLAGS = 0x40006602 | struct.calcsize("l") << 16
FS_IOC_FSGETXATTR = 0x801C581F
FS_IOC_FSSETXATTR = 0x401C5820

STATX_ATTR_IMMUTABLE = 0x10
STATX_ATTR_APPEND = 0x20
_STATX_BTIME = 0x800
_STATX = struct.Struct("=I4xQ64xqI")

# fanotify(7): the events of a watched directory. The last two flags add those of its entries, and of directories.
FAN_MODIFY = 0x2
FAN_ATTRIB = 0x4
FAN_MOVED_FROM = 0x40
FAN_MOVED_TO = 0x80
FAN_CREATE = 0x100
FAN_DELETE = 0x200
FAN_Q_OVERFLOW = 0x4000
_FAN_EVENT_ON_CHILD = 0x08000000
_FAN_ONDIR = 0x40000000
FAN_NAMES = FAN_MOVED_FROM | FAN_MOVED_TO | FAN_CREATE | FAN_DELETE
_FAN_MASK = FAN_NAMES | FAN_MODIFY | FAN_ATTRIB | _FAN_EVENT_ON_CHILD | _FAN_ONDIR
_FAN_INIT = 0x1 | 0x2 | 0x400 | 0x800  # FAN_CLOEXEC, FAN_NONBLOCK, FAN_REPORT_DIR_FID, FAN_REPORT_NAME
_FAN_UNLIMITED = 0x10 | 0x20  # queue and marks; for root only
_FAN_MARK_ADD_DIRECTORY = 0x1 | 0x8
_FAN_METADATA = struct.Struct("=IBBHQii")
_FAN_INFO = struct.Struct("=BBH8sIi")
_FSID = struct.Struct("=II")
_FAN_INFO_DIRECTORY_AND_NAME = 2


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


# MAX_HANDLE_SZ of name_to_handle_at(2), in bytes.
_MAX_HANDLE = 128


class _FileHandle(ctypes.Structure):
    _fields_ = (
        ("handle_bytes", ctypes.c_uint),
        ("handle_type", ctypes.c_int),
        ("f_handle", ctypes.c_ubyte * _MAX_HANDLE),
    )


_libc.syscall.restype = ctypes.c_long
_libc.renameat2.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
_libc.linkat.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_int)
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_libc.statx.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_char_p)
_libc.syncfs.argtypes = (ctypes.c_int,)
_libc.fanotify_mark.argtypes = (ctypes.c_int, ctypes.c_uint, ctypes.c_uint64, ctypes.c_int, ctypes.c_char_p)


def _check(result: int, *names: bytes) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), *names[:1])
    return result


def open_beneath(dir_fd: int, path: bytes, flags: int) -> int:
    """Open what is at `path` below `dir_fd`, without following symbolic links or leaving that directory: openat2(2).

    The caller owns the descriptor. Raises OSError: ELOOP for a symbolic link on the way, EXDEV for a
    path that leads out of the directory.
    """
    how = _OpenHow(flags | os.O_CLOEXEC, 0, RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS)
    return _check(
        _libc.syscall(_SYS_OPENAT2, dir_fd, ctypes.c_char_p(path), ctypes.byref(how), ctypes.sizeof(how)), path
    )


def rename(old_dir: int, old: bytes, new_dir: int, new: bytes, flags: int = 0) -> None:
    """Rename a file: renameat2(2). `flags` are RENAME_NOREPLACE, RENAME_EXCHANGE and RENAME_WHITEOUT."""
    _check(_libc.renameat2(old_dir, old, new_dir, new, flags), old)


def link_path(path: bytes, new_dir: int, new: bytes) -> None:
    """Give a file another name: linkat(2). `path` is absolute, and symbolic links in it are followed."""
    _check(_libc.linkat(AT_FDCWD, path, new_dir, new, AT_SYMLINK_FOLLOW), new)


def mount(source: bytes, target: bytes, kind: bytes, flags: int, data: bytes) -> None:
    """Mount a filesystem, or change a mount: mount(2)."""
    _check(_libc.mount(source, target, kind, flags, data), target)


def unmount(target: bytes, flags: int = 0) -> None:
    """Unmount a mount point: umount2(2).

    With MNT_DETACH the name disappears now, and the mount when its last user is gone. With MNT_FORCE requests that
    are waiting for the filesystem's server fail first.
    """
    _check(_libc.umount2(target, flags), target)


def make_mount_read_only(path: bytes) -> None:
    """Make the mount at `path` read-only, but not those below it: mount_setattr(2), Linux 5.12."""
    _set_mount_attributes(AT_FDCWD, path, MOUNT_ATTR_RDONLY, 0, 0)


def clone_mount(path: bytes, attributes: int) -> int:
    """Return another mount of the directory `path`, without the mounts below it and attached nowhere: open_tree(2).

    `attributes` are MOUNT_ATTR_*. Those about access times replace the mount's own, and the others are added to them.
    The caller owns the descriptor (O_PATH). The mount ends with the last descriptor that was opened in it.
    Needs CAP_SYS_ADMIN. Raises OSError: EPERM, EINVAL if the mount may not be copied, ENOSYS before Linux 5.12.
    """
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC
    fd = _check(_libc.syscall(_SYS_OPEN_TREE, AT_FDCWD, ctypes.c_char_p(path), ctypes.c_uint(flags)), path)
    try:
        _set_mount_attributes(fd, b"", attributes, _MOUNT_ATTR_ATIME | MOUNT_ATTR_NODIRATIME, AT_EMPTY_PATH)
    except OSError:
        os.close(fd)
        raise
    return fd


def _set_mount_attributes(dir_fd: int, path: bytes, on: int, off: int, flags: int) -> None:
    attributes = ctypes.create_string_buffer(struct.pack("=4Q", on, off, 0, 0), 32)
    _check(_libc.syscall(_SYS_MOUNT_SETATTR, dir_fd, ctypes.c_char_p(path), flags, attributes, 32), path)


def unshare(namespaces: int) -> None:
    """Move this process into new namespaces, CLONE_NEW*: unshare(2)."""
    _check(_libc.unshare(namespaces))


def enter_mount_namespace(path: str) -> None:
    """Enter the mount namespace of a path like /proc/PID/ns/mnt: setns(2). The process must have only one thread."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check(_libc.setns(fd, CLONE_NEWNS))
    finally:
        os.close(fd)


def write_only_beneath(directories: Sequence[bytes]) -> bool:
    """Restrict this process and its children, so that they open files for writing only beneath these: landlock(7).

    Without CAP_SYS_ADMIN it needs no_new_privs. Pipes and other files without a name stay writable. Returns False,
    without a restriction, if Landlock is turned off, or before Linux 5.19, where it would also forbid rename(2) into
    another directory.
    """
    version = _libc.syscall(_SYS_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), _LANDLOCK_VERSION)
    if version < _LANDLOCK_REFER_VERSION:
        return False
    access = _LANDLOCK_WRITE_FILE | _LANDLOCK_REFER
    handled = ctypes.create_string_buffer(struct.pack("=Q", access), 8)
    rules = _check(_libc.syscall(_SYS_LANDLOCK_CREATE_RULESET, handled, ctypes.c_size_t(8), 0))
    for directory in directories:
        fd = os.open(directory, os.O_PATH | os.O_CLOEXEC)
        rule = ctypes.create_string_buffer(struct.pack("=Qi", access, fd), 12)
        _check(_libc.syscall(_SYS_LANDLOCK_ADD_RULE, rules, _LANDLOCK_PATH_BENEATH, rule, 0), directory)
        os.close(fd)
    _check(_libc.syscall(_SYS_LANDLOCK_RESTRICT_SELF, rules, 0))
    os.close(rules)
    return True


def allocate(fd: int, mode: int, offset: int, length: int) -> None:
    """Allocate or release space of a file: fallocate(2). `mode` has its flags; offset and length are in bytes."""
    _check(_libc.fallocate(fd, mode, offset, length))


class Statx(NamedTuple):
    """The fields of statx(2) that stat(2) lacks: STATX_ATTR_* bits, and the time of birth in nanoseconds, if known."""

    attributes: int
    birth_ns: int | None


def statx(path: bytes | int, follow: bool = False) -> Statx:
    """Return the attributes and the time of birth of a path or an open descriptor: statx(2)."""
    fd, name, flags = (path, b"", AT_EMPTY_PATH) if isinstance(path, int) else (AT_FDCWD, path, 0)
    buffer = ctypes.create_string_buffer(256)
    _check(_libc.statx(fd, name, flags | (0 if follow else _AT_SYMLINK_NOFOLLOW), _STATX_BTIME, buffer), name)
    mask, attributes, seconds, nanoseconds = _STATX.unpack_from(buffer)
    return Statx(attributes, seconds * 1_000_000_000 + nanoseconds if mask & _STATX_BTIME else None)


def sync_filesystem(fd: int) -> None:
    """Write all changes of the filesystem that `fd` is on to the disk: syncfs(2)."""
    _check(_libc.syncfs(fd))


def clone_file(source: int, target: int) -> bool:
    """Share all of `source`'s blocks with `target`: ioctl_ficlone(2).

    Returns False if that is impossible (two filesystems, no reflinks). Raises OSError for any other failure.
    """
    try:
        fcntl.ioctl(target, FICLONE, source)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS):
            return False
        raise
    return True


def file_handle(dir_fd: int, name: bytes) -> tuple[int, bytes]:
    """Return the (type, opaque bytes) by which the filesystem identifies a file: name_to_handle_at(2).

    An empty `name` means `dir_fd` itself; a symbolic link is not followed. Raises OSError: EOPNOTSUPP if the
    filesystem has no handles. From Linux 6.5 on an overlay has handles that tell files apart, but cannot be opened.
    """
    handle = _FileHandle(handle_bytes=_MAX_HANDLE)
    mount_id = ctypes.c_int()
    flags = AT_EMPTY_PATH if not name else 0
    place = (dir_fd, ctypes.c_char_p(name), ctypes.byref(handle), ctypes.byref(mount_id))
    try:
        _check(_libc.name_to_handle_at(*place, flags), name)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        if _libc.name_to_handle_at(*place, flags | _AT_HANDLE_FID) < 0:
            raise
    return handle.handle_type, bytes(handle.f_handle[: handle.handle_bytes])


def open_file_handle(mount_fd: int, kind: int, opaque: bytes, flags: int) -> int:
    """Open a file by its handle: open_by_handle_at(2). The caller owns the descriptor.

    Needs CAP_DAC_READ_SEARCH. Raises OSError: ESTALE if the file is gone.
    """
    if len(opaque) > _MAX_HANDLE:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    handle = _FileHandle(handle_bytes=len(opaque), handle_type=kind)
    ctypes.memmove(handle.f_handle, opaque, len(opaque))
    return _check(_libc.open_by_handle_at(mount_fd, ctypes.byref(handle), flags | os.O_CLOEXEC))


# How fanotify(7) identifies a directory: its filesystem's id, and the type and bytes of its handle.
WatchKey = tuple[bytes, int, bytes]


class WatchEvent(NamedTuple):
    """One change: FAN_* bits, the process that made it, the directory, and the name in it (`.`: the directory)."""

    mask: int
    pid: int
    directory: WatchKey
    name: bytes


def new_watch_group() -> int:
    """Return a queue of changes in directories, for `watch_directory` and `watch_events`: fanotify_init(2).

    The caller owns the descriptor, which does not block. Since Linux 5.13 this needs no privilege; root's queue
    has no limit. Raises OSError.
    """
    unlimited = _FAN_UNLIMITED if os.geteuid() == 0 else 0
    try:
        return _check(_libc.fanotify_init(_FAN_INIT | unlimited, 0))
    except PermissionError:
        return _check(_libc.fanotify_init(_FAN_INIT, 0))


def watch_directory(group: int, fd: int) -> WatchKey:
    """Watch the directory open as `fd`, and return the key that its events will have: fanotify_mark(2).

    Raises OSError: ENOSPC if too many are watched; EOPNOTSUPP, ENODEV or EXDEV if the filesystem cannot be watched.
    """
    _check(_libc.fanotify_mark(group, _FAN_MARK_ADD_DIRECTORY, _FAN_MASK, fd, None))
    return watch_key(fd)


def watch_key(fd: int) -> WatchKey:
    """Return the key by which an event identifies the directory open as `fd`."""
    number = os.fstatvfs(fd).f_fsid  # Two 32-bit numbers in one: statfs(2).
    return _FSID.pack(number & 0xFFFFFFFF, number >> 32), *file_handle(fd, b"")


def watch_events(data: bytes) -> Iterator[WatchEvent]:
    """Decode the events in what read(2) of a watch group returned."""
    offset = 0
    while offset < len(data):
        size, _, _, start, mask, _, pid = _FAN_METADATA.unpack_from(data, offset)
        key, name = (b"", 0, b""), b""
        if size > start:
            kind, _, length, filesystem, handle_size, handle_kind = _FAN_INFO.unpack_from(data, offset + start)
            if kind == _FAN_INFO_DIRECTORY_AND_NAME:
                handle = offset + start + _FAN_INFO.size
                end = offset + start + length
                key = (filesystem, handle_kind, data[handle : handle + handle_size])
                name = data[handle + handle_size : end].partition(b"\0")[0]
        yield WatchEvent(mask, pid, key, name)
        offset += size


_FS_IOC_GETFSUUID = 0x80111500


def filesystem_uuid(fd: int) -> bytes | None:
    """Return the 16 bytes that identify the filesystem `fd` is on, or None if they cannot be found.

    They come from the ioctl FS_IOC_GETFSUUID (Linux 6.9), or else from udev's links to block devices.
    """
    answer = bytearray(17)
    try:
        fcntl.ioctl(fd, _FS_IOC_GETFSUUID, answer, True)
        return bytes(answer[1:]) if answer[0] == 16 else None
    except OSError as error:
        if error.errno not in (errno.ENOTTY, errno.EINVAL, errno.EOPNOTSUPP):
            raise
    return _uuid_by_device(os.fstat(fd).st_dev)


def _uuid_by_device(device: int) -> bytes | None:
    try:
        entries = list(os.scandir("/dev/disk/by-uuid"))
    except FileNotFoundError:
        return None
    for entry in entries:
        if entry.stat().st_rdev == device:
            digits = entry.name.replace("-", "")
            return bytes.fromhex(digits) if len(digits) == 32 else None
    return None


# --- extended attributes of a name below a directory descriptor ------------------------------------
# getxattrat(2) exists only since Linux 6.13, so the descriptor's directory is reached through /proc.


def path_of(dir_fd: int, name: bytes) -> bytes:
    """Return a path that leads to `name` in the directory `dir_fd` (or `name` itself, if it is absolute)."""
    return name if name.startswith(b"/") else b"/proc/self/fd/%d/%s" % (dir_fd, name)


def fd_path(fd: int) -> bytes:
    """Return a path that leads to the file open as `fd`, even if that is unlinked. It must be followed."""
    return b"/proc/self/fd/%d" % fd


def get_xattr(path: bytes | int, name: str, follow: bool = False) -> bytes | None:
    """Return the attribute's value, or None if there is none or the filesystem has no such attributes."""
    try:
        if isinstance(path, int):
            return os.getxattr(path, name)
        return os.getxattr(path, name, follow_symlinks=follow)
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
            return None
        raise


def list_xattrs(path: bytes | int, follow: bool = False) -> list[str]:
    """Return the attribute names; the list is empty if the filesystem has no extended attributes."""
    try:
        if isinstance(path, int):
            return os.listxattr(path)
        return os.listxattr(path, follow_symlinks=follow)
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return []
        raise


def reserve_descriptors(count: int) -> None:
    """Make room for `count` descriptors at once, or for fewer if the limit is lower.

    A process with several threads waits milliseconds for every later doubling of the table (fs/file.c,
    expand_fdtable: an RCU grace period), so a daemon does this before it starts its threads.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = min(count, soft) - 1
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    os.close(fcntl.fcntl(null, fcntl.F_DUPFD_CLOEXEC, highest))
    os.close(null)


def supplementary_groups(pid: int) -> list[int]:
    """Return the supplementary groups of a process: proc_pid_status(5). Empty if the process is gone."""
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as status:  # noqa: PTH123
            groups = next(line for line in status if line.startswith("Groups:"))
    except OSError:
        return []
    return [int(word) for word in groups.split()[1:]]


def command_name(pid: int) -> str:
    """Return the name of a process, at most 15 bytes: proc_pid_comm(5). "" if it is gone, and for pid 0.

    Reading /proc/PID/cmdline could hang: it takes a lock that a process may hold while it waits for this very mount.
    """
    try:
        with open(f"/proc/{pid}/comm", "rb") as name:  # noqa: PTH123
            return os.fsdecode(name.read().removesuffix(b"\n"))
    except (FileNotFoundError, ProcessLookupError):
        return ""


def has_library(name: str) -> bool:
    """Return whether the dynamic linker can load `libNAME.so`, in any installed version: ldconfig(8)."""
    return ctypes.util.find_library(name) is not None


@functools.cache
def page_size() -> int:
    """Return the number of bytes in a memory page."""
    return os.sysconf("SC_PAGE_SIZE")
