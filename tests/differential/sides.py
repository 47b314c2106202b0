"""How is one of the two overlays spoken to, and how is its answer made comparable?

A `Side` holds a mounted subject. Every operation runs inside the view as its root directory (chroot(2)),
so that no symbolic link leads outside, and as root or as an ordinary user. What a verb returns is plain
data without what may differ: inode numbers, times of now, link counts of directories.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from overlayfs_demo.linux import mounting, syscalls
from overlayfs_demo.mounts import mount
from overlayfs_demo.mounts.options import MountOptions
from overlayfs_demo.overlay.stack import Stack
from tests import fork_server
from tests.contract.subjects import USER, Fronted, Kernel, Layers, Mounted

Outcome = tuple[str, Any]
# Times before this were set by a layer or by an operation; later ones are "now".
SET_BEFORE = 1_700_000_000 * 10**9


class Ours(Fronted):
    """Our view, in the kernel's dialect alone."""

    def __init__(self, layers: Layers, front: str, index: bool, metacopy: bool, passthrough: bool) -> None:
        super().__init__(layers, front, passthrough=passthrough)
        self._index, self._metacopy = index, metacopy

    def start(self) -> None:
        assert self.layers.upper is not None and self.layers.work is not None
        stack = Stack(
            tuple(os.fsencode(path) for path in reversed(self.layers.lowers)),
            os.fsencode(self.layers.upper),
            os.fsencode(self.layers.work),
            image_whiteouts=False,
            index=self._index,
            metacopy=self._metacopy,
        )
        fork_server.call(mount.mount, self.prefix, MountOptions(stack, self.front, passthrough=self.passthrough))


class Oracle(Kernel):
    """The kernel's overlayfs, with options of its own."""

    def __init__(self, layers: Layers, index: bool, metacopy: bool) -> None:
        super().__init__(layers)
        self._features = f"index={'on' if index else 'off'},metacopy={'on' if metacopy else 'off'}"

    def start(self) -> None:
        options = f"redirect_dir=on,{self._features},lowerdir="
        options += ":".join(str(path) for path in reversed(self.layers.lowers))
        options += f",upperdir={self.layers.upper},workdir={self.layers.work}"
        mounting.mount(b"overlay", self.prefix, b"overlay", 0, options.encode())


