"""Keeps temporary files of the tests in memory, where many tests need a third of the time that they need on a disk.

Tests that ask for what only a disk's filesystem has are marked `on_disk`.
"""

from __future__ import annotations

import contextlib
import os
import tempfile

import pytest

from overlayfs_demo.linux import mounting

# In the environment: where temporary files would be if they were not in memory.
DISK = "OVERLAYFS_DEMO_TESTS_DISK"


class Memory:
    """A mount namespace for this process and its children, in which temporary files are in memory.

    They stay on the disk if a tmpfs cannot hold what an ordinary user's layers need, as before Linux 6.6: tmpfs(5).
    """

    def __init__(self, config: pytest.Config) -> None:
        """Raises OSError if the namespace cannot be made."""
        mounting.unshare(mounting.CLONE_NEWNS)
        mounting.mount(b"none", b"/", b"", mounting.MS_REC | mounting.MS_PRIVATE, b"")
        self._where = tempfile.mkdtemp(prefix="t")  # A short path, because sockets are made below it: unix(7).
        mounting.mount(b"tmpfs", os.fsencode(self._where), b"tmpfs", 0, b"mode=1777")
        try:
            os.setxattr(self._where, "user.test", b"")
            os.removexattr(self._where, "user.test")
        except OSError:
            self.close()
        else:
            os.environ[DISK] = tempfile.gettempdir()
            os.environ["TMPDIR"] = tempfile.tempdir = self._where
            # Short, like the path above.
            config.option.basetemp = config.option.basetemp or f"{self._where}/1"

    def close(self) -> None:
        with contextlib.suppress(OSError):  # It is closed already.
            mounting.unmount(os.fsencode(self._where), mounting.MNT_DETACH)
            os.rmdir(self._where)
