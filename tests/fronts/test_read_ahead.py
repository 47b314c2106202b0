"""How much does the kernel ask for at once?"""

from __future__ import annotations

import os
from pathlib import Path

from overlayfs_demo.linux import mountinfo
from tests.places import Place


def test_kernel_may_read_a_mebibyte_ahead(place: Place) -> None:
    assert place.mount("--front", "kernel").returncode == 0
    mounted = mountinfo.top(os.fsencode(place.view))
    assert mounted is not None
    assert Path(f"/sys/class/bdi/{mounted.device}/read_ahead_kb").read_text() == "1024\n"
