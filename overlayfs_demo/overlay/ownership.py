"""Who owns the files of a view, and with which mode: one strategy for each way to store it.

The engine knows only the owners and modes on disk. It asks the strategy wherever they enter or leave: the attributes
of every node pass through `shown`, every new object through `asked` and `finished`, every change of an owner or a
mode through `change` and `apply`, every extended attribute through the methods for those.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from overlayfs_demo.events import Action
from overlayfs_demo.linux.failure import failure
from overlayfs_demo.overlay import acl, override_stat
from overlayfs_demo.overlay.idmap import Ids, UnmappedError
from overlayfs_demo.overlay.new_object import NewObject
from overlayfs_demo.overlay.node import Node
from overlayfs_demo.overlay.override_stat import OverrideStat
from overlayfs_demo.overlay.pinned import Pinned
from overlayfs_demo.overlay.types import AttrChange, Attrs, Caller
from overlayfs_demo.overlay.upper import Upper

_ACLS = (acl.ACCESS, acl.DEFAULT)


class Ownership:
    """The owners and modes of the view are those on disk.

    `decides_access`: the owner and mode that the view shows decide who may access a file. Call all methods that take
    a node with the tree's lock held.
    """

    decides_access = True

    # --- from the disk to the view -----------------------------------------------------------------

    def shown(self, node: Node, attrs: Attrs) -> Attrs:
        """Return the view's attributes of a node, given those on disk. Raises OSError."""
        return attrs

    def shown_group(self, gid: int) -> int:
        """Return the view's id for a group id on disk."""
        return gid

    def hides(self, name: str) -> bool:
        """Whether the view neither shows this extended attribute nor lets anyone set it."""
        return False

    def shown_xattr(self, name: str, value: bytes) -> bytes:
        """Return the view's value of an extended attribute, given the one on disk."""
        return value

    # --- from the view to the disk -----------------------------------------------------------------

    def asked(self, mode: int, caller: Caller) -> tuple[int, Caller]:
        """Return the mode and the caller, with its ids and umask, to make a new object on disk with.

        Raises EOVERFLOW for a caller whose ids have no counterpart on disk, as mkdir(2) on an idmapped mount does.
        """
        return mode, caller

    def finished(self, new: NewObject, mode: int, caller: Caller) -> NewObject:
        """Return a new object as it is made on disk, given the mode and the caller that `asked` was called with."""
        return new

    def change(self, node: Node, change: AttrChange) -> AttrChange:
        """Return a change of attributes in terms of the disk. Called before anything is changed or copied up.

        Raises OSError if the owner cannot be stored: EINVAL if it has no id on disk.
        """
        return change

    def apply(self, upper: Upper, node: Node, pinned: Pinned, change: AttrChange, caller: Caller) -> None:
        """Change the owner and mode of an object of the upper as far as `change` asks.

        The owner comes before the mode because chown(2) clears set-id bits.
        """
        if change.uid is not None or change.gid is not None:
            uid = -1 if change.uid is None else change.uid
            gid = -1 if change.gid is None else change.gid
            upper.chown(pinned, node, uid, gid, caller)
        if change.mode is not None:
            upper.chmod(pinned, node, stat.S_IMODE(change.mode), caller)

    def stored_xattr(self, name: str, value: bytes) -> bytes:
        """Return the value to store of an extended attribute. EINVAL if it names an id that has none on disk."""
        return value


class IdMapped(Ownership):
    """The files belong to other users in the view than on disk, see `idmap`."""

    def __init__(self, ids: Ids) -> None:
        self._ids = ids

    def shown(self, node: Node, attrs: Attrs) -> Attrs:
        return attrs._replace(uid=self._ids.users.shown(attrs.uid), gid=self._ids.groups.shown(attrs.gid))

    def shown_group(self, gid: int) -> int:
        return self._ids.groups.shown(gid)

    def shown_xattr(self, name: str, value: bytes) -> bytes:
        return self._ids.shown_acl(value) if name in _ACLS else value

    def asked(self, mode: int, caller: Caller) -> tuple[int, Caller]:
        with _or_fail(errno.EOVERFLOW):
            uid, gid = self._ids.users.stored(caller.uid), self._ids.groups.stored(caller.gid)
        return mode, caller._replace(uid=uid, gid=gid)

    def change(self, node: Node, change: AttrChange) -> AttrChange:
        with _or_fail(errno.EINVAL):
            return change._replace(
                uid=None if change.uid is None else self._ids.users.stored(change.uid),
                gid=None if change.gid is None else self._ids.groups.stored(change.gid),
            )

    def stored_xattr(self, name: str, value: bytes) -> bytes:
        if name not in _ACLS:
            return value
        with _or_fail(errno.EINVAL):
            return self._ids.stored_acl(value)


