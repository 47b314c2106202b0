"""What may every test of images ask for?"""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from overlayfs_demo.images.build import build_layers
from tests.images.builders import Build, Members, docker_save, layer
from tests.images.splitting import Split, SplitTar, split_stream


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """Build an image of these layers in `tmp_path`/out."""

    def run(*layers: Members | bytes) -> list[Path]:
        path = tmp_path / "image.tar"
        path.write_bytes(docker_save([one if isinstance(one, bytes) else layer(one) for one in layers]))
        return [one.directory for one in build_layers(path, tmp_path / "out")]

    return run


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
