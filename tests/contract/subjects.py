"""Who is held to the contract, and how is each spoken to?

A `Subject` is one overlay with calls like the `os` module's. `Mounted` makes them on a mount point: of
our fronts, or of the kernel's overlayfs, the oracle. `tests.contract.engine_subject` makes them with the
engine's verbs. Paths are relative to the view's root.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from overlayfs_demo.linux import mounting, proc, syscalls, xattr
from overlayfs_demo.linux.libc import AT_FDCWD
from overlayfs_demo.mounts import mount, registry, umount
from overlayfs_demo.mounts.options import MountOptions
from overlayfs_demo.overlay.stack import Stack
from overlayfs_demo.overlay.types import Attrs
from tests import fork_server
from tests.conftest import wait_until

Name = str | bytes
USER = 12345  # Some user without privileges; the number also serves as its group.


@dataclass(frozen=True)
class Layers:
    """The directories of one stack, the lowers from bottom to top; below these, layers that hold data only."""

    lowers: list[Path]
    upper: Path | None
    work: Path | None
    mountpoint: Path
    data_only: tuple[Path, ...] = ()
    metacopy: bool = False
    index: bool = True
    copyup_max: int | None = None
    copyup_warn: int | None = None
    flags: int = 0
    user_xattrs: bool = False

    def stack(self) -> Stack:
        """The same, as the engine wants it."""
        upper, work = (None if path is None else os.fsencode(path) for path in (self.upper, self.work))
        return Stack(
            tuple(os.fsencode(path) for path in reversed(self.lowers)),
            upper,
            work,
            data_only=tuple(map(os.fsencode, self.data_only)),
            metacopy=self.metacopy,
            index=self.index,
            copyup_max=self.copyup_max,
            copyup_warn=self.copyup_warn,
            flags=self.flags,
            user_xattrs=self.user_xattrs,
        )


class File(Protocol):
    """An open file."""

    def read(self, size: int = 1 << 20, offset: int = 0) -> bytes: ...
    def write(self, data: bytes, offset: int = 0) -> int: ...
    def stat(self) -> Attrs: ...
    def chmod(self, mode: int) -> None: ...
    def allocate(self, mode: int, offset: int, length: int) -> None: ...
    def seek(self, offset: int, whence: int) -> int: ...
    def copy_to(self, target: Any, length: int, offset: int = 0, target_offset: int = 0) -> int: ...
    def link(self, path: Name) -> None: ...
    def close(self) -> None: ...


class Directory(Protocol):
    """A directory that somebody holds, as a working directory is held."""

    def names(self) -> list[bytes]: ...
    def create(self, name: Name, data: bytes) -> None: ...
    def parent_ino(self) -> int: ...
    def close(self) -> None: ...


class Subject:
    """One overlay. `differs` says that this subject is known to break the fact under test."""

    kind = ""

    def __init__(self, layers: Layers) -> None:
        self.layers = layers
        self.differs = False

    # What each subject does in its own way:

    def start(self) -> None:
        raise NotImplementedError

    def stop(self) -> None:
        raise NotImplementedError

    def stat(self, path: Name) -> Attrs:
        raise NotImplementedError

    def listing(self, path: Name = "") -> list[tuple[bytes, int]]:
        raise NotImplementedError

    def open(self, path: Name, flags: int = os.O_RDONLY, mode: int = 0o644) -> File:
        raise NotImplementedError

    def hold(self, path: Name) -> Directory:
        raise NotImplementedError

    def mkdir(self, path: Name, mode: int = 0o755) -> None:
        raise NotImplementedError

    def mknod(self, path: Name, mode: int, device: int = 0) -> None:
        raise NotImplementedError

    def symlink(self, target: Name, path: Name) -> None:
        raise NotImplementedError

    def readlink(self, path: Name) -> bytes:
        raise NotImplementedError

    def link(self, old: Name, new: Name) -> None:
        raise NotImplementedError

    def unlink(self, path: Name) -> None:
        raise NotImplementedError

    def rmdir(self, path: Name) -> None:
        raise NotImplementedError

    def rename(self, old: Name, new: Name, flags: int = 0) -> None:
        raise NotImplementedError

    def truncate(self, path: Name, size: int) -> None:
        raise NotImplementedError

    def chmod(self, path: Name, mode: int) -> None:
        raise NotImplementedError

    def chown(self, path: Name, uid: int, gid: int) -> None:
        raise NotImplementedError

    def utime(self, path: Name, atime_ns: int, mtime_ns: int) -> None:
        raise NotImplementedError

    def set_xattr(self, path: Name, name: str, value: bytes, flags: int = 0) -> None:
        raise NotImplementedError

    def xattr(self, path: Name, name: str) -> bytes:
        raise NotImplementedError

    def xattrs(self, path: Name) -> list[str]:
        raise NotImplementedError

    def remove_xattr(self, path: Name, name: str) -> None:
        raise NotImplementedError

    def statvfs(self) -> os.statvfs_result:
        raise NotImplementedError

    def run_as(self, uid: int, umask: int, action: Callable[[], Any]) -> None:
        """Run `action` as user and group `uid`, with a umask of its own."""
        raise NotImplementedError

    # What follows from it:

    def remount(self) -> None:
        """Unmount and mount again: only what is on disk remains."""
        self.stop()
        self.start()

    def names(self, path: Name = "") -> list[bytes]:
        return sorted(name for name, _ in self.listing(path))

    def exists(self, path: Name) -> bool:
        try:
            self.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def read(self, path: Name) -> bytes:
        opened = self.open(path)
        try:
            return opened.read()
        finally:
            opened.close()

    def write(self, path: Name, data: bytes, flags: int = os.O_CREAT | os.O_TRUNC, offset: int = 0) -> None:
        opened = self.open(path, os.O_WRONLY | flags)
        try:
            opened.write(data, offset)
        finally:
            opened.close()

    def append(self, path: Name, data: bytes) -> None:
        self.write(path, data, flags=0, offset=self.stat(path).size)

    def set_default_acl(self, path: Name, acl: bytes) -> None:
        self.set_xattr(path, "system.posix_acl_default", acl)

    def upper(self, path: Name = "") -> Path:
        """Where something stands in the upper."""
        assert self.layers.upper is not None
        return self.layers.upper / os.fsdecode(path)

    def is_whiteout(self, path: Name) -> bool:
        """Does the upper hold a whiteout here?"""
        if not os.path.lexists(self.upper(path)):
            return False
        status = os.lstat(self.upper(path))
        return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0

    def is_opaque(self, path: Name) -> bool:
        """Does the upper hold an opaque directory here?"""
        return xattr.get(os.fsencode(self.upper(path)), "trusted.overlay.opaque") == b"y"

    def upper_names(self) -> list[str]:
        """All paths in the upper."""
        return sorted(str(path.relative_to(self.upper())) for path in self.upper().rglob("*"))

    def work_is_empty(self) -> bool:
        """Has nothing half-made been left in the work directory?"""
        assert self.layers.work is not None
        # One whiteout is kept there, of which all others are further names.
        return all(stat.S_ISCHR(path.lstat().st_mode) for path in (self.layers.work / "work").iterdir())


class Mounted(Subject):
    """An overlay at a mount point."""

    def __init__(self, layers: Layers) -> None:
        super().__init__(layers)
        self.prefix = os.fsencode(layers.mountpoint)

    def path(self, path: Name) -> bytes:
        return os.path.join(self.prefix, os.fsencode(path))

    def stat(self, path: Name) -> Attrs:
        status = os.lstat(self.path(path))
        return Attrs.of(status, status.st_ino, status.st_nlink)

    def listing(self, path: Name = "") -> list[tuple[bytes, int]]:
        with os.scandir(self.path(path)) as entries:
            return [(entry.name, entry.inode()) for entry in entries]

    def open(self, path: Name, flags: int = os.O_RDONLY, mode: int = 0o644) -> File:
        return _RealFile(self, os.open(self.path(path), flags, mode))

    def hold(self, path: Name) -> Directory:
        return _RealDirectory(os.open(self.path(path), os.O_RDONLY | os.O_DIRECTORY))

    def mkdir(self, path: Name, mode: int = 0o755) -> None:
        os.mkdir(self.path(path), mode)

    def mknod(self, path: Name, mode: int, device: int = 0) -> None:
        os.mknod(self.path(path), mode, device)

    def symlink(self, target: Name, path: Name) -> None:
        os.symlink(os.fsencode(target), self.path(path))

    def readlink(self, path: Name) -> bytes:
        return os.readlink(self.path(path))

    def link(self, old: Name, new: Name) -> None:
        os.link(self.path(old), self.path(new), follow_symlinks=False)

    def unlink(self, path: Name) -> None:
        os.unlink(self.path(path))

    def rmdir(self, path: Name) -> None:
        os.rmdir(self.path(path))

    def rename(self, old: Name, new: Name, flags: int = 0) -> None:
        syscalls.rename(AT_FDCWD, self.path(old), AT_FDCWD, self.path(new), flags)

    def truncate(self, path: Name, size: int) -> None:
        os.truncate(self.path(path), size)

    def chmod(self, path: Name, mode: int) -> None:
        os.chmod(self.path(path), mode)

    def chown(self, path: Name, uid: int, gid: int) -> None:
        os.chown(self.path(path), uid, gid, follow_symlinks=False)

    def utime(self, path: Name, atime_ns: int, mtime_ns: int) -> None:
        os.utime(self.path(path), ns=(atime_ns, mtime_ns), follow_symlinks=False)

    def set_xattr(self, path: Name, name: str, value: bytes, flags: int = 0) -> None:
        os.setxattr(self.path(path), name, value, flags, follow_symlinks=False)

    def xattr(self, path: Name, name: str) -> bytes:
        return os.getxattr(self.path(path), name, follow_symlinks=False)

    def xattrs(self, path: Name) -> list[str]:
        return sorted(os.listxattr(self.path(path), follow_symlinks=False))

    def remove_xattr(self, path: Name, name: str) -> None:
        os.removexattr(self.path(path), name, follow_symlinks=False)

    def statvfs(self) -> os.statvfs_result:
        return os.statvfs(self.prefix)

    def run_as(self, uid: int, umask: int, action: Callable[[], Any]) -> None:
        def child() -> None:
            # From inside: the user may not be allowed to walk the path to the mount point.
            os.chdir(self.prefix)
            self.prefix = b"."
            os.umask(umask)
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            action()

        in_child(child)


class Fronted(Mounted):
    """Our own overlay, shown by the front called `front`."""

    def __init__(self, layers: Layers, front: str, *, passthrough: bool = True) -> None:
        super().__init__(layers)
        self.kind = f"{front}-front"
        self.front = front
        self.passthrough = passthrough
        self.timeout: float | None = None

    def start(self) -> None:
        # In another process, because mounting leaves a daemon behind and sets the umask.
        fork_server.call(mount.mount, self.prefix, self.options(self.layers.stack()))

    def start_as_patched(self) -> None:
        """The same, with what the test has patched in the program."""
        in_child(lambda: mount.mount(self.prefix, self.options(self.layers.stack())))

    def options(self, stack: Stack) -> MountOptions:
        """How it is mounted."""
        return MountOptions(stack, self.front, self.layers.flags, self.timeout, passthrough=self.passthrough)

    def stop(self) -> None:
        umount.unmount(self.prefix)

    def daemon(self) -> int:
        """The process that serves the mount."""
        record = registry.find_record(os.fsdecode(self.prefix))
        assert record is not None
        return record.daemon


class Kernel(Mounted):
    """The kernel's overlayfs."""

    kind = "kernel"

    def start(self) -> None:
        options = "userxattr," if self.layers.user_xattrs else "redirect_dir=on,"
        options += f"index={'on' if self.layers.index else 'off'},"
        options += "metacopy=on," if self.layers.metacopy else ""
        options += "lowerdir=" + ":".join(str(path) for path in reversed(self.layers.lowers))
        options += "".join(f"::{path}" for path in self.layers.data_only)
        if self.layers.upper is not None:
            options += f",upperdir={self.layers.upper},workdir={self.layers.work}"
        mounting.mount(b"overlay", self.prefix, b"overlay", self.layers.flags, options.encode())

    def stop(self) -> None:
        wait_until(self._unmounted, "unmount of the kernel's overlay")

    def _unmounted(self) -> bool:
        """A process that just ended may hold the mount for an instant longer."""
        try:
            mounting.unmount(self.prefix)
        except BlockingIOError:
            return False
        return True


