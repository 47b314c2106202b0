"""What may every test of images ask for?"""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from tests.images.builders import Members, layer
from tests.images.splitting import Split, SplitTar, split_stream


@pytest.fixture
def split(tmp_path: Path) -> SplitTar:
    """Unpack and record this layer (members, or a tar's bytes) on the one unpacked before it, if any."""
    done: list[Path] = []

    def run(content: Members | bytes) -> Split:
        data = content if isinstance(content, bytes) else layer(content)
        made = split_stream(io.BytesIO(data), tmp_path / f"layer-{len(done)}", done)
        done.append(made.top)
        return made

    return run
