"""Which differences are intended, and how does the fuzzer keep away from them?

Here is all that is not compared, with the reason. What `sides` and `views` leave out of every answer:

- inode numbers, access and change times, times of now, link counts of directories: nobody promises them;
- the kernel lists a whiteout in a directory that merges with nothing, a name that cannot be
  looked up; we do not list it. Names that cannot be looked up are dropped from both listings;
- supplementary groups: FUSE does not tell them, but whether a write drops S_ISGID depends on them. The user has none;
- link counts through an open file: of a lower file that was deleted while open the kernel says what the
  lower has, and we say 0;
- a change through an open file of a lower whose name was removed: the kernel copies the file up to its old
  name, which is then back in the view; ours keeps the copy nameless. Such changes are not made;
- directories that two redirects lead to (ESTALE in the kernel), and whiteouts in directories that merge with
  nothing: `stacks` makes none;
- times of the directories of a rename that failed with ENOTEMPTY: the kernel had already begun it, and ext4
  made a whiteout and took it back. They are set to one time on both sides;
- times of files with metacopy=on: the kernel gives a file the time of now when its data is copied up later;
- whiteouts that are marked by an xattr: the kernel takes some of them for content when a directory is removed.
  The stacks have none;
- image whiteouts (`.wh.`): ours is mounted without that dialect;
- set-id bits that a file gets while the kernel writes it alone (passthrough): whoever writes then is root without
  CAP_FSETID. Where files pass, such bits are only given at creation.
"""

from __future__ import annotations

import stat
from typing import NamedTuple

from tests.differential.operations import Operation
from tests.differential.sides import Outcome, Side


class Known(NamedTuple):
    """A verb that may fail differently: each outcome as an errno, or "ok"; "*" is any."""

    verbs: frozenset[str]
    kernel: str
    ours: str
    reason: str


DIFFERENT_ERRORS: tuple[Known, ...] = (
    Known(frozenset({"rename"}), "EXDEV", "ENOTEMPTY", "too long to redirect, and the target is not empty"),
    Known(
        frozenset({"link"}),
        "EACCES",
        "EPERM",
        "FUSE checks protected_hardlinks(5) with the mode before a write dropped its set-id bits",
    ),
)

_NO_FUSEPY = frozenset({"allocate", "seek_data", "copy_range", "hold", "held_names"})
_CHANGES_BY_HANDLE = frozenset({"fchmod", "fchown", "futime", "fset_xattr"})
_ATTRIBUTES_BY_HANDLE = _CHANGES_BY_HANDLE | {"fstat"}


def is_avoided(front: str, operation: Operation, kernel: Side, passes: bool) -> bool:
    """Would the kernel give a removed file its name again, or libfuse 2 not find one any more? Would it matter who
    writes to a file that has got set-id bits while it passes?

    libfuse 2 renames an open file when it is removed, and loses it when its directory is removed as well.
    """
    if passes and operation.verb in ("chmod", "fchmod") and operation.arguments[1] & (stat.S_ISUID | stat.S_ISGID):
        return True
    if operation.verb in _CHANGES_BY_HANDLE and kernel.is_unlinked_lower(operation.arguments[0]):
        return True
    return front == "fusepy" and operation.verb in _ATTRIBUTES_BY_HANDLE and kernel.is_unlinked(operation.arguments[0])


def is_skipped(front: str, operation: Operation) -> bool:
    """Is this front known to lack what the operation needs? See the top of `fusepy_front`."""
    verb, _, arguments = operation
    if verb in ("chown", "fchown") and arguments[1:] == (-1, -1):
        return True  # Drops set-id bits, which FUSE does not pass on.
    if front != "fusepy":
        return False
    if verb == "rename" and arguments[2]:
        return True  # libfuse 2 knows no rename flags.
    if "xattr" in verb and "posix_acl" in str(arguments):
        return True  # ACLs are kept, but not checked.
    return verb in _NO_FUSEPY or verb.startswith("held_")


def parts_ways(operation: Operation, kernel: Side, theirs: Outcome, ours: Outcome) -> bool:
    """Is it known that only our side does this? The sequence then ends.

    With metacopy=on the kernel refuses to move or link a file whose redirect would be too long; we copy its data.
    It also refuses to remove a directory with nothing but a whiteout, if that merges with nothing.
    """
    if ours != ("ok", None):
        return False
    if operation.verb in ("rename", "link") and theirs == ("error", "EXDEV"):
        return True
    if operation.verb in ("rename", "rmdir") and theirs == ("error", "ENOTEMPTY"):
        removed = operation.arguments[1 if operation.verb == "rename" else 0]
        return kernel.perform("listing", False, (removed,)) == ("ok", [])
    return False


def is_known(operation: Operation, kernel: Outcome, ours: Outcome) -> bool:
    """Is it known that these answers differ? Both failed, so the views are still the same."""
    if kernel[0] != "error" or ours[0] != "error":
        return False
    return any(
        operation.verb in one.verbs and one.kernel in ("*", kernel[1]) and one.ours in ("*", ours[1])
        for one in DIFFERENT_ERRORS
    )
