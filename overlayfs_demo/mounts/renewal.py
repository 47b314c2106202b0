"""Renewal: the program that is installed now takes the place of a supervisor that began with an older one.

The process stays the same (execve(2)), and so do its descriptors. What they are for goes through a file in memory,
which `renewed` reads.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Sequence

from overlayfs_demo.mounts.held import Held
from overlayfs_demo.mounts.registry import Registration
from overlayfs_demo.mounts.supervisor import Kept

# -P: modules come from where they are installed, not from the working directory.
_PROGRAM = [sys.executable, "-P", "-m", "overlayfs_demo.mounts.renewed"]

_log = logging.getLogger(__name__)


def replace_process(titles: Sequence[str], held: Held, registration: Registration, kept: Kept) -> None:
    """Execute the program that is installed now. Returns only if that is impossible; then it is logged."""
    state = {
        "titles": titles,
        "held": held,
        "registration": registration.fd,
        "record": registration.record._asdict(),
        "kept": kept,
    }
    fds = [*held.locks, *held.roots.fds, registration.fd, kept.memory, *kept.files.values()]
    with contextlib.ExitStack() as opened:
        try:
            state_fd = os.memfd_create("overlayfs-demo-state", 0)
            opened.callback(os.close, state_fd)
            os.write(state_fd, json.dumps(state).encode())
            program = [*_PROGRAM, str(state_fd)]
            subprocess.run([*program, "--check"], stdin=subprocess.DEVNULL, pass_fds=[state_fd], check=True)
            for fd in [*fds, kept.device]:
                if fd is not None:
                    os.set_inheritable(fd, True)
            os.execv(sys.executable, program)
        except (OSError, subprocess.CalledProcessError) as error:
            _log.error("the installed program cannot go on with this view, so the present one does: %s", error)
