"""Is the teaching image a real image, and is what we save what Docker would?"""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import tarfile
from datetime import datetime
from functools import partial
from pathlib import Path

import pytest

from overlayfs_demo.images import sample_image
from overlayfs_demo.images.archive import open_archive
from overlayfs_demo.images.build import build_layers
from overlayfs_demo.images.docker_archive import LayerSource, write_archive
from overlayfs_demo.images.go_json import go_json
from overlayfs_demo.images.model import Config, Digest, Image, Layer
from overlayfs_demo.images.select import select_image
from tests.images.builders import config, is_whiteout, layer
from tests.images.test_real_archives import ARCHIVES, real_archive


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "teaching.tar"
    with path.open("wb") as out:
        sample_image.write_teaching_image(out)
    return path


def test_teaching_image_is_the_same_every_time(saved: Path) -> None:
    again = io.BytesIO()
    sample_image.write_teaching_image(again)
    assert again.getvalue() == saved.read_bytes()


def test_history_follows_the_teaching_dockerfile(saved: Path) -> None:
    with open_archive(saved) as archive:
        image = select_image(archive)
    assert image.tags == (sample_image.TAG,)
    assert [(step.instruction.split()[0], step.empty_layer) for step in image.history] == [
        ("ADD", False),
        ("LABEL", True),
        ("ENV", True),
        ("COPY", False),
        ("RUN", False),
        ("RUN", False),
        ("CMD", True),
    ]
    assert str(Config.parse(image.config, "config").platform) == "linux/amd64"


def test_each_step_of_a_long_image_is_made_a_second_after_the_one_before(tmp_path: Path) -> None:
    steps = [sample_image.Step(f"step {number}") for number in range(3700)]
    image = sample_image.write_image(io.BytesIO(), "long:1", steps, {})
    history = json.loads(image.config)["history"]
    made = [datetime.fromisoformat(row["created"]).timestamp() for row in history]
    assert made == [made[0] + second for second in range(3700)]


def test_layer_that_cleans_up_is_one_whiteout(saved: Path, tmp_path: Path) -> None:
    base, _, made, cleaned = (one.directory for one in build_layers(saved, tmp_path / "out"))
    assert [str(path.relative_to(cleaned)) for path in cleaned.rglob("*")] == ["root", "root/.cache"]
    assert is_whiteout(cleaned / "root/.cache")
    assert sum(path.stat().st_size for path in (made / "root/.cache").iterdir()) == 3_000_000
    assert (base / "bin/become").stat().st_mode & 0o7777 == 0o4755
    assert (base / "bin/greet").stat().st_ino == (base / "bin/hello").stat().st_ino


def test_other_tools_read_the_archive(saved: Path, tmp_path: Path) -> None:
    skopeo = shutil.which("skopeo")
    if skopeo is None:
        pytest.skip("skopeo is not installed")
    command = [skopeo, "copy", "--quiet", "--insecure-policy", f"docker-archive:{saved}", f"oci:{tmp_path / 'oci'}:x"]
    subprocess.run(command, check=True)
    tar = tmp_path / "oci.tar"
    subprocess.run(["tar", "-C", tmp_path / "oci", "-cf", tar, "."], check=True)
    one, two = (build_layers(path, tmp_path / path.stem) for path in (saved, tar))
    assert [layer.diff_id for layer in one] == [layer.diff_id for layer in two]


def test_layer_at_two_places_is_saved_once(tmp_path: Path) -> None:
    tar = layer({"a": "1"})
    image = Image(config([tar, tar]), (Layer(Digest.of(tar), ""),) * 2, tags=("x:1", "host:5000/y:2"))
    path = tmp_path / "image.tar"
    with path.open("wb") as out:
        write_archive(out, image, [LayerSource(len(tar), partial(io.BytesIO, tar))] * 2)
    assert path.stat().st_size < 2 * len(tar) + 10240
    assert len(build_layers(path, tmp_path / "out")) == 2


def test_json_is_written_as_go_writes_it() -> None:
    assert go_json({"a": "x && y <z> ü\u2028"}) == '{"a":"x \\u0026\\u0026 y \\u003cz\\u003e ü\\u2028"}'.encode()


def test_saving_a_real_image_gives_the_members_that_docker_wrote() -> None:
    original = real_archive(ARCHIVES[0])
    with open_archive(original) as archive:
        image = select_image(archive)
        tars = [archive.open_layer(one).tar.read() for one in image.layers]
    out = io.BytesIO()
    write_archive(out, image, [LayerSource(len(tar), partial(io.BytesIO, tar)) for tar in tars])
    assert _contents(io.BytesIO(out.getvalue())) == _contents(io.BytesIO(original.read_bytes()))


def _contents(file: io.BytesIO) -> list[tuple[str, int, bytes]]:
    with tarfile.open(fileobj=file) as tar:
        members = [(info.name, info.mtime, tar.extractfile(info)) for info in tar]
        return [(name, int(when), data.read() if data else b"") for name, when, data in members]
