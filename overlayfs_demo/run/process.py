"""The description of a process to run in a container."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Process:
    """What to run. `root` is the view's mount point, and all other paths are as seen in the container.

    `filesystem` is the device number of the view (st_dev): nothing else may be at the mount point.

    `user` is NAME or UID, perhaps with :GROUP; "" is root. `makes_directory`: make the working directory if it is
    missing. `devices`: the image's devices work. `terminal`: it gets a terminal.
    """

    root: str
    filesystem: int
    command: tuple[str, ...]
    environment: Mapping[str, str]
    directory: str
    user: str
    hostname: str
    makes_directory: bool
    devices: bool
    terminal: bool

    def to_file(self) -> int:
        """Return a descriptor of a file in memory that holds this; the caller owns it."""
        fd = os.memfd_create("process")
        with os.fdopen(os.dup(fd), "wb") as file:
            file.write(json.dumps(asdict(self)).encode())
        return fd

    @classmethod
    def from_file(cls, fd: int) -> Process:
        """Return what `to_file` wrote, and close the descriptor."""
        os.lseek(fd, 0, os.SEEK_SET)
        with os.fdopen(fd, "rb") as file:
            fields = json.load(file)
        return cls(**{**fields, "command": tuple(fields["command"])})
