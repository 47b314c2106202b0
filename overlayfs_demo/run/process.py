"""The description of a process to run in a container."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Process:
    """What to run. `root` is the view's mount point, and all other paths are as seen in the container.

    `user` is NAME or UID, perhaps with :GROUP; "" is root. `makes_directory`: make the working directory if it is
    missing. `devices`: the image's devices work.
    """

    root: bytes
    command: tuple[str, ...]
    environment: Mapping[str, str]
    directory: str
    user: str
    hostname: str
    makes_directory: bool
    devices: bool
