"""The work of a FUSE daemon, call by call.

Read this file first. A FUSE filesystem is an ordinary program that answers the kernel's questions. When a
process calls, say, open("/mnt/dir/file"), the kernel sees that /mnt is a FUSE mount, makes a request available
on /dev/fuse, and lets the process wait. The daemon reads the request, does whatever it likes, and writes the
reply. libfuse does the reading and writing, fusepy calls one Python method for each request, and the
methods of `Callbacks` below pass it on to the engine:

    process  ->  kernel (VFS, fuse.ko)  ->  /dev/fuse  ->  libfuse 2  ->  fusepy  ->  Callbacks  ->  Overlay

libfuse names every file by its path, which makes the code easy to read and write. The engine, like the kernel,
works with nodes (inodes), so a callback walks the path to its node and calls one verb. A path cannot express
everything, so this front lacks some things that `fronts.kernel`, which talks to /dev/fuse itself, has:

- rename(2) has no flags: the kernel answers EINVAL to an exchange and to "do not replace".
- There is no O_TMPFILE and no fallocate(2) (both EOPNOTSUPP), and no SEEK_HOLE (a file counts as all data);
  copy_file_range(2) copies through the kernel's cache, not within the layers' filesystem.
- There are no inode flags (lsattr and chattr: ENOTTY), although existing ones are obeyed, and no time of birth.
- Two names of one file are two files to the kernel. It must therefore ask for attributes every time, and
  drop a file's cached pages at each open. While both names are open, a reader through one may still see
  the old content after the file was overwritten through the other.
- POSIX ACLs are kept and shown, but the kernel checks permissions by the mode alone, and applies the
  caller's umask even where a directory's default ACL should replace it.
- rename(2) over a file that somebody has open takes two steps in the upper, see `Callbacks.rename`.
- A program that is killed while it waits for an answer ends only when it gets one, even if that is after a long
  copy-up. libfuse would tell the thread of the interrupt by a signal (its option `intr`), but Python runs no signal
  handlers in that thread.
- Callers that wait for the same copy-up take a thread each.
- A directory that is removed while open, or a file that only O_PATH holds, no longer has attributes. The same
  goes for an open file if first it and then its directory is removed.

It needs libfuse 2 (package libfuse2, or libfuse2t64) and, to mount as an ordinary user, a program called
`fusermount` (package fuse3 provides it as a link to fusermount3).
"""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import stat
import threading
from collections import deque
from collections.abc import Callable
from itertools import count
from typing import Any
from weakref import WeakValueDictionary

import fuse

from overlayfs_demo.errors import MountError
from overlayfs_demo.fronts.front import NO_READING_NOTED, View, now_ns
from overlayfs_demo.fronts.fusepy.mount_options import ENCODING, default_signals, mount_options
from overlayfs_demo.fronts.keeper import Keeper
from overlayfs_demo.linux import libc, syscalls
from overlayfs_demo.linux.failure import failure
from overlayfs_demo.named_tuple import NamedTuple
from overlayfs_demo.overlay.handle import Handle
from overlayfs_demo.overlay.node import DirNode, FileNode, Node
from overlayfs_demo.overlay.types import AttrChange, Attrs, Caller

_log = logging.getLogger(__name__)

# The values of the nanoseconds by which utimensat(2) means "now" and "leave it".
_UTIME_NOW, _UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2

# The number of nodes to keep that nobody has open.
_RECENT = 1024

# The name that libfuse gives a file that is removed while somebody has it open.
_HIDDEN = re.compile(rb"\.fuse_hidden[0-9a-f]{16}")


