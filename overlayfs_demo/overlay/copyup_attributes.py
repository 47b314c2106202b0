"""The attributes that a copy in the upper takes over from its source."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from overlayfs_demo.linux import attributes, proc
from overlayfs_demo.linux.attributes import Attributes
from overlayfs_demo.overlay.inode_flags import lower_protection
from overlayfs_demo.overlay.pinned import Pinned
from overlayfs_demo.overlay.tree import Tree

# Attributes that hold access rights: losing one silently would be worse than failing.
_ESSENTIAL = ("security.", "system.posix_acl_")


def dress(
    temporary: bytes,
    source: Pinned,
    status: os.stat_result,
    origin: bytes | None,
    tree: Tree,
    *,
    metacopy: bool = False,
    keep_times: bool = True,
) -> None:
    """Give a staged copy the owner, attributes and mode of its source, and its times if `keep_times`.

    It also gets the overlay's own marks: its `origin`, the source's inode flags, and whether it is a `metacopy`.
    """
    ours = tree.xattrs

    def xattrs() -> Iterator[tuple[str, bytes]]:
        for name in source.xattrs():
            is_private = name.startswith(ours.prefix) and not name.startswith(ours.escape)
            if not is_private and (value := source.xattr(name)) is not None:
                yield name, value
        if origin:
            yield ours.origin, origin
        if protected := lower_protection(source):
            yield ours.protattr, protected
        if metacopy:
            yield ours.metacopy, b""

    def may_lose(name: str | bytes, error: OSError) -> bool:
        # An upper that does not support, say, user.* attributes is used without them, as in the kernel.
        essential = name in (ours.origin, ours.protattr, ours.metacopy) or os.fsdecode(name).startswith(_ESSENTIAL)
        return error.errno == errno.EOPNOTSUPP and not essential

    given = Attributes.of(status, xattrs())
    path = proc.path_of(tree.writable().work_fd, temporary)
    attributes.apply(given if keep_times else given._replace(times_ns=None), path, may_lose)
