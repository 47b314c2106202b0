"""Does a lecture show both sides in one terminal, and is nothing left of it, however it ends?"""

from __future__ import annotations

import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from overlayfs_demo.errors import OverlayError
from overlayfs_demo.store.containers import Containers
from overlayfs_demo.store.store import Store
from overlayfs_demo.tour import split_terminal
from overlayfs_demo.tour.nesting import LAB, LECTURE
from overlayfs_demo.ui.console import PROGRAM
from tests import builders
from tests.conftest import wait_until
from tests.places import MINUTE, fails, run, teaching_image
from tests.terminal import Terminal

needs_tmux = pytest.mark.skipif(not shutil.which("tmux"), reason="needs tmux")
BOTH = r"lecture\$[\s\S]*layer 2: app|layer 2: app[\s\S]*lecture\$"
IMAGE = "overlayfs-demo/teaching:1.0"


def processes(where: Path, name: str = "") -> list[psutil.Process]:
    """What runs for lectures whose stage is in this directory: tmux, the shell, `watch`, daemons."""
    found = []
    for process in psutil.process_iter(["cmdline", "name"]):
        if str(where) in " ".join(process.info["cmdline"] or ()) and process.info["name"].startswith(name):
            found.append(process)
    return found


@pytest.fixture
def place(temporary: Path) -> Iterator[Path]:
    """Where lectures have their stage: nothing is left there, nothing mounted, and nothing runs."""
    yield temporary
    wait_until(lambda: not processes(temporary), "everything ends")


@pytest.fixture
def screen(place: Path) -> Iterator[Terminal]:
    """A lecture on the small stack, which shows both sides."""
    with Terminal("lecture") as terminal:
        terminal.shows(BOTH)
        yield terminal


@needs_tmux
def test_change_on_the_left_is_told_on_the_right(screen: Terminal) -> None:
    screen.press("echo hello > merged/ne''w; cat upper/new\r")
    screen.shows("hello")
    screen.shows("created file /new|/new")
    screen.press("exit\r")
    screen.ends(0)


@needs_tmux
def test_q_on_the_right_ends_it(screen: Terminal) -> None:
    screen.press("\x1bOQ")  # F2
    screen.press("q")
    screen.ends(0)


@needs_tmux
def test_detaching_ends_it(screen: Terminal) -> None:
    screen.press("\x02d")
    screen.ends(0)


@needs_tmux
def test_work_in_the_view_does_not_keep_it(screen: Terminal) -> None:
    screen.press("cd merged; sleep 10 < readme & echo star''ted\r")
    screen.shows("started")
    screen.press("exit\r")
    screen.ends(0)


@needs_tmux
def test_closed_terminal_ends_it(screen: Terminal) -> None:
    screen.close()
    screen.process.wait(MINUTE)


@needs_tmux
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 130)])
def test_signal_ends_it(screen: Terminal, number: int, status: int) -> None:
    screen.process.send_signal(number)
    screen.ends(status)


@needs_tmux
def test_killed_server_ends_it_and_leaves_the_second_screen(place: Path, screen: Terminal) -> None:
    (server,) = (process for process in processes(place, "tmux: server"))
    server.kill()
    screen.ends(0)
    assert screen.written.rindex("\x1b[?1049l") >= 0


@needs_tmux
def test_a_path_too_long_for_the_socket_is_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = place / ("d" * 100)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with Terminal("lecture") as screen:
        screen.ends(1)
    assert "is too long for a socket: set TMPDIR to a shorter one" in " ".join(screen.text.split())
    deep.rmdir()  # Nothing is left in it.


@needs_tmux
def test_killed_lecture_leaves_nothing(place: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    assert run(PROGRAM, "load", "--store", store, teaching_image(tmp_path / "image.tar")).returncode == 0
    with Terminal("lecture", "--store", store, IMAGE) as screen:
        screen.shows(r"lecture\$")
        screen.press("echo hello > merged/new; cat up''per/new\r")
        screen.shows("hello")
        screen.process.kill()
        screen.process.wait(MINUTE)
        wait_until(lambda: not processes(place), "everything ends")
        wait_until(lambda: not list(place.iterdir()), "the stage is removed")
    assert Containers(Store(store)).all() == []


@needs_tmux
def test_lecture_on_an_image_leaves_no_container(place: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    assert run(PROGRAM, "load", "--store", store, teaching_image(tmp_path / "image.tar")).returncode == 0
    with Terminal("lecture", "--store", store, IMAGE) as screen:
        screen.shows(r"lecture\$")
        screen.shows(r"layer 4 +0B  RUN rm")
        assert [found.name for found in Containers(Store(store)).all()] == ["lecture"]
        screen.press("echo hello > merged/new; cat up''per/new\r")
        screen.shows("hello")
        screen.press("overlayfs-demo diff lecture\r")
        screen.shows("A /new")
        screen.press("exit\r")
        screen.ends(0)
    assert Containers(Store(store)).all() == []


@needs_tmux
@pytest.mark.parametrize("own_upper", [True, False])
def test_lecture_on_options_keeps_only_an_upper_that_they_name(place: Path, tmp_path: Path, own_upper: bool) -> None:
    base = tmp_path / "own"
    builders.directories(base, "low", "up", "work")
    (base / "low/motd").write_text("hello\n")
    upper = f",upperdir={base}/up,workdir={base}/work" if own_upper else ""
    with Terminal("lecture", "-o", f"lowerdir={base}/low{upper}") as screen:
        screen.shows(r"lecture\$")
        screen.press("echo more >> merged/motd; cat up''per/motd\r")
        screen.shows("hello\\s+more|more")
        screen.press("exit\r")
        screen.ends(0)
    assert (base / "up/motd").exists() == own_upper
    assert (base / "low/motd").read_text() == "hello\n"


@needs_tmux
def test_wrong_subject_is_one_line_and_leaves_nothing(place: Path, tmp_path: Path) -> None:
    for words, said in (
        (("--store", tmp_path / "store", "none:1.0"), "none:1.0"),
        (("-o", "lowerdir=/nowhere"), "/nowhere"),
    ):
        with Terminal("lecture", *words) as screen:
            screen.shows("overlayfs-demo: ")
            screen._read(lambda: screen.process.poll() is not None, "the end")
            assert screen.process.returncode == 1 and said in screen.text


@needs_tmux
@pytest.mark.parametrize("variable", [LAB, LECTURE])
def test_lecture_does_not_begin_inside_another(place: Path, variable: str) -> None:
    with Terminal("lecture", settings={variable: "1"}) as screen:
        screen.shows("'lecture' does not start in the shell of a")
        screen.ends(2)


def test_without_tmux_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(OverlayError, match="apt install tmux"):
        split_terminal.check_tmux()


def test_without_a_terminal_it_says_so() -> None:
    fails(run(PROGRAM, "lecture"), "a lecture needs a terminal", status=2)


def test_a_terminal_that_cannot_place_its_cursor_is_named_with_what_works_there(place: Path) -> None:
    with Terminal("lecture", settings={"TERM": "dumb"}) as screen:
        screen.shows(r"a lecture needs a terminal that can place its cursor[\s\S]*'watch'")
        screen.ends(2)


@needs_tmux
def test_boxes_have_corners_in_a_locale_without_utf_8(place: Path) -> None:
    with Terminal("lecture", settings={"LC_ALL": "C"}) as screen:
        screen.shows(r"lecture\$")
        screen.shows("╭")
        screen.press("exit\r")
        screen.ends(0)