class FusepyFront:
    """The portable front, on fusepy and libfuse 2 (`--front fusepy`)."""

    is_resumable = False

    def serve(self, view: View, ready: Callable[[], None], _keeper: Keeper) -> None:
        """Serve the view, see `Front.serve`. SIGTERM, SIGINT and SIGHUP unmount and end it, even with open files."""
        if os.geteuid() != 0 and shutil.which("fusermount") is None:
            raise MountError("fusermount is not installed", "install the package fuse3, or mount as root")
        callbacks = Callbacks(view, ready)
        # libfuse starts threads as requests come. A callback that cannot even begin for lack of memory answers 0, which
        # for a read means the end of the file.
        libc.share_one_heap()
        try:
            with default_signals():
                # This call mounts, answers requests on several threads, and returns when the view is unmounted.
                # With `raw_fi` the callbacks get libfuse's record of an open file (fuse_file_info) unchanged.
                fuse.FUSE(
                    callbacks,
                    view.mountpoint.decode(ENCODING),
                    raw_fi=True,
                    encoding=ENCODING,
                    foreground=True,
                    **mount_options(view),
                )
        except RuntimeError as error:
            if not callbacks.answered:
                problem = f"{os.fsdecode(view.mountpoint)}: libfuse could not mount it"
                raise MountError(problem, "its message on standard error says why") from error
            raise
        finally:
            callbacks.close()
        if callbacks.failure is not None:
            raise callbacks.failure


class _OpenFile(NamedTuple):
    node: FileNode
    handle: Handle


