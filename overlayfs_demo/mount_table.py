"""What is mounted, in this process's mount namespace or another's?"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple


class Mounted(NamedTuple):
    """One mount: where, the device number (`major:minor`) and type of its filesystem, and the options that this
    lists, still escaped."""

    mountpoint: bytes
    device: str
    kind: str
    options: tuple[str, ...]


def mounts(process: int | str = "self") -> list[Mounted]:
    """All mounts that a process sees, in the order they were made: proc_pid_mountinfo(5). Raises OSError."""
    found = []
    for line in Path(f"/proc/{process}/mountinfo").read_text(errors="surrogateescape").splitlines():
        fields, _, rest = line.partition(" - ")
        kind, _, options = rest.split(" ")
        _, _, device, _, mountpoint, *_ = fields.split(" ")
        found.append(Mounted(unescape(mountpoint), device, kind, tuple(options.split(","))))
    return found


def unescape(text: str) -> bytes:
    """Undo the octal escapes (`\\040` for a blank) by which the kernel keeps such a list readable."""
    return re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), os.fsencode(text))