class Overridden(IdMapped):
    """The layers keep owners and modes in an attribute, because they belong to an ordinary user, see `override_stat`.

    The view shows the owner and mode of the attribute, and chmod(2) and chown(2) write it. A copy-up copies it like any
    other. A file without it is shown as it is, except files in a lower that cannot have it: they are shown as root's,
    as they are in an image.

    The owners in the view do not decide what the layers' owner may do, so the kernel must not check access by them:
    the user who mounts such a view is its root.
    """

    decides_access = False

    def shown(self, node: Node, attrs: Attrs) -> Attrs:
        if not override_stat.can_be_kept(attrs.mode):
            ours = not node.in_upper and attrs.uid == os.geteuid()
            return attrs._replace(uid=0, gid=0) if ours else super().shown(node, attrs)
        value = node.pin().xattr(override_stat.NAME)
        override = None if value is None else override_stat.parse(value)
        if override is None:
            return super().shown(node, attrs)
        return attrs._replace(uid=override.uid, gid=override.gid, mode=stat.S_IFMT(attrs.mode) | override.mode)

    def hides(self, name: str) -> bool:
        return name == override_stat.NAME

    def asked(self, mode: int, caller: Caller) -> tuple[int, Caller]:
        """Like `IdMapped.asked`, with a mode and a umask that leave the object accessible to us."""
        mode, caller = super().asked(mode, caller)
        if not override_stat.can_be_kept(mode):
            return mode, caller
        return mode | override_stat.needs(mode), caller._replace(umask=caller.umask & ~stat.S_IRWXU)

    def finished(self, new: NewObject, mode: int, caller: Caller) -> NewObject:
        """Record the owner's permissions that were asked for, if the real ones have to be wider."""
        owners = mode & ~caller.umask & stat.S_IRWXU
        uid, gid = self._ids.users.shown(new.uid), self._ids.groups.shown(new.gid)
        override = OverrideStat(uid, gid, stat.S_IMODE(new.mode) & (owners | ~stat.S_IRWXU))
        real = override.on_disk(new.mode)
        if not override_stat.can_be_kept(new.mode) or real == override.mode:
            return new
        xattrs = (*new.xattrs, (override_stat.NAME, override.encode()))
        return new._replace(mode=stat.S_IFMT(new.mode) | real, xattrs=xattrs)

    def change(self, node: Node, change: AttrChange) -> AttrChange:
        """Return the change; its owner is for the override. EPERM for a new owner of a file that cannot have one."""
        if not override_stat.can_be_kept(node.kind):
            before = self.shown(node, node.attrs_on_disk(node.stat()))
            if change.uid not in (None, before.uid) or change.gid not in (None, before.gid):
                raise failure(errno.EPERM, node.name)
            change = change._replace(uid=None, gid=None)
        # The real mode never has set-id bits, and anyone who mounts the view is its root, whose changes keep them.
        return change._replace(kill_privileges=False)

    def apply(self, upper: Upper, node: Node, pinned: Pinned, change: AttrChange, caller: Caller) -> None:
        if not override_stat.can_be_kept(node.kind):
            super().apply(upper, node, pinned, change, caller)
            return
        before = self.shown(node, node.attrs_on_disk(pinned.stat()))
        override = OverrideStat(before.uid, before.gid, stat.S_IMODE(before.mode))
        if change.uid is not None or change.gid is not None:
            uid = override.uid if change.uid is None else change.uid
            gid = override.gid if change.gid is None else change.gid
            override = override._replace(uid=uid, gid=gid)
            upper.set_override_stat(pinned, node, override, Action.CHOWN, f"{uid}:{gid}", caller)
        if change.mode is not None:
            override = override._replace(mode=stat.S_IMODE(change.mode))
            upper.set_override_stat(pinned, node, override, Action.CHMOD, f"{override.mode:04o}", caller)


@contextmanager
def _or_fail(code: int) -> Iterator[None]:
    """Turn an id without a counterpart on disk into this errno."""
    try:
        yield
    except UnmappedError:
        raise failure(code) from None