class Callbacks:
    """One method for each kind of request; libfuse calls them from several threads.

    A method returns its answer, or raises OSError, whose errno the calling process gets.
    A request without a method here gets ENOSYS, "not implemented", and the kernel does without it. After the
    first ENOSYS to flush() (close(2) of a file), for example, it never asks again.
    """

    # fusepy: times are integers, in nanoseconds.
    use_ns = True
    # libfuse: do not look up the path of an open file, because its handle is enough.
    flag_nullpath_ok = 1
    flag_nopath = 1
    # libfuse: utimens() understands the two special values. Without this, setting one of the two times does nothing.
    flag_utime_omit_ok = 1

    def __init__(self, view: View, ready: Callable[[], None]) -> None:
        self._overlay = view.overlay
        self._asked = view.asked
        self._always = os.O_NOATIME if view.flags & NO_READING_NOTED else 0
        self._ready = ready
        self.answered = False
        self.failure: Exception | None = None
        self._serial = count(1)
        self._files: dict[int, _OpenFile] = {}
        # For each thread, the file whose release() it answered last. libfuse counts that file as open until the
        # thread brings its next request, and hides it if an unlink() comes in between.
        self._closing: dict[int, Node] = {}
        self._directories: dict[int, DirNode] = {}
        # The engine keeps a node only as long as somebody holds it. This keeps the nodes of paths that occur again
        # and again, such as the directories on the way to a file, so that they are not created each time.
        self._recent: deque[Node] = deque(maxlen=_RECENT)
        # Removed files that are still open, by libfuse's name for them. They stay as long as `_files` holds them.
        self._hidden: WeakValueDictionary[bytes, Node] = WeakValueDictionary()

    def __call__(self, name: str, *arguments: Any) -> Any:
        """Answer one request by calling the method of this name; fusepy sends every request here."""
        self._closing.pop(threading.get_ident(), None)
        self._asked[name] += 1
        try:
            return getattr(self, name)(*arguments)
        except OSError as error:
            if error.errno:
                raise
            problem: Exception = error
        except Exception as error:  # noqa: BLE001 - whatever went wrong, the caller must get an answer
            problem = error
        _log.error("FUSE callback %s failed", name, exc_info=problem)
        raise failure(errno.EIO) from problem

    # --- the mount itself --------------------------------------------------------------------------

    def init(self, _root: str) -> None:
        """Answer the first request on a new mount. Others are already waiting, and are answered after this one."""
        try:
            syscalls.reserve_descriptors(1024)
            self._ready()
            self.answered = True
        except Exception as error:  # noqa: BLE001 - there is no caller to tell; `serve` raises it
            self.failure = error
            fuse.fuse_exit()

    def close(self) -> None:
        """Close the files that processes still had open when the view was unmounted. This is not a request."""
        while self._files:
            _, opened = self._files.popitem()
            self._overlay.files.release(opened.node, opened.handle)

    def statfs(self, _path: str) -> dict[str, int]:
        """statfs(2), df(1): the size of the filesystem and its free space."""
        status = self._overlay.statfs()
        return {field: getattr(status, field) for field in dir(status) if field.startswith("f_")}

    # --- from paths to nodes -----------------------------------------------------------------------

    def _node(self, path: str) -> Node:
        """Return the node at a path, which is absolute and starts at the mount point."""
        name = path.encode(ENCODING)
        node = self._hidden.get(os.path.basename(name)) or self._overlay.walk(name)
        self._recent.append(node)
        return node

    def _known(self, path: str | None, fi: Any) -> Node:
        """Return the node of the open file `fi`, or the node at the path if there is no open file."""
        return self._files[fi.fh].node if fi or path is None else self._node(path)

    def _place(self, path: str) -> tuple[DirNode, bytes]:
        """Return the directory of a path, and the path's last name, which need not exist."""
        above, name = os.path.split(path.encode(ENCODING))
        parent = self._overlay.walk(above)
        if not isinstance(parent, DirNode):
            raise failure(errno.ENOTDIR)
        return parent, name

    def _caller(self, call: str) -> Caller:
        """Return the process behind the request that this thread is answering.

        The umask is 0, because the kernel has already applied the process's own umask to the mode.
        """
        uid, gid, pid = fuse.fuse_get_context()
        return Caller(uid, gid, pid, 0, call)

    # --- looking -----------------------------------------------------------------------------------

    def getattr(self, path: str | None, fi: Any = None) -> dict[str, int]:
        """stat(2), and the lookup of every name on the way to a file: whether it exists, and its attributes.

        The kernel also remembers ENOENT for a name, for as long as it trusts names at all.
        """
        node = self._known(path, fi)
        return _stat(self._overlay.attrs(node))

    def readlink(self, path: str) -> str:
        """readlink(2), and following a symbolic link. The kernel itself continues from the target."""
        return self._overlay.readlink(self._node(path)).decode(ENCODING)

    def opendir(self, path: str) -> int:
        """opendir(3). The kernel sends the returned number with each request for this directory."""
        node = self._node(path)
        if not isinstance(node, DirNode):
            raise failure(errno.ENOTDIR)
        number = next(self._serial)
        self._directories[number] = node
        return number

    def readdir(self, _path: str | None, number: int) -> list[tuple[str, dict[str, int], int]]:
        """getdents(2): all names, each with its inode number and type.

        The offset 0 means "you number them": libfuse keeps the whole list for this opendir and
        passes it to the kernel in portions. It calls this again only after rewinddir(3).
        """
        node = self._directories[number]
        listed = [(".", node.ino, stat.S_IFDIR), ("..", (node.parent or node).ino, stat.S_IFDIR)]
        listed += [(entry.name.decode(ENCODING), entry.ino, entry.kind) for entry in self._overlay.entries(node)]
        return [(name, {"st_ino": ino, "st_mode": kind}, 0) for name, ino, kind in listed]

    def releasedir(self, _path: str | None, number: int) -> None:
        """closedir(3)."""
        del self._directories[number]

    # --- making and removing names -----------------------------------------------------------------

    def mkdir(self, path: str, mode: int) -> None:
        """mkdir(2)."""
        self._overlay.mkdir(*self._place(path), mode, self._caller("mkdir"))

    def mknod(self, path: str, mode: int, rdev: int) -> None:
        """mknod(2): fifos, sockets and devices. (Regular files come to `create`.)"""
        self._overlay.mknod(*self._place(path), mode, rdev, self._caller("mknod"))

    def symlink(self, path: str, target: str) -> None:
        """symlink(2); a target can be any text."""
        self._overlay.symlink(*self._place(path), target.encode(ENCODING), self._caller("symlink"))

    def link(self, path: str, existing: str) -> None:
        """link(2): `path` becomes another name of an existing file."""
        self._overlay.link(self._node(existing), *self._place(path), self._caller("link"))

    def unlink(self, path: str) -> None:
        """unlink(2)."""
        if self._hidden.pop(os.path.basename(path.encode(ENCODING)), None) is None:
            self._overlay.unlink(*self._place(path), self._caller("unlink"))

    def rmdir(self, path: str) -> None:
        """rmdir(2)."""
        self._overlay.rmdir(*self._place(path), self._caller("rmdir"))

    def rename(self, old: str, new: str) -> None:
        """rename(2), and unlink(2) of an open file or rename(2) over one, which the new name tells apart.

        A removed file lives on while somebody has it open, but libfuse needs a path for it, so it asks
        to rename it to `.fuse_hidden...` first. The engine does not need that: the file is removed, and
        only this front remembers which node libfuse means by that name.
        """
        parent, name = self._place(new)
        if _HIDDEN.fullmatch(name):
            node = self._node(old)
            if isinstance(node, FileNode) and (node.handles or node in list(self._closing.values())):
                self._overlay.unlink(*self._place(old), self._caller("unlink"))
                self._hidden[name] = node
                return
        self._overlay.rename(*self._place(old), parent, name, 0, self._caller("rename"))

    # --- changing what is there --------------------------------------------------------------------

    def _change(self, path: str, change: AttrChange, call: str) -> None:
        self._overlay.set_attrs(self._node(path), change, self._caller(call))

    def chmod(self, path: str, mode: int) -> None:
        """chmod(2). The kernel also sends it when an ordinary user writes to a file with set-id bits."""
        self._change(path, AttrChange(mode=stat.S_IMODE(mode)), "chmod")

    def chown(self, path: str, uid: int, gid: int) -> None:
        """chown(2); -1 leaves the owner or group as it is."""
        owner, group = None if uid == -1 else uid, None if gid == -1 else gid
        self._change(path, AttrChange(uid=owner, gid=group), "chown")

    def utimens(self, path: str, times: tuple[int, int] | None) -> None:
        """utimensat(2): access and modification time, in nanoseconds since the epoch."""
        atime, mtime = times or (_UTIME_NOW, _UTIME_NOW)
        touches = atime == mtime == _UTIME_NOW
        change = AttrChange(atime_ns=_time(atime), mtime_ns=_time(mtime), only_touches=touches)
        self._change(path, change, "utimensat")

    def truncate(self, path: str | None, length: int, fi: Any = None) -> None:
        """truncate(2) by path, and ftruncate(2) by handle."""
        node = self._known(path, fi)
        self._overlay.set_attrs(node, AttrChange(size=length, by_path=fi is None), self._caller("truncate"))

    # --- extended attributes -----------------------------------------------------------------------

    def listxattr(self, path: str) -> list[str]:
        """listxattr(2)."""
        names = self._overlay.xattrs(self._node(path), self._caller("listxattr"))
        return [os.fsencode(name).decode(ENCODING) for name in names]

    def getxattr(self, path: str, name: str) -> bytes:
        """getxattr(2). Before each write(2) the kernel also asks for `security.capability`, so that it can drop it."""
        return self._overlay.xattr(self._node(path), _xattr_name(name))

    def setxattr(self, path: str, name: str, value: bytes, flags: int) -> None:
        """setxattr(2)."""
        self._overlay.set_xattr(self._node(path), _xattr_name(name), value, flags, self._caller("setxattr"))

    def removexattr(self, path: str, name: str) -> None:
        """removexattr(2)."""
        self._overlay.remove_xattr(self._node(path), _xattr_name(name), self._caller("removexattr"))

    # --- file data ---------------------------------------------------------------------------------

    def _remember(self, fi: Any, node: Node, handle: Handle) -> None:
        """Give an open file a number. libfuse passes `fi.fh` back with each request for the file."""
        assert isinstance(node, FileNode)
        fi.fh = next(self._serial)
        self._files[fi.fh] = _OpenFile(node, handle)

    def create(self, path: str, mode: int, fi: Any) -> None:
        """open(2) with O_CREAT, for a name that does not exist."""
        parent, name = self._place(path)
        caller = self._caller("create")
        try:
            node, _, handle = self._overlay.create(parent, name, mode, fi.flags, caller)
        except FileExistsError:
            if fi.flags & os.O_EXCL:
                raise
            # Another process was quicker. This error makes the kernel look the name up again, and then it checks
            # whether the caller may open that file.
            raise failure(errno.ESTALE) from None
        self._remember(fi, node, handle)

    def open(self, path: str, fi: Any) -> None:
        """open(2) of an existing file. Opening a lower file for writing copies it up."""
        node, caller = self._node(path), self._caller("open")
        # The kernel itself clears the set-id bits before a write(2) or truncate(2), but leaves O_TRUNC to us.
        kill = bool(fi.flags & os.O_TRUNC and caller.uid)
        self._remember(fi, node, self._overlay.open(node, fi.flags | self._always, caller, kill_privileges=kill))

    def read(self, _path: str | None, size: int, offset: int, fi: Any) -> bytes:
        """read(2) of data that the kernel has not cached. The answer is short only at the end of the file."""
        buffer = memoryview(bytearray(size))
        return bytes(buffer[: self._files[fi.fh].handle.read_into(buffer, offset)])

    def write(self, _path: str | None, data: bytes, offset: int, fi: Any) -> int:
        """write(2). The kernel has already turned O_APPEND into an offset."""
        node, handle = self._files[fi.fh]
        return self._overlay.files.write(node, handle, data, offset, self._caller("write"))

    def fsync(self, _path: str | None, datasync: int, fi: Any) -> None:
        """fsync(2), fdatasync(2): return when the file is on the disk."""
        node, handle = self._files[fi.fh]
        self._overlay.files.sync_file(node, handle, bool(datasync))

    def fsyncdir(self, _path: str | None, _datasync: int, number: int) -> None:
        """fsync(2) of a directory: return when the names created and removed in it are on the disk."""
        self._overlay.files.sync_directory(self._directories[number])

    def release(self, _path: str | None, fi: Any) -> None:
        """Release an open file whose last descriptor was closed, by the last process that shared it."""
        opened = self._files.pop(fi.fh)
        self._closing[threading.get_ident()] = opened.node
        self._overlay.files.release(opened.node, opened.handle)


def _stat(attrs: Attrs) -> dict[str, int]:
    """Return the engine's attributes under the names of stat(2), as fusepy expects them."""
    return {
        "st_ino": attrs.ino,
        "st_mode": attrs.mode,
        "st_nlink": attrs.nlink,
        "st_uid": attrs.uid,
        "st_gid": attrs.gid,
        "st_rdev": attrs.rdev,
        "st_size": attrs.size,
        "st_blocks": attrs.blocks,
        "st_blksize": attrs.blksize,
        "st_atime": attrs.atime_ns,
        "st_mtime": attrs.mtime_ns,
        "st_ctime": attrs.ctime_ns,
    }


def _time(nanoseconds: int) -> int | None:
    """Return one time of utimens(); None leaves it as it is.

    fusepy has added the seconds, which are 0 for a special value, to the nanoseconds. So two instants in the
    second second of 1970 cannot be set.
    """
    if nanoseconds == _UTIME_OMIT:
        return None
    return now_ns() if nanoseconds == _UTIME_NOW else nanoseconds


def _xattr_name(name: str) -> str:
    """Return an attribute's name as the `os` functions and the engine expect it."""
    return os.fsdecode(name.encode(ENCODING))
