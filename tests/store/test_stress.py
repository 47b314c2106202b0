"""Are all listed images whole while processes that load, commit, create, remove and prune are killed?"""

from __future__ import annotations

import os
from pathlib import Path

from tests.images.builders import needs_root
from tests.store.stress import stress

SECONDS = 4


@needs_root
def test_what_is_listed_is_whole_whoever_is_killed(tmp_path: Path) -> None:
    seed = int.from_bytes(os.urandom(4))
    print(f"seed {seed}")
    counts = stress(tmp_path, SECONDS, seed)
    print(counts)
    assert counts.wrong == []
    assert counts.kills
    assert counts.images
