"""The output of `explain` never goes to a file in a view."""

from __future__ import annotations

import os
import subprocess

import pytest

from tests.conftest import why_no_sandbox
from tests.places import BIN, MINUTE, Place


@pytest.fixture
def mounted(place: Place) -> Place:
    if problem := why_no_sandbox():
        pytest.skip(problem)
    assert place.mount().returncode == 0
    return place


def shell(place: Place, line: str) -> subprocess.CompletedProcess[str]:
    """Run a line of the shell, without a controlling terminal."""
    return subprocess.run(
        ["sh", "-c", line],
        cwd=place.base,
        env={**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=MINUTE,
        start_new_session=True,
    )


def test_output_to_a_file_in_a_view_is_refused_with_what_to_type(mounted: Place) -> None:
    done = shell(mounted, "overlayfs-demo explain echo hi > view/motd")
    assert done.returncode == 2
    assert f"the output goes to {mounted.view}/motd, which is in a view: the shell emptied it" in done.stderr
    assert f"sh -c 'echo hi > {mounted.view}/motd'\n" in done.stderr


def test_what_it_says_to_type_works(mounted: Place) -> None:
    said = shell(mounted, "overlayfs-demo explain echo hi >> view/motd").stderr
    done = shell(mounted, f"overlayfs-demo explain sh -c {said.rpartition('sh -c ')[2]}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("would write 3B to 1 file\n")
    assert (mounted.view / "motd").read_text() == "hello\n"


def test_appending_leaves_the_file_as_it_was(mounted: Place) -> None:
    done = shell(mounted, "overlayfs-demo explain echo hi >> view/motd")
    assert done.returncode == 2
    assert "the shell opened it" in done.stderr
    assert (mounted.view / "motd").read_text() == "hello\n"


def test_error_output_to_a_file_in_a_view_is_refused(mounted: Place) -> None:
    done = shell(mounted, "overlayfs-demo explain echo hi 2>> view/new")
    assert (done.returncode, done.stdout) == (2, "")
    assert "the error output goes to" in (mounted.view / "new").read_text()


def test_a_refusal_is_on_the_terminal_if_stderr_is_in_the_view(mounted: Place) -> None:
    line = "overlayfs-demo explain echo hi >> view/new 2>&1"
    done = shell(mounted, f"script --quiet --return --command '{line}' typescript")
    assert done.returncode == 2
    assert "the error output goes to" in (mounted / "typescript").read_text()
    assert (mounted.view / "new").read_text() == ""


def test_output_elsewhere_is_explained(mounted: Place) -> None:
    for target in ("plain", "/dev/null"):
        assert shell(mounted, f"overlayfs-demo explain rm view/motd > {target}").returncode == 0
    assert "would create 1 whiteout" in (mounted / "plain").read_text()
