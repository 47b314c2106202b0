"""Does a stack use a directory that another mount writes to?

Both would change it, and each would see what the other does to the overlay's own marks. As in the kernel's overlayfs
(fs/overlayfs/super.c, ovl_report_in_use) a lower that is in use is refused with `index=on`, and warned of otherwise;
an upper or workdir is refused in any case.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from typing import NamedTuple

from overlayfs_demo import mount_table
from overlayfs_demo.errors import MountError, UsageError
from overlayfs_demo.mount_options import parse, unescape
from overlayfs_demo.overlay.stack import Stack
from overlayfs_demo.records import live_records

_log = logging.getLogger(__name__)


class Written(NamedTuple):
    """A directory that a live mount writes to: `role` is upperdir or workdir."""

    role: str
    path: bytes
    mountpoint: str


def check_unused(stack: Stack) -> None:
    """Raises MountError if a directory of the stack, whose paths are absolute, is part of what is written to.

    Another mount's upper or workdir itself, as ours, is not looked for: those are locked.
    """
    written = [one for one in (*_ours(), *_kernels()) if os.path.isdir(one.path)]
    if not written:
        return
    places = mount_table.places(one.path for one in written)
    above = [(role, path) for role, path in (("upperdir", stack.upper), ("workdir", stack.work)) if path is not None]
    lowers = [(f"lower layer {number}", path) for number, path in enumerate(stack.lowers, 1)]
    lowers += [(f"data-only layer {number}", path) for number, path in enumerate(stack.data_only, 1)]
    for role, path in above + lowers:
        [here] = mount_table.places([path])
        is_lower = (role, path) in lowers
        for one, place in zip(written, places, strict=True):
            if here.is_within(place) and (is_lower or here != place):
                _report(f"{role}, {os.fsdecode(path)},", one, is_refused=not is_lower or _is_strict(stack))


def _is_strict(stack: Stack) -> bool:
    return stack.index and stack.upper is not None


def _report(what: str, used: Written, *, is_refused: bool) -> None:
    problem = f"{what} is in use as {used.role} {os.fsdecode(used.path)} of the mount on {used.mountpoint}"
    if is_refused:
        raise MountError(problem, "unmount that first; for a lower layer, index=off makes it a warning")
    _log.warning("%s: what is seen through both is undefined", problem)


def _ours() -> Iterator[Written]:
    for record in live_records():
        try:
            stack = parse([record.options]).stack
        except UsageError:  # Of a version that knew other options.
            continue
        for role, path in (("upperdir", stack.upper), ("workdir", stack.work)):
            if path is not None:
                yield Written(role, path, record.mountpoint)


def _kernels() -> Iterator[Written]:
    for mounted in mount_table.mounts():
        for option in mounted.options if mounted.kind == "overlay" else ():
            role, _, value = option.partition("=")
            if role in ("upperdir", "workdir"):
                # Listed as it was given, with the backslashes of a mount option.
                path = unescape(os.fsdecode(mount_table.unescape(value)))
                yield Written(role, path, os.fsdecode(mounted.mountpoint))
