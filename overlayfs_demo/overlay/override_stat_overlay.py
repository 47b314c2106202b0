"""An overlay whose layers keep owners and modes in records, see `override_stat`.

Records are read and written only here: the view shows the owner and mode of the record, and chmod(2) and chown(2)
write it. Everything behind this knows only what is on disk; a copy-up copies the record like any attribute.
A file without a record is shown as it is, except files in a lower that cannot have one: they are shown as root's,
as they are in an image.

The owners in the view do not decide what the layers' owner may do, so the kernel must not check access by them: the
user who mounts such a view is its root (`Overlay.owners_are_real`).
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import replace

from overlayfs_demo.events import Action
from overlayfs_demo.linux.failure import failure
from overlayfs_demo.overlay import override_stat
from overlayfs_demo.overlay.handle import Handle
from overlayfs_demo.overlay.idmapped import MappedOverlay
from overlayfs_demo.overlay.node import DirNode, FileNode, Node
from overlayfs_demo.overlay.override_stat import StatRecord
from overlayfs_demo.overlay.types import Attrs, Caller, Change


class RecordedOverlay(MappedOverlay):
    """An overlay of layers that keep records."""

    owners_are_real = False

    # --- on the way out ----------------------------------------------------------------------------

    def _show(self, node: Node, attrs: Attrs) -> Attrs:
        if not override_stat.can_be_kept(attrs.mode):
            ours = not node.in_upper and attrs.uid == os.geteuid()
            return attrs._replace(uid=0, gid=0) if ours else super()._show(node, attrs)
        record = self._record(node)
        if record is None:
            return super()._show(node, attrs)
        return attrs._replace(uid=record.uid, gid=record.gid, mode=stat.S_IFMT(attrs.mode) | record.mode)

    def _record(self, node: Node) -> StatRecord | None:
        with self._lock:
            pinned = node.pin()
            return override_stat.read(pinned.place, follow=True)

    def xattrs(self, node: Node, caller: Caller) -> list[str]:
        return [name for name in super().xattrs(node, caller) if name != override_stat.NAME]

    def xattr(self, node: Node, name: str) -> bytes:
        if name == override_stat.NAME:
            raise failure(errno.ENODATA, node.name)
        return super().xattr(node, name)

    # --- on the way in -----------------------------------------------------------------------------

    def create(
        self, parent: DirNode, name: bytes, mode: int, flags: int, caller: Caller
    ) -> tuple[FileNode, Attrs, Handle]:
        open_mode, asked = _accessible(stat.S_IFREG | mode, caller)
        node, attrs, handle = super().create(parent, name, stat.S_IMODE(open_mode), flags, asked)
        return node, self._settle(node, attrs, mode, caller), handle

    def tmpfile(self, parent: DirNode, mode: int, flags: int, caller: Caller) -> tuple[FileNode, Attrs, Handle]:
        open_mode, asked = _accessible(stat.S_IFREG | mode, caller)
        node, attrs, handle = super().tmpfile(parent, stat.S_IMODE(open_mode), flags, asked)
        return node, self._settle(node, attrs, mode, caller), handle

    def mkdir(self, parent: DirNode, name: bytes, mode: int, caller: Caller) -> tuple[Node, Attrs]:
        open_mode, asked = _accessible(stat.S_IFDIR | mode, caller)
        node, attrs = super().mkdir(parent, name, stat.S_IMODE(open_mode), asked)
        return node, self._settle(node, attrs, mode, caller)

    def mknod(self, parent: DirNode, name: bytes, mode: int, rdev: int, caller: Caller) -> tuple[Node, Attrs]:
        open_mode, asked = _accessible(mode, caller)
        node, attrs = super().mknod(parent, name, open_mode, rdev, asked)
        return node, self._settle(node, attrs, mode, caller)

    def _settle(self, node: Node, attrs: Attrs, mode: int, caller: Caller) -> Attrs:
        """Record the owner's permissions that were requested for a new file, if the real ones had to be wider."""
        owners = mode & ~caller.umask & stat.S_IRWXU
        record = StatRecord(attrs.uid, attrs.gid, stat.S_IMODE(attrs.mode) & (owners | ~stat.S_IRWXU))
        if not override_stat.can_be_kept(attrs.mode) or record.on_disk(attrs.mode) == record.mode:
            return attrs
        self._keep(node, record, Action.CHMOD, f"{record.mode:04o}", caller)
        return attrs._replace(mode=stat.S_IFMT(attrs.mode) | record.mode)

    def set_attrs(self, node: Node, change: Change, caller: Caller) -> Attrs:
        """Like `MappedOverlay.set_attrs`, but the owner and mode are written to the record.

        EPERM for a new owner of a file that cannot have a record.
        """
        real = replace(change, uid=None, gid=None, mode=None, kill_privileges=False)
        before = self.attrs(node)
        if not override_stat.can_be_kept(before.mode):
            asked = (change.uid in (None, before.uid), change.gid in (None, before.gid))
            if not all(asked):
                raise failure(errno.EPERM, node.name)
            return super().set_attrs(node, replace(real, mode=change.mode), caller)
        super().set_attrs(node, real, caller)
        record = StatRecord(before.uid, before.gid, stat.S_IMODE(before.mode))
        if change.uid is not None or change.gid is not None:
            uid = record.uid if change.uid is None else change.uid
            gid = record.gid if change.gid is None else change.gid
            record = record._replace(uid=uid, gid=gid)
            self._keep(node, record, Action.CHOWN, f"{record.uid}:{record.gid}", caller)
        if change.mode is not None:
            record = record._replace(mode=stat.S_IMODE(change.mode))
            self._keep(node, record, Action.CHMOD, f"{record.mode:04o}", caller)
        return self.attrs(node)

    def _keep(self, node: Node, record: StatRecord, action: Action, detail: str, caller: Caller) -> None:
        """Write a record. The file's real mode is set as well, but never so that the layer's owner loses access."""
        upper = self._copy_up.node(node, caller, data=False)
        with self._lock:
            upper.record(node.pin(), self._event_path(node), record, action, detail, caller)

    def set_xattr(self, node: Node, name: str, value: bytes, flags: int, caller: Caller) -> None:
        self._refuse(node, name)
        super().set_xattr(node, name, value, flags, caller)

    def remove_xattr(self, node: Node, name: str, caller: Caller) -> None:
        self._refuse(node, name)
        super().remove_xattr(node, name, caller)

    def _refuse(self, node: Node, name: str) -> None:
        if name == override_stat.NAME:
            raise failure(errno.EPERM, node.name)


def _accessible(mode: int, caller: Caller) -> tuple[int, Caller]:
    """Return a mode, and the caller with a umask, that leave a new file accessible to us."""
    if not override_stat.can_be_kept(mode):
        return mode, caller
    return mode | override_stat.needs(mode), caller._replace(umask=caller.umask & ~stat.S_IRWXU)
