"""The attributes that a copy in the upper takes over from its source."""

from __future__ import annotations

import errno
import os
from functools import partial

from overlayfs_demo.linux import attributes
from overlayfs_demo.linux.attributes import Attributes
from overlayfs_demo.overlay import inode_flags
from overlayfs_demo.overlay.node import Node
from overlayfs_demo.overlay.pinned import Pinned
from overlayfs_demo.overlay.tree import Tree
from overlayfs_demo.overlay.whiteout import PrivateXattrs

# Attributes that hold access rights: losing one silently would be worse than failing.
_ESSENTIAL = ("security.", "system.posix_acl_")


def marks(node: Node, origin: bytes | None, tree: Tree, *, metacopy: bool = False) -> list[tuple[str, bytes]]:
    """Return the overlay's own attributes of a node's copy: its origin, the inode flags of the lower object, and
    whether it is a metacopy. Call with the tree's lock held.
    """
    found = [(tree.xattrs.origin, origin)] if origin else []
    if protected := inode_flags.protection(node, tree.xattrs):
        found.append((tree.xattrs.protattr, protected))
    if metacopy:
        found.append((tree.xattrs.metacopy, b""))
    return found


def dress(
    copy: int | bytes,
    source: Pinned,
    status: os.stat_result,
    private: list[tuple[str, bytes]],
    ours: PrivateXattrs,
    *,
    keep_times: bool = True,
) -> None:
    """Give a staged copy the owner, attributes and mode of its source, and its times if `keep_times`.

    `copy` is its descriptor, or its path in the work directory. It also gets `private` attributes, from `marks`.
    """
    given = taken_over(source, status, private, ours)
    if not keep_times:
        given = given._replace(times_ns=None)
    attributes.apply(given, copy, partial(_may_lose, ours))


def taken_over(
    source: Pinned, status: os.stat_result, private: list[tuple[str, bytes]], ours: PrivateXattrs
) -> Attributes:
    """Return what a copy gets from its source, which has this status, and the overlay's own attributes `private`."""
    xattrs: list[tuple[str, bytes]] = []
    for name in source.xattrs():
        is_private = name.startswith(ours.prefix) and not name.startswith(ours.escape)
        if not is_private and (value := source.xattr(name)) is not None:
            xattrs.append((name, value))
    return Attributes.of(status, xattrs + private)


def _may_lose(ours: PrivateXattrs, name: str | bytes, error: OSError) -> bool:
    """Whether the copy may lack an attribute that could not be set because of this error.

    An upper that does not support, say, user.* attributes is used without them, as in the kernel.
    """
    essential = name in (ours.origin, ours.protattr, ours.metacopy) or os.fsdecode(name).startswith(_ESSENTIAL)
    return error.errno == errno.EOPNOTSUPP and not essential
