"""Which differences are intended, and how does the fuzzer keep away from them?

Here is all that is not compared, with the reason. What `sides` and `views` leave out of every answer:

- inode numbers, access and change times, times of now, link counts of directories: nobody promises them;
- STRAY_WHITEOUT: the kernel lists a whiteout in a directory that merges with nothing, a name that cannot be
  looked up; we do not list it. Names that cannot be looked up are dropped from both listings;
- link counts through an open file: of a lower file that was deleted while open the kernel says what the
  lower has, and we say 0;
- image whiteouts (`.wh.`): ours is mounted without that dialect.
"""

from __future__ import annotations

from typing import NamedTuple

from tests.differential.operations import Operation
from tests.differential.sides import Outcome


class Known(NamedTuple):
    """A verb that may fail differently: each outcome as an errno, or "ok"; "*" is any."""

    verbs: frozenset[str]
    kernel: str
    ours: str
    reason: str


DIFFERENT_ERRORS: tuple[Known, ...] = ()

_NO_FUSEPY = frozenset({"allocate", "seek_data", "copy_range", "hold", "held_names"})


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


def is_known(operation: Operation, kernel: Outcome, ours: Outcome) -> bool:
    """Is it known that these answers differ? Both failed, so the views are still the same."""
    if kernel[0] != "error" or ours[0] != "error":
        return False
    return any(
        operation.verb in one.verbs and one.kernel in ("*", kernel[1]) and one.ours in ("*", ours[1])
        for one in DIFFERENT_ERRORS
    )

