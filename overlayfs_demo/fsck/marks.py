"""Marks that contradict the object that has them, or what lies below it.

What a mark means is in the kernel's Documentation/filesystems/overlayfs.rst. The repairs keep what the view shows,
as far as it shows the object at all.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from functools import partial

from overlayfs_demo.errors import printable
from overlayfs_demo.fsck.finding import Finding
from overlayfs_demo.fsck.lower_view import LowerView
from overlayfs_demo.fsck.marked import Marked
from overlayfs_demo.overlay.node import DirNode, Node
from overlayfs_demo.overlay.origin import is_handle
from overlayfs_demo.overlay.whiteout import is_whiteout

# Each mark, with the kinds of objects that can have it, and their name for people.
_KINDS = {
    "opaque": ((stat.S_IFDIR,), "directories"),
    "impure": ((stat.S_IFDIR,), "directories"),
    "redirect": ((stat.S_IFDIR, stat.S_IFREG), "directories and regular files"),
    "metacopy": ((stat.S_IFREG,), "regular files"),
    "whiteout": ((stat.S_IFREG,), "regular files"),
}
# What a directory can be marked as: overlayfs.rst, "whiteouts and opaque directories".
_OPAQUE_VALUES = (b"y", b"x")


def misplaced(found: Marked, names: frozenset[str]) -> Iterator[Finding]:
    """Find marks on objects that cannot have them, and values that mean nothing."""
    for mark, (kinds, plural) in _KINDS.items():
        attribute = found.xattrs.prefix + mark
        if attribute in names and stat.S_IFMT(found.status.st_mode) not in kinds:
            yield Finding(
                f"misplaced-{mark}",
                found.shown,
                f"it has the mark {attribute}, which only {plural} can have, so that no overlay heeds it and another "
                "program may trust it; the repair removes the mark",
                partial(found.remove, attribute),
            )
    if stat.S_ISDIR(found.status.st_mode) and found.xattrs.opaque in names:
        value = found.get(found.xattrs.opaque)
        if value not in _OPAQUE_VALUES:
            yield Finding(
                "invalid-opaque",
                found.shown,
                f"its mark {found.xattrs.opaque} has the value '{printable(value or b'')}', which means nothing, so "
                "that the layers below show through; the repair removes the mark",
                partial(found.remove, found.xattrs.opaque),
            )


def redirects(found: Marked, names: frozenset[str], below: DirNode | None, lowers: LowerView) -> Iterator[Finding]:
    """Find a redirect of a directory that leads nowhere. `below` is the lower directory of its parent."""
    attribute = found.xattrs.redirect
    if attribute not in names or not stat.S_ISDIR(found.status.st_mode) or found.get(found.xattrs.opaque) == b"y":
        return
    value = (found.get(attribute) or b"").partition(b"\0")[0]
    if isinstance(redirected(value, below, lowers), DirNode):
        return

    def forget() -> None:
        if lowers.child(below, found.name) is not None:
            # Without its redirect, the directory would merge with what has its present name below.
            found.set(found.xattrs.opaque, b"y")
        found.remove(attribute)

    problem = "no lower layer has as a directory" if is_valid_redirect(value) else "is not a valid path"
    yield Finding(
        "redirect-to-nowhere",
        found.shown,
        f"its redirect leads to '{printable(value)}', which {problem}, so that what it had below is not shown or it "
        "cannot be opened at all; the repair removes the redirect, and the directory keeps what the upper has of it",
        forget,
    )


def is_valid_redirect(value: bytes) -> bool:
    """Return whether this is the name of a sibling, or an absolute path: ovl_get_redirect_xattr."""
    absolute = value.startswith(b"/")
    parts = value[absolute:].split(b"/")
    return not {b"", b".", b".."}.intersection(parts) and (absolute or len(parts) == 1)


def redirected(value: bytes, below: DirNode | None, lowers: LowerView) -> Node | None:
    """Return the lower object that a redirect leads to, if any; `below` is the lower directory of the parent."""
    if not is_valid_redirect(value):
        return None
    return lowers.at(value) if value.startswith(b"/") else lowers.child(below, value)


def origins(found: Marked, names: frozenset[str], lowers: LowerView) -> Iterator[Finding]:
    """Find an origin that no lower has. An empty one means that it is not known, and is no damage."""
    attribute = found.xattrs.origin
    value = found.get(attribute) if attribute in names else None
    if not value:
        return
    origin = lowers.origins.decode(value)
    if origin is not None and stat.S_IFMT(origin.st_mode) == stat.S_IFMT(found.status.st_mode):
        return
    if origin is not None:
        why = "leads to an object of another kind, so that it cannot be opened"
    elif is_handle(value):
        why = "leads to no file of the lower layers, so that its inode number changes with each mount"
    else:
        why = "is not a file handle, so that its inode number changes with each mount"
    yield Finding(
        "origin-to-nowhere",
        found.shown,
        f"its mark {attribute} {why}; the repair removes the mark",
        partial(found.remove, attribute),
    )


def refers_below(found: Marked, names: frozenset[str]) -> bool:
    """Return whether the object has a mark that makes its directory impure (fs/overlayfs/copy_up.c)."""
    xattrs = found.xattrs
    return bool({xattrs.metacopy, xattrs.redirect} & names) or bool(xattrs.origin in names and found.get(xattrs.origin))


def pure(directory: Marked, names: frozenset[str]) -> Iterator[Finding]:
    """Find a directory with objects that refer to the layers below, which does not say so."""
    attribute = directory.xattrs.impure
    if attribute not in names:
        yield Finding(
            "impure-missing",
            directory.shown,
            f"it has objects that refer to the layers below, but no mark {attribute}, so that a listing shows wrong "
            "inode numbers and may miss that a file's data is below; the repair sets the mark",
            partial(directory.set, attribute, b"y"),
        )


def whiteouts(found: Marked, names: frozenset[str], by_xattr: bool, below: DirNode | None) -> Iterator[Finding]:
    """Find a whiteout in a directory that merges with nothing. `by_xattr`: the directory has whiteouts of that form."""
    status = found.status
    marked = found.xattrs.whiteout in names and stat.S_ISREG(status.st_mode)
    effective = is_whiteout(status) or (marked and by_xattr and not status.st_size)
    if effective and below is None:
        yield Finding(
            "useless-whiteout",
            found.shown,
            "it is a whiteout in a directory that merges with no other, so that the kernel's overlayfs lists a name "
            "that does not exist; the repair removes it",
            found.unlink,
        )
    elif marked and not effective:
        yield Finding(
            "misplaced-whiteout",
            found.shown,
            f"it has the mark {found.xattrs.whiteout}, but it is not empty or its directory is not marked for that, so "
            "that it hides nothing; the repair removes the mark, and the file stays visible",
            partial(found.remove, found.xattrs.whiteout),
        )
