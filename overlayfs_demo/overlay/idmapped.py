"""An overlay whose files belong to other users in the view than on disk.

Ids are translated only here: results of the engine on the way out, requests of callers on the way in.
Everything behind this, including copy-up, knows only the ids on disk.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from overlayfs_demo.events import Events
from overlayfs_demo.linux.failure import failure
from overlayfs_demo.overlay import acl, listing
from overlayfs_demo.overlay.engine import Overlay
from overlayfs_demo.overlay.handle import Handle
from overlayfs_demo.overlay.idmap import UnmappedError
from overlayfs_demo.overlay.node import DirNode, FileNode, Node
from overlayfs_demo.overlay.stack import Stack
from overlayfs_demo.overlay.tree import Completed
from overlayfs_demo.overlay.types import Attrs, Caller, Change, Dirent

_ACLS = (acl.ACCESS, acl.DEFAULT)


class MappedOverlay(Overlay):
    """An overlay with a mapping of ids, see `Stack.ids`."""

    def __init__(self, stack: Stack, events: Events | None = None) -> None:
        super().__init__(stack, events)
        self._ids = stack.ids

    def _show(self, _node: Node, attrs: Attrs) -> Attrs:
        return attrs._replace(uid=self._ids.users.shown(attrs.uid), gid=self._ids.groups.shown(attrs.gid))

    def _owner(self, caller: Caller) -> Caller:
        """Return the caller with its ids on disk, which own a new object. EOVERFLOW if it has none, as in mkdir(2)."""
        with _or_fail(errno.EOVERFLOW):
            return caller._replace(uid=self._ids.users.stored(caller.uid), gid=self._ids.groups.stored(caller.gid))

    # --- on the way out ----------------------------------------------------------------------------

    def lookup(self, parent: DirNode, name: bytes) -> tuple[Node, Attrs]:
        node, attrs = super().lookup(parent, name)
        return node, self._show(node, attrs)

    def lookup_listed(
        self, parent: DirNode, snapshot: listing.Snapshot, names: Iterable[listing.Listed]
    ) -> list[Completed]:
        found = super().lookup_listed(parent, snapshot, names)
        return [
            answer if answer is None or isinstance(answer, Dirent) else (answer[0], self._show(*answer))
            for answer in found
        ]

    def attrs(self, node: Node) -> Attrs:
        return self._show(node, super().attrs(node))

    def link(self, node: Node, parent: DirNode, name: bytes, caller: Caller) -> Attrs:
        return self._show(node, super().link(node, parent, name, caller))

    def xattr(self, node: Node, name: str) -> bytes:
        value = super().xattr(node, name)
        return self._ids.shown_acl(value) if name in _ACLS else value

    def _is_member(self, caller: Caller, gid: int) -> bool:
        return super()._is_member(caller, self._ids.groups.shown(gid))

    # --- on the way in -----------------------------------------------------------------------------

    def create(
        self, parent: DirNode, name: bytes, mode: int, flags: int, caller: Caller
    ) -> tuple[FileNode, Attrs, Handle]:
        node, attrs, handle = super().create(parent, name, mode, flags, self._owner(caller))
        return node, self._show(node, attrs), handle

    def tmpfile(self, parent: DirNode, mode: int, flags: int, caller: Caller) -> tuple[FileNode, Attrs, Handle]:
        node, attrs, handle = super().tmpfile(parent, mode, flags, self._owner(caller))
        return node, self._show(node, attrs), handle

    def mkdir(self, parent: DirNode, name: bytes, mode: int, caller: Caller) -> tuple[Node, Attrs]:
        node, attrs = super().mkdir(parent, name, mode, self._owner(caller))
        return node, self._show(node, attrs)

    def mknod(self, parent: DirNode, name: bytes, mode: int, rdev: int, caller: Caller) -> tuple[Node, Attrs]:
        node, attrs = super().mknod(parent, name, mode, rdev, self._owner(caller))
        return node, self._show(node, attrs)

    def symlink(self, parent: DirNode, name: bytes, target: bytes, caller: Caller) -> tuple[Node, Attrs]:
        node, attrs = super().symlink(parent, name, target, self._owner(caller))
        return node, self._show(node, attrs)

    def set_attrs(self, node: Node, change: Change, caller: Caller) -> Attrs:
        """Like `Overlay.set_attrs`. EINVAL for an owner who has no id on disk, as chown(2) on an idmapped mount."""
        with _or_fail(errno.EINVAL):
            stored = replace(
                change,
                uid=None if change.uid is None else self._ids.users.stored(change.uid),
                gid=None if change.gid is None else self._ids.groups.stored(change.gid),
            )
        return self._show(node, super().set_attrs(node, stored, caller))

    def set_xattr(self, node: Node, name: str, value: bytes, flags: int, caller: Caller) -> None:
        if name in _ACLS:
            with _or_fail(errno.EINVAL):
                value = self._ids.stored_acl(value)
        super().set_xattr(node, name, value, flags, caller)


@contextmanager
def _or_fail(code: int) -> Iterator[None]:
    try:
        yield
    except UnmappedError:
        raise failure(code) from None
