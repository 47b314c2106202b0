"""The check that a stack uses no directory that another mount writes to.

Each mount would see the changes that the other makes to the overlay's own marks. As in the kernel's overlayfs
(fs/overlayfs/super.c, ovl_report_in_use), a lower that is in use is refused with `index=on`, and causes a warning
otherwise; an upper or workdir in use is always refused.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

from overlayfs_demo.errors import MountError
from overlayfs_demo.linux import mountinfo
from overlayfs_demo.mounts.options import parse
from overlayfs_demo.mounts.preflight import Written, written_by_kernel
from overlayfs_demo.mounts.registry import live_records
from overlayfs_demo.overlay.stack import Stack

_log = logging.getLogger(__name__)


def check_unused(stack: Stack) -> None:
    """Check that no directory of the stack, whose paths are absolute, lies in one that another mount writes to.

    An upper or workdir that is exactly that of another mount is not reported here, because it is locked.
    Raises MountError.
    """
    written = [directory for directory in (*_ours(), *written_by_kernel()) if os.path.isdir(directory.path)]
    if not written:
        return
    layers = [(role, path, False) for role, path in (("upperdir", stack.upper), ("workdir", stack.work)) if path]
    layers += [(f"lower layer {number}", path, True) for number, path in enumerate(stack.lowers, 1)]
    layers += [(f"data-only layer {number}", path, True) for number, path in enumerate(stack.data_only, 1)]
    there = mountinfo.places(directory.path for directory in written)
    for (role, path, is_lower), here in zip(layers, mountinfo.places(path for _, path, _ in layers), strict=True):
        for used, place in zip(written, there, strict=True):
            if here.is_within(place) and (is_lower or here != place):
                is_refused = not is_lower or (stack.index and stack.upper is not None)
                _report(f"{role}, {os.fsdecode(path)},", used, is_refused=is_refused)


def _report(subject: str, used: Written, *, is_refused: bool) -> None:
    problem = f"{subject} is in use as {used.role} {os.fsdecode(used.path)} of the mount on {used.mountpoint}"
    if is_refused:
        raise MountError(problem, "unmount that first; for a lower layer, index=off makes it a warning")
    _log.warning("%s: what both mounts show is undefined", problem)


def _ours() -> Iterator[Written]:
    for record in live_records():
        stack = parse([record.options]).stack
        for role, path in (("upperdir", stack.upper), ("workdir", stack.work)):
            if path is not None:
                yield Written(role, path, record.mountpoint)
