"""Can an ordinary user take the tour, do a lab and give a lecture?"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import mount_points, unmount_all, why_no_mounts_of_others
from tests.terminal import Terminal, solve_whiteout
from tests.test_ordinary_user import USER


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory of that user's, in which nothing is left, and nothing mounted."""
    if problem := why_no_mounts_of_others():
        pytest.skip(problem)
    if not shutil.which("fusermount3") or not shutil.which("setpriv"):
        pytest.skip("needs fusermount3 and setpriv")
    # Not below pytest's own, which nobody else may enter.
    base = Path(tempfile.mkdtemp(prefix="overlayfs-demo-test-"))
    os.chown(base, USER, USER)
    try:
        yield base
        assert mount_points(str(base)) == []
        assert set(os.listdir(base)) <= {"overlayfs-demo"}, "only the directory of records is left"
        assert [path.name for path in (base / "overlayfs-demo").glob("*.lab")] == []
    finally:
        unmount_all(str(base))
        shutil.rmtree(base)


def at_home(home: Path, *words: str) -> Terminal:
    settings = {"HOME": str(home), "TMPDIR": str(home), "XDG_RUNTIME_DIR": str(home)}
    return Terminal(*words, settings=settings, user=USER)


def test_ordinary_user_takes_the_tour(home: Path) -> None:
    with at_home(home, "tour", "1") as screen:
        screen.shows("Enter: go on")
        screen.press("\r")
        screen.shows("Enter: more|All hold")
        if "All hold" not in screen.text:
            screen.press("\r")
            screen.shows("All hold")
        screen.ends(0)


def test_ordinary_user_does_a_lab_and_is_checked_inside(home: Path) -> None:
    with at_home(home, "lab", "whiteout") as screen:
        solve_whiteout(screen)


@pytest.mark.skipif(not shutil.which("tmux"), reason="needs tmux")
def test_ordinary_user_gives_a_lecture(home: Path) -> None:
    with at_home(home, "lecture") as screen:
        screen.shows(r"lecture\$")
        screen.shows("layer 2: app")
        screen.press("echo hello > merged/ne''w; cat upper/new\r")
        screen.shows("hello")
        screen.press("exit\r")
        screen.ends(0)
