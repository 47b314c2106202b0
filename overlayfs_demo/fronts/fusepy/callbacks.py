"""What does a FUSE daemon do, call by call?

Read this file first. A FUSE filesystem is an ordinary program that answers the kernel's questions. A
process calls, say, open("/mnt/dir/file"); the kernel sees that /mnt is a FUSE mount, writes a request to
/dev/fuse and lets the process wait; the daemon reads the request, does whatever it likes, and writes the
reply. libfuse does the reading and writing, fusepy hands each request to one Python method, and the
methods of `Callbacks` below pass it on to the engine:

    process  ->  kernel (VFS, fuse.ko)  ->  /dev/fuse  ->  libfuse 2  ->  fusepy  ->  Callbacks  ->  Overlay

libfuse names every file by its path, which is easy to read and to write. The engine, like the kernel,
thinks in nodes (inodes), so a callback walks the path to its node and calls one verb. What a path cannot
say (`kernel_front` talks to /dev/fuse itself, and can) is given up here:

- rename(2) has no flags, so neither exchange nor "do not replace": the kernel answers EINVAL.
- No O_TMPFILE, no fallocate(2) (both EOPNOTSUPP), no SEEK_HOLE (a file counts as all data), and
  copy_file_range(2) copies through the kernel's cache, not within the layers' filesystem.
- No inode flags (lsattr and chattr: ENOTTY), though those that are there are obeyed, and no time of birth.
- Two names of one file are two files to the kernel. It must therefore ask for attributes every time, and
  drop a file's cached pages at each open; while both names are open, a reader through one may still see
  what was in the file before it was overwritten through the other.
- POSIX ACLs are kept and shown, but the kernel checks permissions by the mode alone, and applies the
  caller's umask even where a directory's default ACL should take its place.
- rename(2) over a file that somebody has open is two steps in the upper, see `Callbacks.rename`.
- A directory that is removed while open, or a file that O_PATH alone holds, has no attributes any more; nor
  has an open file when it is removed and then its directory is.

Needed are libfuse 2 (package libfuse2, or libfuse2t64) and, to mount as an ordinary user, a program called
`fusermount` (package fuse3 has it, as a link to fusermount3).
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
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import fuse

from overlayfs_demo.errors import MountError
from overlayfs_demo.fronts.front import NO_READING_NOTED, View, now_ns
from overlayfs_demo.fronts.fusepy.mount_options import ENCODING, default_signals, mount_options
from overlayfs_demo.linux import syscalls
from overlayfs_demo.overlay.handle import Handle
from overlayfs_demo.overlay.node import DirNode, FileNode, Node
from overlayfs_demo.overlay.types import Attrs, Caller, Change

_log = logging.getLogger(__name__)

# How utimensat(2) says "now" and "leave it", in the place of the nanoseconds.
_UTIME_NOW, _UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2

# How many nodes are held that nobody has open.
_RECENT = 1024

# What libfuse renames a file to that is removed while somebody has it open.
_HIDDEN = re.compile(rb"\.fuse_hidden[0-9a-f]{16}")


class FusepyFront:
    """The portable front, on fusepy and libfuse 2 (`--front fusepy`)."""

    def serve(self, view: View, ready: Callable[[], None]) -> None:
        """See `Front.serve`. SIGTERM, SIGINT and SIGHUP unmount and end it, also while files are open."""
        if os.geteuid() != 0 and shutil.which("fusermount") is None:
            raise MountError("fusermount is not installed", "install the package fuse3, or mount as root")
        callbacks = Callbacks(view, ready)
        try:
            with default_signals():
                # Mounts, answers requests on several threads, and returns when it is unmounted. `raw_fi`
                # hands the callbacks libfuse's record of an open file (fuse_file_info) as it is.
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
                what = f"{os.fsdecode(view.mountpoint)}: libfuse could not mount it"
                raise MountError(what, "its message on standard error says why") from error
            raise
        finally:
            callbacks.close()
        if callbacks.failure is not None:
            raise callbacks.failure


class _OpenFile(NamedTuple):
    node: FileNode
    handle: Handle


class Callbacks:
    """One method for each request of the kernel; libfuse calls them from several threads.

    A method returns its answer, or raises OSError, whose errno the calling process then finds in its own.
    A request without a method here gets ENOSYS, "not implemented", and the kernel does without: after the
    first ENOSYS to flush() (close(2) of a file), for one, it never asks again.
    """

    # fusepy: times are integers, in nanoseconds.
    use_ns = True
    # libfuse: for an open file do not bother to find out the path, its handle is enough.
    flag_nullpath_ok = 1
    flag_nopath = 1
    # libfuse: utimens() understands the two special values. Without it, setting one of two times does nothing.
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
        # By thread, the file whose release() it answered last: libfuse counts it as open until that thread
        # comes with its next request, and hides it from an unlink() in between.
        self._closing: dict[int, Node] = {}
        self._directories: dict[int, DirNode] = {}
        # The engine keeps a node only as long as somebody holds it. Paths that come again and again, such
        # as the directories on the way to a file, shall not be made anew each time.
        self._recent: deque[Node] = deque(maxlen=_RECENT)
        # Removed files that are still open, by the name that libfuse knows them by. They stay as long as
        # `_files` holds them.
        self._hidden: WeakValueDictionary[bytes, Node] = WeakValueDictionary()

    def __call__(self, name: str, *arguments: Any) -> Any:
        """fusepy's only way in: every request is a call of this, with the method's name."""
        self._closing.pop(threading.get_ident(), None)
        self._asked[name] += 1
        try:
            return getattr(self, name)(*arguments)
        except OSError as error:
            if error.errno:
                raise
            failure: Exception = error
        except Exception as error:  # noqa: BLE001 - whatever went wrong, the caller must get an answer
            failure = error
        _log.error("FUSE callback %s failed", name, exc_info=failure)
        raise OSError(errno.EIO, os.strerror(errno.EIO)) from failure

    # --- the mount itself --------------------------------------------------------------------------

    def init(self, _root: str) -> None:
        """The first request on a new mount. Others already wait, and are answered after this one."""
        try:
            syscalls.reserve_descriptors(1024)
            self._ready()
            self.answered = True
        except Exception as error:  # noqa: BLE001 - there is no caller to tell; `serve` raises it
            self.failure = error
            fuse.fuse_exit()

    def close(self) -> None:
        """Not a request: close what processes had open when the mount was taken away from them."""
        while self._files:
            _, opened = self._files.popitem()
            self._overlay.release(opened.node, opened.handle)

    def statfs(self, _path: str) -> dict[str, int]:
        """statfs(2), df(1): how much room is there?"""
        status = self._overlay.statfs()
        return {field: getattr(status, field) for field in dir(status) if field.startswith("f_")}

    # --- from paths to nodes -----------------------------------------------------------------------

    def _node(self, path: str) -> Node:
        """The node at a path, which is absolute and starts at the mount point."""
        name = path.encode(ENCODING)
        node = self._hidden.get(os.path.basename(name)) or self._overlay.walk(name)
        self._recent.append(node)
        return node

    def _known(self, path: str | None, fi: Any) -> Node:
        """The node of an open file, if `fi` is one, else the node at the path."""
        return self._files[fi.fh].node if fi or path is None else self._node(path)

    def _place(self, path: str) -> tuple[DirNode, bytes]:
        """The directory of a path, and the last name in it, which need not exist."""
        above, name = os.path.split(path.encode(ENCODING))
        parent = self._overlay.walk(above)
        if not isinstance(parent, DirNode):
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return parent, name

    def _caller(self, call: str) -> Caller:
        """The process behind the request that this thread answers.

        The umask is 0, for the kernel has applied the process's own to the mode already.
        """
        uid, gid, pid = fuse.fuse_get_context()
        return Caller(uid, gid, pid, 0, call)

    # --- looking -----------------------------------------------------------------------------------

    def getattr(self, path: str | None, fi: Any = None) -> dict[str, int]:
        """stat(2), and the lookup of every single name on the way to a file: is it there, and what is it?

        ENOENT for a name is remembered by the kernel as well, for as long as it trusts names at all.
        """
        node = self._known(path, fi)
        return _stat(self._overlay.attrs(node))

    def readlink(self, path: str) -> str:
        """readlink(2), and following a symbolic link. The kernel itself goes on from the target."""
        return self._overlay.readlink(self._node(path)).decode(ENCODING)

    def opendir(self, path: str) -> int:
        """opendir(3). The number that is returned comes back with each request for this directory."""
        node = self._node(path)
        if not isinstance(node, DirNode):
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        number = next(self._serial)
        self._directories[number] = node
        return number

    def readdir(self, _path: str | None, number: int) -> list[tuple[str, dict[str, int], int]]:
        """getdents(2): all names, each with its inode number and type.

        An offset of 0 with each says "you number them": libfuse keeps the whole list for this opendir and
        hands it to the kernel in portions, and comes here again only after rewinddir(3).
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
        """symlink(2); a target is any text at all."""
        self._overlay.symlink(*self._place(path), target.encode(ENCODING), self._caller("symlink"))

    def link(self, path: str, existing: str) -> None:
        """link(2): `path` becomes one more name of an existing file."""
        self._overlay.link(self._node(existing), *self._place(path), self._caller("link"))

    def unlink(self, path: str) -> None:
        """unlink(2)."""
        if self._hidden.pop(os.path.basename(path.encode(ENCODING)), None) is None:
            self._overlay.unlink(*self._place(path), self._caller("unlink"))

    def rmdir(self, path: str) -> None:
        """rmdir(2)."""
        self._overlay.rmdir(*self._place(path), self._caller("rmdir"))

    def rename(self, old: str, new: str) -> None:
        """rename(2). Also unlink(2) of an open file, or rename(2) over one, which libfuse tells apart by the name.

        A removed file lives on while somebody has it open, but libfuse must have a path for it, so it asks
        to rename it to `.fuse_hidden...` first. The engine needs no such crutch: the file is removed, and
        only we remember which node libfuse means by that name.
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

    def _change(self, path: str, change: Change, call: str) -> None:
        self._overlay.set_attrs(self._node(path), change, self._caller(call))

    def chmod(self, path: str, mode: int) -> None:
        """chmod(2). Also sent by the kernel when an ordinary user writes to a file with set-id bits."""
        self._change(path, Change(mode=stat.S_IMODE(mode)), "chmod")

    def chown(self, path: str, uid: int, gid: int) -> None:
        """chown(2); -1 leaves one as it is."""
        owner, group = None if uid == -1 else uid, None if gid == -1 else gid
        self._change(path, Change(uid=owner, gid=group), "chown")

    def utimens(self, path: str, times: tuple[int, int] | None) -> None:
        """utimensat(2): access and modification time, in nanoseconds since the epoch."""
        atime, mtime = times or (_UTIME_NOW, _UTIME_NOW)
        touches = atime == mtime == _UTIME_NOW
        change = Change(atime_ns=_time(atime), mtime_ns=_time(mtime), only_touches=touches)
        self._change(path, change, "utimensat")

    def truncate(self, path: str | None, length: int, fi: Any = None) -> None:
        """truncate(2), by path; ftruncate(2), by handle."""
        node = self._known(path, fi)
        self._overlay.set_attrs(node, Change(size=length, by_path=fi is None), self._caller("truncate"))

    # --- extended attributes -----------------------------------------------------------------------

    def listxattr(self, path: str) -> list[str]:
        """listxattr(2)."""
        names = self._overlay.xattrs(self._node(path), self._caller("listxattr"))
        return [os.fsencode(name).decode(ENCODING) for name in names]

    def getxattr(self, path: str, name: str) -> bytes:
        """getxattr(2). Before each write(2) the kernel asks for `security.capability`, too, to drop it."""
        return self._overlay.xattr(self._node(path), _xattr_name(name))

    def setxattr(self, path: str, name: str, value: bytes, flags: int) -> None:
        """setxattr(2)."""
        self._overlay.set_xattr(self._node(path), _xattr_name(name), value, flags, self._caller("setxattr"))

    def removexattr(self, path: str, name: str) -> None:
        """removexattr(2)."""
        self._overlay.remove_xattr(self._node(path), _xattr_name(name), self._caller("removexattr"))

    # --- file data ---------------------------------------------------------------------------------

    def _remember(self, fi: Any, node: Node, handle: Handle) -> None:
        """Number an open file. libfuse hands `fi.fh` back with each request for it."""
        assert isinstance(node, FileNode)
        fi.fh = next(self._serial)
        self._files[fi.fh] = _OpenFile(node, handle)

    def create(self, path: str, mode: int, fi: Any) -> None:
        """open(2) with O_CREAT, for a name that is not there."""
        parent, name = self._place(path)
        caller = self._caller("create")
        try:
            node, _, handle = self._overlay.create(parent, name, mode, fi.flags, caller)
        except FileExistsError:
            if fi.flags & os.O_EXCL:
                raise
            # Somebody else was quicker. Whether the caller may open what is there, the kernel finds out when it looks
            # the name up again, which this error makes it do.
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE)) from None
        self._remember(fi, node, handle)

    def open(self, path: str, fi: Any) -> None:
        """open(2) of a file that is there. To open a lower file for writing is what copies it up."""
        node, caller = self._node(path), self._caller("open")
        # Before a write(2) or truncate(2) the kernel itself takes the set-id bits away; O_TRUNC it leaves to us.
        kill = bool(fi.flags & os.O_TRUNC and caller.uid)
        self._remember(fi, node, self._overlay.open(node, fi.flags | self._always, caller, kill_privileges=kill))

    def read(self, _path: str | None, size: int, offset: int, fi: Any) -> bytes:
        """read(2), as far as the kernel has not cached the data. Short only at the end of the file."""
        buffer = memoryview(bytearray(size))
        return bytes(buffer[: self._files[fi.fh].handle.read_into(buffer, offset)])

    def write(self, _path: str | None, data: bytes, offset: int, fi: Any) -> int:
        """write(2). The kernel has turned O_APPEND into an offset."""
        node, handle = self._files[fi.fh]
        return self._overlay.write(node, handle, data, offset, self._caller("write"))

    def fsync(self, _path: str | None, datasync: int, fi: Any) -> None:
        """fsync(2), fdatasync(2): return when it is on the disk."""
        self._overlay.sync_file(self._files[fi.fh].handle, bool(datasync))

    def fsyncdir(self, _path: str | None, _datasync: int, number: int) -> None:
        """fsync(2) of a directory: names made and removed in it are on the disk."""
        self._overlay.sync_directory(self._directories[number])

    def release(self, _path: str | None, fi: Any) -> None:
        """The last descriptor of an open file was closed, by the last process that shared it."""
        opened = self._files.pop(fi.fh)
        self._closing[threading.get_ident()] = opened.node
        self._overlay.release(opened.node, opened.handle)


def _stat(attrs: Attrs) -> dict[str, int]:
    """The engine's attributes by the names of stat(2), as fusepy wants them."""
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
    """One time of utimens(). fusepy has added seconds, 0 with a special value, and nanoseconds together.

    So two instants in the second second of 1970 cannot be set.
    """
    if nanoseconds == _UTIME_OMIT:
        return None
    return now_ns() if nanoseconds == _UTIME_NOW else nanoseconds


def _xattr_name(name: str) -> str:
    """An attribute's name as the `os` functions and the engine want it."""
    return os.fsdecode(name.encode(ENCODING))