def error_of(call: Callable[[], object]) -> int | None:
    """The errno that a call fails with, None if it succeeds."""
    try:
        call()
    except OSError as error:
        return error.errno
    return None


def in_child(action: Callable[[], Any]) -> None:
    """Run `action` in a forked process; its exception, if any, is raised here."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            fork_server.write_outcome(writing, action)
        finally:
            os._exit(0)
    os.close(writing)
    try:
        with os.fdopen(reading, "rb") as pipe:
            fork_server.raise_outcome(pipe)
    finally:
        os.waitpid(child, 0)


class _RealFile:
    def __init__(self, subject: Mounted, fd: int) -> None:
        self._subject = subject
        self._fd = fd

    def read(self, size: int = 1 << 20, offset: int = 0) -> bytes:
        return os.pread(self._fd, size, offset)

    def write(self, data: bytes, offset: int = 0) -> int:
        return os.pwrite(self._fd, data, offset)

    def stat(self) -> Attrs:
        status = os.fstat(self._fd)
        return Attrs.of(status, status.st_ino, status.st_nlink)

    def chmod(self, mode: int) -> None:
        os.fchmod(self._fd, mode)

    def allocate(self, mode: int, offset: int, length: int) -> None:
        syscalls.allocate(self._fd, mode, offset, length)

    def seek(self, offset: int, whence: int) -> int:
        return os.lseek(self._fd, offset, whence)

    def copy_to(self, target: _RealFile, length: int, offset: int = 0, target_offset: int = 0) -> int:
        return os.copy_file_range(self._fd, target._fd, length, offset, target_offset)

    def link(self, path: Name) -> None:
        syscalls.link_path(proc.fd_path(self._fd), AT_FDCWD, self._subject.path(path))

    def close(self) -> None:
        os.close(self._fd)


class _RealDirectory:
    def __init__(self, fd: int) -> None:
        self._fd = fd

    def names(self) -> list[bytes]:
        os.lseek(self._fd, 0, os.SEEK_SET)
        return sorted(os.fsencode(name) for name in os.listdir(self._fd))

    def create(self, name: Name, data: bytes) -> None:
        fd = os.open(os.fsencode(name), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=self._fd)
        os.write(fd, data)
        os.close(fd)

    def parent_ino(self) -> int:
        return os.stat("..", dir_fd=self._fd).st_ino

    def close(self) -> None:
        os.close(self._fd)
