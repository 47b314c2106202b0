"""The verb `sample`, which writes the teaching image."""

from __future__ import annotations

import io
from pathlib import Path

from overlayfs_demo.images import sample_image
from tests.places import run


def test_it_is_the_teaching_image(tmp_path: Path) -> None:
    done = run("overlayfs-demo", "sample", tmp_path / "image.tar")
    assert (done.returncode, done.stdout) == (0, "")
    assert "overlayfs-demo/teaching:1.0, 4 layers" in done.stderr
    expected = io.BytesIO()
    sample_image.write_teaching_image(expected)
    assert (tmp_path / "image.tar").read_bytes() == expected.getvalue()


def test_place_that_cannot_be_written_is_one_line_and_status_1(tmp_path: Path) -> None:
    done = run("overlayfs-demo", "sample", tmp_path / "nowhere" / "image.tar")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and "No such file or directory" in done.stderr


def test_file_is_required() -> None:
    assert run("overlayfs-demo", "sample").returncode == 2