class Side:
    """One mounted overlay, and the files kept open in it, by slot."""

    def __init__(self, subject: Mounted, file_times: bool = True) -> None:
        self.subject = subject
        self.file_times = file_times  # Are files' times of modification compared?
        self._place = subject.prefix
        self._outside = os.open("/", os.O_PATH | os.O_DIRECTORY)
        self._root = -1
        self._files: dict[int, int] = {}

    def start(self) -> None:
        self.subject.prefix = self._place
        self.subject.start()
        self._root = os.open(self._place, os.O_PATH | os.O_DIRECTORY)
        self.subject.prefix = b"."

    def stop(self) -> None:
        """Close everything and unmount."""
        if self._root < 0:
            return
        for slot in list(self._files):
            self.close(slot)
        os.close(self._root)
        self._root = -1
        self.subject.prefix = self._place
        self.subject.stop()

    @contextmanager
    def inside(self, user: bool) -> Iterator[None]:
        """With the view as the root directory, as root or as an ordinary user."""
        os.fchdir(self._root)
        os.chroot(".")
        try:
            if user:
                os.setegid(USER)
                os.seteuid(USER)
            yield
        finally:
            os.seteuid(0)
            os.setegid(0)
            os.fchdir(self._outside)
            os.chroot(".")

    def perform(self, verb: str, user: bool, arguments: tuple[Any, ...]) -> Outcome:
        """What the verb returned, or the name of its errno."""
        action: Callable[..., Any] = getattr(self, verb, None) or getattr(self.subject, verb)
        with self.inside(user):
            try:
                return "ok", action(*arguments)
            except OSError as error:
                return "error", errno.errorcode.get(error.errno or 0, str(error.errno))

    def is_unlinked_lower(self, slot: int) -> bool:
        """Is a file of a lower open whose name was removed? (One of the upper would have no links.)"""
        return self.is_unlinked(slot) and os.fstat(self._files[slot]).st_nlink > 0

    def is_unlinked(self, slot: int) -> bool:
        """Is a file open whose name was removed?"""
        return slot in self._files and os.readlink(f"/proc/self/fd/{self._files[slot]}").endswith(" (deleted)")

    def trimmed(self, status: os.stat_result, links: bool = True) -> tuple[Any, ...]:
        """Mode, owner, group, and where they say something: device, size, links, time of modification."""
        mode = status.st_mode
        is_directory = stat.S_ISDIR(mode)
        mtime: int | str = status.st_mtime_ns if status.st_mtime_ns < SET_BEFORE else "now"
        if stat.S_ISREG(mode) and not self.file_times:
            mtime = "not compared"
        return (
            f"{stat.filemode(mode)} {stat.S_IMODE(mode):04o}",
            status.st_uid,
            status.st_gid,
            status.st_rdev,
            None if is_directory else status.st_size,
            None if is_directory or not links else status.st_nlink,
            mtime,
        )

    # --- verbs whose answer needs trimming; the subject has the others ------------------------------

    def stat(self, path: bytes) -> tuple[Any, ...]:
        return self.trimmed(os.lstat(self.subject.path(path)))

    def stat_followed(self, path: bytes) -> tuple[Any, ...]:
        return self.trimmed(os.stat(self.subject.path(path)))

    def listing(self, path: bytes) -> list[tuple[bytes, str]]:
        with os.scandir(self.subject.path(path)) as found:
            return sorted((one.name, kind) for one in found if (kind := _kind(one)))

    def access(self, path: bytes, mode: int) -> bool:
        return os.access(self.subject.path(path), mode, effective_ids=True)

    def umask(self, mask: int) -> None:
        os.umask(mask)

    # --- files kept open ----------------------------------------------------------------------------

    def open(self, slot: int, path: bytes, flags: int, mode: int) -> str:
        # Never waits for the other end of a fifo.
        fd = os.open(self.subject.path(path), flags | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY, mode)
        self.close(slot)
        self._files[slot] = fd
        return "opened"

    def close(self, slot: int) -> None:
        if slot in self._files:
            os.close(self._files.pop(slot))

    def _fd(self, slot: int) -> int:
        if slot not in self._files:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return self._files[slot]

    def pread(self, slot: int, size: int, offset: int) -> bytes:
        return os.pread(self._fd(slot), size, offset)

    def pwrite(self, slot: int, data: bytes, offset: int) -> int:
        return os.pwrite(self._fd(slot), data, offset)

    def write_on(self, slot: int, data: bytes) -> int:
        return os.write(self._fd(slot), data)

    def fstat(self, slot: int) -> tuple[Any, ...]:
        return self.trimmed(os.fstat(self._fd(slot)), links=False)

    def ftruncate(self, slot: int, size: int) -> None:
        os.ftruncate(self._fd(slot), size)

    def fchmod(self, slot: int, mode: int) -> None:
        os.fchmod(self._fd(slot), mode)

    def fchown(self, slot: int, uid: int, gid: int) -> None:
        os.fchown(self._fd(slot), uid, gid)

    def futime(self, slot: int, atime_ns: int, mtime_ns: int) -> None:
        os.utime(self._fd(slot), ns=(atime_ns, mtime_ns))

    def fset_xattr(self, slot: int, name: str, value: bytes) -> None:
        os.setxattr(self._fd(slot), name, value)

    def fsync(self, slot: int) -> None:
        os.fsync(self._fd(slot))

    def allocate(self, slot: int, mode: int, offset: int, size: int) -> None:
        syscalls.allocate(self._fd(slot), mode, offset, size)

    def copy_range(self, source: int, target: int, size: int, offset: int) -> int:
        return os.copy_file_range(self._fd(source), self._fd(target), size, 0, offset)

    def seek_data(self, slot: int, offset: int) -> bool:
        """Only whether there is any: where it begins depends on what copied it. Directories are not asked."""
        if stat.S_ISDIR(os.fstat(self._fd(slot)).st_mode):
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        return os.lseek(self._fd(slot), offset, os.SEEK_DATA) >= 0

    # --- directories kept open ----------------------------------------------------------------------

    def hold(self, slot: int, path: bytes) -> str:
        return self.open(slot, path, os.O_RDONLY | os.O_DIRECTORY, 0)

    def held_names(self, slot: int) -> list[bytes]:
        fd = self._fd(slot)
        os.lseek(fd, 0, os.SEEK_SET)
        return sorted(name for name in map(os.fsencode, os.listdir(fd)) if _exists_at(fd, name))

    def held_create(self, slot: int, name: bytes) -> None:
        os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=self._fd(slot)))

    def held_mkdir(self, slot: int, name: bytes) -> None:
        os.mkdir(name, 0o755, dir_fd=self._fd(slot))

    def held_unlink(self, slot: int, name: bytes) -> None:
        os.unlink(name, dir_fd=self._fd(slot))

    def held_rename(self, slot: int, name: bytes, path: bytes) -> None:
        os.rename(name, self.subject.path(path), src_dir_fd=self._fd(slot))

    def held_parent(self, slot: int, name: bytes) -> tuple[Any, ...]:
        return self.trimmed(os.stat(b"../" + name, dir_fd=self._fd(slot)))


def _kind(entry: os.DirEntry[bytes]) -> str:
    """What the directory says an entry is; "" for a stray whiteout, and for what may be one."""
    if entry.is_dir(follow_symlinks=False):
        return "directory"
    if entry.is_symlink():
        return "link"
    if entry.is_file(follow_symlinks=False):
        return "file"
    try:
        entry.stat(follow_symlinks=False)
    except (FileNotFoundError, PermissionError):
        return ""
    return "special"


def _exists_at(fd: int, name: bytes) -> bool:
    try:
        os.stat(name, dir_fd=fd, follow_symlinks=False)
    except (FileNotFoundError, PermissionError):
        return False
    return True
