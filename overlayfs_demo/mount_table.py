"""What is mounted in this process's mount namespace?"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple


class Mounted(NamedTuple):
    """One mount: where, of which type, and the options of its filesystem as it lists them, still escaped."""

    mountpoint: bytes
    kind: str
    options: tuple[str, ...]


def mounts() -> list[Mounted]:
    """All mounts, in the order they were made: proc_pid_mountinfo(5)."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        fields, _, rest = line.partition(" - ")
        kind, _, options = rest.split(" ")
        found.append(Mounted(unescape(fields.split(" ")[4]), kind, tuple(options.split(","))))
    return found


def unescape(text: str) -> bytes:
    """Undo the octal escapes (`\\040` for a blank) by which the kernel keeps such a list readable."""
    return re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), os.fsencode(text))
