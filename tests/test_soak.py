"""Does the soak test run, and does it see what grows?"""

from __future__ import annotations

from pathlib import Path

import pytest

from soaking import load, main, takeover
from soaking.figures import LEAST, Figures, growing
from tests.conftest import why_no_mounts

LEVEL = Figures(descriptors=80, rss=20_000, nodes=1000, threads=10)


@pytest.mark.parametrize("name", Figures._fields)
def test_figure_that_grows_is_named(name: str) -> None:
    step = {"descriptors": 20, "rss": 3000, "nodes": 150, "threads": 8}[name]
    samples = [LEVEL._replace(**{name: getattr(LEVEL, name) + number * step}) for number in range(3 * LEAST)]
    assert growing(samples) == [name]


def test_level_figures_and_those_that_fill_caches_first_are_not_growing() -> None:
    filling = [LEVEL._replace(rss=number * 5000) for number in range(4)]
    level = [LEVEL._replace(descriptors=80 + number % 7) for number in range(8)]
    assert growing([*filling, *level]) == []


def test_soak_of_a_few_seconds_uses_the_view_in_every_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    if problem := why_no_mounts():
        pytest.skip(problem)
    monkeypatch.setattr(main, "growing", lambda _: [])  # After so short a time that says nothing.
    status = main.main(["--minutes", "0.05", "--seed", "1", "--directory", str(tmp_path)])
    told = capfd.readouterr()
    assert "failed" not in told.err
    assert status == 0, told.err
    assert told.out.startswith("seed 1\n") and told.out.count("descriptors") >= LEAST
    assert list(tmp_path.iterdir()) == []


def test_soak_of_the_takeover_kills_daemons_and_nobody_notices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    if problem := why_no_mounts():
        pytest.skip(problem)
    for name in ("overlayfs_demo", "tests"):
        (tmp_path / "source" / name).mkdir(parents=True)
        for number in range(10):
            (tmp_path / "source" / name / f"{number}").write_text(f"{number}\n" * 1000)
    monkeypatch.setattr(takeover, "_ROOT", tmp_path / "source")
    (tmp_path / "soak").mkdir()
    status = main.main(["takeover", "--minutes", "0.03", "--directory", str(tmp_path / "soak")])
    told = capfd.readouterr()
    assert status == 0, told.err
    assert "kills; rounds:" in told.out
    assert list((tmp_path / "soak").iterdir()) == []


def test_kind_of_use_that_fails_fails_the_soak(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    if problem := why_no_mounts():
        pytest.skip(problem)

    def broken(*_: object) -> None:
        raise OSError("broken")

    monkeypatch.setattr(load, "KINDS", (broken,))
    assert main.main(["--minutes", "0.02", "--directory", str(tmp_path)]) == 1
    assert "failed: broken" in capfd.readouterr().err
