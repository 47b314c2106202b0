"""The operations of an overlay, in terms of nodes and handles.

`Overlay` is the whole engine as a front sees it. It knows the paths of layers and objects in memory, but
no FUSE, no images and no command line. Every failure is an OSError with the errno that the kernel's
overlayfs would return. All methods may be called from several threads.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Iterable
from dataclasses import replace

from overlayfs_demo.events import Action, Events
from overlayfs_demo.linux import proc, syscalls
from overlayfs_demo.overlay import acl, impure, inode_flags, listing, lower_fingerprint, private_mount, provenance
from overlayfs_demo.overlay.budget import Budget
from overlayfs_demo.overlay.copyup import CopyUp, Cut, Hooks
from overlayfs_demo.overlay.copyup_limits import Limits
from overlayfs_demo.overlay.dir_ops import Names, failure
from overlayfs_demo.overlay.external_changes import Behind
from overlayfs_demo.overlay.forecast import Forecast
from overlayfs_demo.overlay.handle import Handle
from overlayfs_demo.overlay.index import Index
from overlayfs_demo.overlay.layer import Descriptor, DescriptorCache, Layer
from overlayfs_demo.overlay.layer_snapshots import TimeMachine
from overlayfs_demo.overlay.node import DirNode, FileNode, Node
from overlayfs_demo.overlay.origin import Origins
from overlayfs_demo.overlay.pairing import pairing_of
from overlayfs_demo.overlay.pinned import Pinned
from overlayfs_demo.overlay.redirect import Redirects
from overlayfs_demo.overlay.rename import Place, Rename
from overlayfs_demo.overlay.stack import Stack
from overlayfs_demo.overlay.tree import Completed, Tree
from overlayfs_demo.overlay.types import Attrs, Caller, Change, Dirent
from overlayfs_demo.overlay.upper import Upper
from overlayfs_demo.overlay.whiteout import TRUSTED, USER, VIRTUAL

# The flags of open(2) that concern the real file: the kernel handles the others before the engine is called.
_OPEN_FLAGS = os.O_ACCMODE | os.O_TRUNC | os.O_SYNC | os.O_DSYNC | os.O_NOATIME


class Overlay:
    """The merged view of a `Stack`. Owns descriptors of all layers until `close`.

    `owners_are_real`: the owner and mode that the view shows decide who may access a file.
    """

    owners_are_real = True

    def __init__(self, stack: Stack, events: Events | None = None) -> None:
        """Open the layers. Raises OSError, with the layer at fault as its `filename`."""
        xattrs = USER if stack.user_xattrs else TRUSTED
        pairing = pairing_of(stack)
        if pairing is not None:
            pairing.verify()
        self.events = events or Events()
        self._budget = Budget.of_process()
        self._cache = DescriptorCache(self._budget.directories)
        upper, index = None, None
        metacopies = stack.metacopy or bool(stack.data_only)
        self._work: Descriptor | None = None
        self._layers = [
            # In an upper, names that begin with `.wh.` are ordinary ones.
            Layer(
                path,
                private_mount.open_root(path, private_mount.LOWER),
                number,
                label,
                xattrs,
                self._cache,
                image_dialect=stack.image_whiteouts and not (stack.rehearsal and number == 1),
                last=number == len(stack.lowers) + len(stack.data_only),
                metacopies=metacopies,
            )
            for number, (path, label) in enumerate(zip(stack.lowers + stack.data_only, stack.labels(), strict=True), 1)
        ]
        lowers, data_layers = self._layers[: len(stack.lowers)], self._layers[len(stack.lowers) :]
        origins = Origins(lowers)
        if stack.upper is not None and stack.work is not None:
            attributes = private_mount.LOWER if stack.read_only else private_mount.upper_attributes(stack.flags)
            root, work_fd = private_mount.open_upper(stack.upper, stack.work, attributes)
            layer = Layer(
                stack.upper,
                root,
                0,
                "upper",
                xattrs,
                self._cache,
                image_dialect=False,
                last=False,
                metacopies=metacopies,
            )
            self._work = Descriptor(work_fd)  # Stays open because the path below leads through it.
            work = proc.fd_path(work_fd)
            if pairing is not None:
                pairing = replace(pairing, upper=proc.fd_path(root.fd), work=work)
                index = Index(layer, pairing, origins, stack.read_only)
            if stack.read_only:
                lowers.insert(0, layer)
                self._layers.append(layer)
            else:
                upper = Upper(layer, work, xattrs, self.events, stack.volatile)
        self._tree = Tree(lowers, data_layers, upper, xattrs, origins, index)
        self._lock = self._tree.lock
        self.behind = Behind(self._tree)
        self.hooks = Hooks()
        limits = Limits(stack.copyup_max, stack.copyup_warn)
        self._copy_up = CopyUp(self._tree, stack.metacopy, self.hooks, limits, self._budget, stack.rehearsal)
        self._redirects = Redirects(self._tree, stack.metacopy)
        self._names = Names(self._tree, self._copy_up, self._redirects, self._budget)
        self._rename = Rename(self._tree, self._copy_up, self._names, self._redirects)
        self._past: TimeMachine | None = None
        if stack.time_machine:
            layers = [*([upper.layer] if upper else []), *lowers]
            self._past = TimeMachine(self._tree, layers, data_layers)

    def note_stack(self) -> tuple[str, str]:
        """Record the lowers in the upper. Return the names of the previous and the present lowers if the upper was
        last used with others, else two empty strings."""
        if self._tree.upper is None:
            return "", ""
        upper, lowers = self._tree.upper.layer, self._layers
        before = lower_fingerprint.last_stack(upper, lowers, self._tree.xattrs)
        lower_fingerprint.remember(upper, lowers, self._tree.xattrs)
        return (before, lower_fingerprint.names(lowers)) if before else ("", "")

    def forecast(self) -> Forecast:
        """Start to record what the rehearsed mount would do, see `Stack.rehearsal`."""
        forecast = Forecast(self._tree)
        self.events.attach(forecast.take)
        return forecast

    def close(self) -> None:
        """Release all layers. No node may be used afterwards; open handles still belong to their owners."""
        self.behind.close()
        self._cache.close()
        if self._tree.upper is not None:
            self._tree.upper.close()
            self._tree.upper.layer.close()
        for layer in self._layers:
            layer.close()
        self._work = None

    # --- find --------------------------------------------------------------------------------------

    @property
    def root(self) -> DirNode:
        """The view's root directory."""
        return self._tree.root

    def _tree_of(self, node: Node) -> Tree:
        """Return the tree that a node belongs to. Call with the lock held."""
        return self._tree if self._past is None else self._past.tree_of(node)

    @property
    def has_past(self) -> bool:
        """Whether the view has a time machine."""
        return self._past is not None

    def is_past(self, node: Node) -> bool:
        """Whether the node belongs to the time machine. If so, nobody is told when it is replaced or disappears."""
        return self._past is not None and self._past.tree_of(node) is not self._tree

    def lookup(self, parent: DirNode, name: bytes) -> tuple[Node, Attrs]:
        """Return the node called `name` (the same object for the same file) and its attributes. Never copies up."""
        with self._lock:
            return self._tree_of(parent).find(parent, name)

    def lookup_listed(
        self, parent: DirNode, snapshot: listing.Snapshot, names: Iterable[listing.Listed]
    ) -> list[Completed]:
        """Look up some names of a `snapshot`, each as `lookup` does; None for a name that has disappeared since.

        A name that cannot be looked up, see `faults`, yields the entry it was listed with. While the snapshot is
        current, only the layer that has the name is asked.
        """
        with self._lock:
            current = snapshot.is_current(parent.sources)
            tree = self._tree_of(parent)
            return [tree.find_listed(parent, listed, current) for listed in names]

    def walk(self, path: bytes) -> Node:
        """Return the node at an absolute path of the view. Does not follow symbolic links. Raises ENOENT, ENOTDIR."""
        node: Node = self._tree.root
        with self._lock:
            for name in path.split(b"/"):
                if name:
                    node = self._tree_of(node).find(_directory(node), name)[0]
        return node

    # --- ask ---------------------------------------------------------------------------------------

    def attrs(self, node: Node) -> Attrs:
        """Return the node's attributes as stat(2) shows them, even after its name was removed."""
        with self._lock:
            return node.attrs_from(node.stat())

    def birth_time(self, node: Node) -> int | None:
        """Return the creation time of the topmost real file, in nanoseconds since the epoch; None if unknown."""
        with self._lock:
            pinned = node.pin()
            return syscalls.statx(pinned.place, follow=True).birth_ns

    def names(self, node: DirNode, at_most: int = sys.maxsize, *, quietly: bool = False) -> listing.Snapshot:
        """Return a snapshot of a directory's names, for `dirent` or `lookup_listed` to complete.

        `quietly` leaves the directory's access time to `note_reading`. Raises TooManyNamesError as soon as more than
        `at_most` names are found.
        """
        with self._lock:
            if node.gone:
                return listing.Snapshot({}, (), 0)
            snapshot = self._tree_of(node).snapshot(node, at_most, quietly=quietly)
            impure.drop_mark(node, snapshot.names, self._tree)
            return snapshot

    def note_reading(self, node: DirNode) -> None:
        """Update the access time after `names` was called quietly and its result was passed on."""
        with self._lock:
            if node.upper is not None and not node.gone:
                listing.note_reading(node.upper)

    def dirent(self, parent: DirNode, listed: listing.Listed) -> Dirent | None:
        """Return the directory entry of a name from `names`, or None if it has disappeared since."""
        with self._lock:
            return self._tree_of(parent).dirent(parent, listed)

    def entries(self, node: DirNode) -> list[Dirent]:
        """Return all entries of a directory, without `.` and `..`."""
        found = (self.dirent(node, listed) for listed in self.names(node).names.values())
        return [entry for entry in found if entry]

    def readlink(self, node: Node) -> bytes:
        """Return a symbolic link's target. EINVAL for anything else."""
        with self._lock:
            if node.kind != stat.S_IFLNK:
                raise failure(errno.EINVAL, node.name)
            return node.pin().readlink()

    def statfs(self) -> os.statvfs_result:
        """Return statvfs(3) of the filesystem that new data goes to: the upper's, else the top lower's."""
        layer = self._tree.upper.layer if self._tree.upper else self._layers[0]
        return os.fstatvfs(layer.root_fd)

    def explain(self, path: bytes) -> provenance.Explanation:
        """Explain what each layer has at an absolute path of the view (without `.` or `..`), and which one wins."""
        with self._lock:
            tree, inside = self._past.split(path) if self._past else (self._tree, path)
            return provenance.explain(tree, inside)

    def _virtual(self, node: Node) -> dict[str, str]:
        return {} if node.gone else provenance.attributes(self._tree_of(node), node, self.explain(node.path()))

    def xattrs(self, node: Node, caller: Caller) -> list[str]:
        """Return the names of the extended attributes that the view shows; the overlay's own are hidden.

        `trusted.*` names are listed for root only, see xattr(7), and virtual ones for getfattr(1) only, see
        `provenance`.
        """
        with self._lock:
            tree, names = self._tree_of(node), node.pin().xattrs()
            virtual = list(self._virtual(node)) if provenance.are_listed(node, caller) else []
        shown = (tree.xattrs.shown(name) for name in names)
        stored = [name for name in shown if name and (caller.uid == 0 or not name.startswith("trusted."))]
        return stored + virtual

    def xattr(self, node: Node, name: str) -> bytes:
        """Return an extended attribute's value. ENODATA if there is none."""
        with self._lock:
            if name.startswith(VIRTUAL):
                return provenance.value(self._virtual(node), name)
            pinned = node.pin()
            return os.getxattr(pinned.place, self._tree_of(node).xattrs.stored(name))

    # --- change names ------------------------------------------------------------------------------

    def _refuse_past(self, node: Node, name: bytes = b"") -> None:
        """Raise EROFS if the node, or the name in it, belongs to the time machine."""
        if self.is_past(node) or (node is self._tree.root and name in self._tree.beside):
            raise failure(errno.EROFS, name or node.name)

    def create(
        self, parent: DirNode, name: bytes, mode: int, flags: int, caller: Caller
    ) -> tuple[FileNode, Attrs, Handle]:
        """Create a regular file and open it: open(2) with O_CREAT|O_EXCL. Raises EEXIST."""
        self._refuse_past(parent, name)
        with self._lock:
            node, attrs, fd = self._names.create(parent, name, mode, flags & _OPEN_FLAGS, caller)
            return node, attrs, self._opened(node, Descriptor(fd), writable=bool(flags & os.O_ACCMODE))

    def tmpfile(self, parent: DirNode, mode: int, flags: int, caller: Caller) -> tuple[FileNode, Attrs, Handle]:
        """Create a regular file without a name and open it: open(2) with O_TMPFILE.

        Only `link` can name it later, and not even that if `flags` include O_EXCL. EOPNOTSUPP where the upper's
        filesystem has no such files.
        """
        self._refuse_past(parent)
        with self._lock:
            node, attrs, fd = self._names.tmpfile(parent, mode, flags & (_OPEN_FLAGS | os.O_EXCL), caller)
            return node, attrs, self._opened(node, Descriptor(fd), writable=True)

    def mkdir(self, parent: DirNode, name: bytes, mode: int, caller: Caller) -> tuple[Node, Attrs]:
        """mkdir(2)."""
        self._refuse_past(parent, name)
        with self._lock:
            return self._names.make(parent, name, stat.S_IFDIR | stat.S_IMODE(mode), caller)

    def mknod(self, parent: DirNode, name: bytes, mode: int, rdev: int, caller: Caller) -> tuple[Node, Attrs]:
        """mknod(2). EPERM for character device 0/0, as in the kernel's overlayfs: it is a whiteout."""
        self._refuse_past(parent, name)
        if stat.S_ISCHR(mode) and rdev == 0:
            raise failure(errno.EPERM, name)
        with self._lock:
            return self._names.make(parent, name, mode, caller, rdev=rdev)

    def symlink(self, parent: DirNode, name: bytes, target: bytes, caller: Caller) -> tuple[Node, Attrs]:
        """symlink(2)."""
        self._refuse_past(parent, name)
        with self._lock:
            return self._names.make(parent, name, stat.S_IFLNK | 0o777, caller, target=target)

    def link(self, node: Node, parent: DirNode, name: bytes, caller: Caller) -> Attrs:
        """link(2): give a file another name, after copying the file up. EPERM for a directory."""
        self._refuse_past(node)
        self._refuse_past(parent, name)
        if not isinstance(node, FileNode):
            raise failure(errno.EPERM, name)
        self._refuse_protected(node)
        while True:
            with self._lock:
                assert node.parent is not None
                data = self._redirects.wants_data(node, node.parent, node.name, False)
                if data is None:
                    return self._names.link(node, parent, name, caller)
            self._copy_up.node(node, caller, data=data)

    def unlink(self, parent: DirNode, name: bytes, caller: Caller) -> None:
        """unlink(2). Leaves a whiteout where a lower has the name."""
        self._refuse_past(parent, name)
        while True:
            with self._lock:
                linked = self._names.unlink(parent, name, caller)
            if linked is None:
                return
            # The copy is made without the lock, so the name must be looked up again.
            self._copy_up.linked(linked, caller)

    def rmdir(self, parent: DirNode, name: bytes, caller: Caller) -> None:
        """rmdir(2). The directory must be empty in the view."""
        self._refuse_past(parent, name)
        with self._tree.writable().swept(), self._lock:
            self._names.rmdir(parent, name, caller)

    def rename(
        self, old_parent: DirNode, old: bytes, new_parent: DirNode, new: bytes, flags: int, caller: Caller
    ) -> None:
        """renameat2(2). `flags` may be RENAME_NOREPLACE or RENAME_EXCHANGE; EINVAL for others."""
        exchange = bool(flags & syscalls.RENAME_EXCHANGE)
        if flags not in (0, syscalls.RENAME_NOREPLACE, syscalls.RENAME_EXCHANGE):
            raise failure(errno.EINVAL, old)
        self._refuse_past(old_parent, old)
        self._refuse_past(new_parent, new)
        upper = self._tree.writable()
        while True:
            with upper.swept(), self._lock:
                source = Place(old_parent, old, self._tree.child(old_parent, old))
                target = Place(new_parent, new, self._tree.child(new_parent, new))
                if not self._rename.check(source, target, flags):
                    return
                needed = self._rename.to_copy(source, target, exchange)
                if needed is None:
                    move = self._rename.exchange if exchange else self._rename.move
                    move(source, target, caller)
                    return
            # The copy is made without the lock, so everything must be checked again.
            node, data = needed
            self._copy_up.node(node, caller, data=data)

    # --- change a node -----------------------------------------------------------------------------

    def set_attrs(self, node: Node, change: Change, caller: Caller) -> Attrs:
        """chmod(2), chown(2), utimensat(2) and truncate(2), in an order in which none undoes another.

        The size comes first because it sets the modification time, the owner before the mode because chown(2) clears
        set-id bits, and the times last.
        """
        self._refuse_past(node)
        if change != Change(kill_privileges=True):  # That alone is part of a write, which `open` has checked.
            self._refuse_protected(node, appends=change.only_touches)
        if change.size is not None:
            fd = self._copy_up.truncated(_file(node), caller, Cut(change.size, os.O_WRONLY, change.by_path))
            os.close(fd)
        upper = self._copy_up.node(node, caller, data=False)
        with self._lock:
            pinned, path = node.pin(), self._event_path(node)
            if change.uid is not None or change.gid is not None:
                uid = -1 if change.uid is None else change.uid
                gid = -1 if change.gid is None else change.gid
                upper.chown(pinned, path, uid, gid, caller)
            if change.mode is not None:
                upper.chmod(pinned, path, stat.S_IMODE(change.mode), caller)
            elif change.kill_privileges:
                self._kill_privileges(node, pinned, caller)
            if change.atime_ns is not None or change.mtime_ns is not None:
                status = pinned.stat()
                atime = status.st_atime_ns if change.atime_ns is None else change.atime_ns
                mtime = status.st_mtime_ns if change.mtime_ns is None else change.mtime_ns
                upper.utimens(pinned, path, atime, mtime, caller)
            return node.attrs_from(pinned.stat())

    def _kill_privileges(self, node: Node, pinned: Pinned, caller: Caller) -> None:
        """Clear the set-id bits of a file in the upper, as the VFS does for a caller without CAP_FSETID.

        The VFS itself drops `security.capability` when the real file is written or truncated. A front has told the
        kernel that the set-id bits are cleared here, so the kernel keeps the bits it has cached and would run the
        program that was just written with them: it must hear of the change before the caller does.
        """
        status = pinned.stat()
        mode = stat.S_IMODE(status.st_mode)
        dropped = mode & ~stat.S_ISUID
        # Without the group's execute bit, S_ISGID once meant mandatory locking, so members of the group keep it
        # (fs/attr.c, setattr_should_drop_sgid).
        if mode & stat.S_ISGID and (mode & stat.S_IXGRP or not self._is_member(caller, status.st_gid)):
            dropped &= ~stat.S_ISGID
        if dropped != mode:
            self._tree.writable().chmod(pinned, self._event_path(node), dropped, caller)
            self.hooks.changed(node)

    def _drop_privileges(self, node: FileNode, handle: Handle, caller: Caller) -> None:
        """Clear the set-id bits of a file that the caller changes through a handle."""
        with self._lock:
            self._kill_privileges(node, Pinned.opened(handle.opened), caller)

    def _is_member(self, caller: Caller, gid: int) -> bool:
        """Whether the caller is in the group, or privileged: the VFS checks CAP_FSETID, we check the user id."""
        return caller.uid == 0 or gid == caller.gid or gid in proc.supplementary_groups(caller.pid)

    def _event_path(self, node: Node) -> bytes:
        return node.path() if self.events.listening else b""

    def set_xattr(self, node: Node, name: str, value: bytes, flags: int, caller: Caller) -> None:
        """setxattr(2). `flags` may be XATTR_CREATE or XATTR_REPLACE."""
        self._refuse_past(node)
        self._refuse_protected(node)
        stored = self._tree.xattrs.stored(name)
        upper = self._copy_up.node(node, caller, data=False)
        with self._lock:
            upper.set_xattr(node.pin(), self._event_path(node), stored, value, flags, caller)

    def remove_xattr(self, node: Node, name: str, caller: Caller) -> None:
        """removexattr(2). ENODATA if there is none; then nothing is copied up.

        A missing access control list of a file in the upper is left to the real filesystem, which knows its own answer.
        """
        self._refuse_past(node)
        self._tree.writable()
        stored = self._tree.xattrs.stored(name)
        self._refuse_protected(node)
        if not (node.in_upper and name in (acl.ACCESS, acl.DEFAULT)):
            self.xattr(node, name)
        upper = self._copy_up.node(node, caller, data=False)
        with self._lock:
            upper.remove_xattr(node.pin(), self._event_path(node), stored, caller)

    def _refuse_protected(self, node: Node, *, appends: bool = False) -> None:
        """Raise EPERM for a change that inode flags forbid, see `inode_flags`."""
        with self._lock:
            inode_flags.refuse(node, self._tree.xattrs, appends=appends)

    def get_flags(self, node: Node, form: inode_flags.Format) -> bytes:
        """Return the flags that lsattr(1) shows."""
        with self._lock:
            return inode_flags.read(node, self._tree.xattrs, form)

    def set_flags(self, node: Node, form: inode_flags.Format, value: bytes, caller: Caller) -> None:
        """Set the flags, as chattr(1) does. Raises EPERM, ENOTTY, or the error of the upper's filesystem."""
        self._refuse_past(node)
        inode_flags.check_permission(self.get_flags(node, form), value, form, self.attrs(node).uid, caller)
        upper = self._copy_up.node(node, caller, data=False)
        with self._lock:
            protection = form.protection(value)
            stored = form.with_protection(value, b"")
            upper.set_flags(node.pin(), self._event_path(node), form.set, stored, protection, caller)
            node.protection = protection
        self.hooks.changed(node)

    # --- open --------------------------------------------------------------------------------------

    def open(self, node: Node, flags: int, caller: Caller, *, kill_privileges: bool = False) -> Handle:
        """open(2) of an existing file; opening for writing copies it up. The caller must `release` the handle.

        O_TRUNC copies no data; with `kill_privileges` it also clears set-id bits. The front handles O_APPEND, O_CREAT
        and O_EXCL. Raises OSError, ENFILE while too many files are open.
        """
        if not isinstance(node, FileNode):
            raise failure(errno.EISDIR, node.name)
        writing = bool(flags & (os.O_ACCMODE | os.O_TRUNC))
        if writing:
            self._refuse_past(node)
            self._refuse_protected(node, appends=flags & (os.O_APPEND | os.O_TRUNC) == os.O_APPEND)
        if flags & os.O_TRUNC:
            return self._open_cut(node, flags & _OPEN_FLAGS, caller, kill_privileges)
        if writing:
            self._copy_up.node(node, caller)
        while True:
            where = node.where
            opened = Descriptor(self._budget.admitted(self._tree.open(node, flags & _OPEN_FLAGS)))
            with self._lock:
                # If it was copied up in the meantime, this is the lower file: open the copy instead.
                if node.where == where:
                    return self._opened(node, opened, writable=writing)

    def _open_cut(self, node: FileNode, flags: int, caller: Caller, kill_privileges: bool) -> Handle:
        if not flags & os.O_ACCMODE:
            flags |= os.O_RDWR  # open(2) allows O_RDONLY|O_TRUNC, but ftruncate(2) needs a file open for writing.
        fd = self._copy_up.truncated(node, caller, Cut(0, flags & ~os.O_TRUNC, admit=self._budget.check))
        with self._lock:
            handle = self._opened(node, Descriptor(fd), writable=True)
        if kill_privileges:
            try:
                self._drop_privileges(node, handle, caller)
            except BaseException:
                self.release(node, handle)
                raise
        return handle

    def _opened(self, node: FileNode, opened: Descriptor, *, writable: bool) -> Handle:
        """Return a new handle for an open file. Call with the lock held."""
        append_only = writable and inode_flags.APPEND in inode_flags.protection(node, self._tree.xattrs)
        in_upper = node.in_upper and not node.metacopy
        handle = Handle(opened, writable=writable, in_upper=in_upper, append_only=append_only)
        node.handles.append(handle)
        return handle

    def release(self, node: FileNode, handle: Handle) -> None:
        """Close a handle."""
        with self._lock:
            node.handles.remove(handle)
        handle.close()

    def write(
        self,
        node: FileNode,
        handle: Handle,
        data: bytes | memoryview,
        offset: int,
        caller: Caller,
        *,
        kill_privileges: bool = False,
    ) -> int:
        """pwrite(2) through a handle. With `kill_privileges`, set-id bits are cleared first."""
        handle.check_write(offset)
        if kill_privileges:
            self._drop_privileges(node, handle, caller)
        written = handle.write(data, offset)
        if self.events.listening:
            self._tree.writable().emit(Action.WRITE, node.path(), caller, size=written)
        return written

    def allocate(self, node: FileNode, handle: Handle, mode: int, offset: int, length: int, caller: Caller) -> None:
        """fallocate(2) through a handle. Like a write, it clears the set-id bits if the caller is not privileged."""
        self._refuse_protected(node, appends=not mode & ~syscalls.FALLOC_FL_KEEP_SIZE)
        if caller.uid:
            self._drop_privileges(node, handle, caller)
        opened = handle.opened
        syscalls.allocate(opened.fd, mode, offset, length)
        self._tree.writable().emit(Action.FALLOCATE, self._event_path(node), caller, size=length)

    def copy_range(
        self,
        source: Handle,
        source_offset: int,
        node: FileNode,
        handle: Handle,
        offset: int,
        length: int,
        caller: Caller,
    ) -> int:
        """copy_file_range(2) from `source` to `handle`, a handle of `node`. Clears set-id bits as `allocate` does."""
        handle.check_write(offset)
        if caller.uid:
            self._drop_privileges(node, handle, caller)
        read, written = source.opened, handle.opened
        done = os.copy_file_range(read.fd, written.fd, length, source_offset, offset)
        self._tree.writable().emit(Action.WRITE, self._event_path(node), caller, size=done)
        return done

    def _is_volatile(self) -> bool:
        return self._tree.upper is not None and self._tree.upper.volatile

    def sync_file(self, handle: Handle, data_only: bool) -> None:
        """fsync(2), or fdatasync(2) with `data_only`. A volatile overlay never waits for the disk."""
        if not self._is_volatile():
            opened = handle.opened
            (os.fdatasync if data_only else os.fsync)(opened.fd)

    def sync_directory(self, node: DirNode) -> None:
        """fsync(2) of a directory. A lower directory never has anything to write."""
        if node.in_upper and not self._is_volatile():
            with self._lock:
                held = node.front()
            os.fsync(held.fd)

    def sync(self) -> None:
        """syncfs(2) of the upper's filesystem."""
        if self._tree.upper is not None and not self._is_volatile():
            syscalls.sync_filesystem(self._tree.upper.layer.root_fd)


def _directory(node: Node) -> DirNode:
    if not isinstance(node, DirNode):
        raise failure(errno.ENOTDIR, node.name)
    return node


def _file(node: Node) -> FileNode:
    """Return the node if it is a regular file; raise EISDIR or EINVAL, as truncate(2) does, if it is not."""
    if isinstance(node, FileNode) and node.kind == stat.S_IFREG:
        return node
    raise failure(errno.EISDIR if node.is_directory else errno.EINVAL, node.name)
