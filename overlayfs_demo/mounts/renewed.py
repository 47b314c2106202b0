"""The supervisor of a mount that began with an older program, see `renewal`. Runs as a program of its own."""

from __future__ import annotations

import json
import os
import sys

from overlayfs_demo.fronts.kernel.session import KernelFront
from overlayfs_demo.mounts import daemon
from overlayfs_demo.mounts.held import Held
from overlayfs_demo.mounts.options import parse
from overlayfs_demo.mounts.registry import MountRecord, Registration
from overlayfs_demo.mounts.serving import Mount
from overlayfs_demo.mounts.supervisor import Kept
from overlayfs_demo.overlay.private_mount import Root, Roots


def main() -> None:
    """Go on as the supervisor. With --check, only show that this program starts, and understands what it is given."""
    with os.fdopen(int(sys.argv[1]), "rb") as file:
        file.seek(0)
        state = json.load(file)
    locks, (lowers, upper, work) = state["held"]
    roots = Roots(tuple(Root(*root) for root in lowers), Root(*upper) if upper else None, work)
    memory, device, files, resumable = state["kept"]
    kept = Kept(memory, device, {int(number): fd for number, fd in files.items()}, resumable)
    record = MountRecord(**state["record"])
    options = parse([record.options])
    options = options._replace(stack=options.stack._replace(titles=tuple(state["titles"])), front=record.front)
    mount = Mount(
        KernelFront(),
        os.fsencode(record.mountpoint),
        options,
        Held(locks, roots),
        Registration(record, state["registration"]),
    )
    if "--check" in sys.argv:
        return
    for fd in [*locks, *roots.fds, state["registration"], memory, device, *kept.files.values()]:
        os.set_inheritable(fd, False)
    daemon.log_to_system()
    mount.run(daemon.Readiness(None), kept)


if __name__ == "__main__":
    main()
