"""A soak of a store: processes load, commit, create, tag, remove and prune at once, and are killed at random.

Every image that is listed must be what was loaded, and the kernel must be able to mount it.
"""

from __future__ import annotations

from pathlib import Path

from overlayfs_demo.linux import mounting
from tests.store.stress import stress

_PROCESSES = 8


def soak(base: Path, seconds: float, seed: int) -> list[str]:
    """Use a store in an empty directory for so long. Return what was wrong."""
    # The mounts that try the images stay in this process's own namespace.
    mounting.unshare(mounting.CLONE_NEWNS)
    mounting.mount(b"none", b"/", b"", mounting.MS_REC | mounting.MS_PRIVATE, b"")
    counts = stress(base, seconds, seed, _PROCESSES)
    print(counts)
    return list(counts.wrong)
