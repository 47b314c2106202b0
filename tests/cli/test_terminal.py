"""What does a person at a terminal see, and is it what a pipe gets?"""

from __future__ import annotations

import errno
import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from overlayfs_demo.ui.console import PROGRAM
from tests.command import started
from tests.conftest import unmount_all, why_no_mounts
from tests.images.builders import WHITEOUT, docker_save, layer
from tests.places import BIN, MINUTE, run, teaching_image

IMAGE = "overlayfs-demo/teaching:1.0"
STYLE = re.compile(r"\x1b\[[0-9;]*m")
# From hiding the cursor to showing it again.
BAR = re.compile(r"\x1b\[\?25l.*(layer|writing) .*\x1b\[\?25h", re.DOTALL)
# No table of these images is wider.
WIDE = 400
LONG = "registry.example.com/a-team/with/quite-a-long-name/and-an-application-of-it"
TABLES = (
    ("images",),
    ("images", "--no-trunc"),
    # Of longer steps, a wide terminal shows more than a pipe.
    ("history", "odd:1"),
    ("history", "--layers", "odd:1"),
    ("history", "--no-trunc", IMAGE),
    ("layers",),
    ("df",),
    ("analyze", IMAGE),
    ("ghosts", IMAGE),
    ("ps",),
    ("diff", f"{IMAGE}@1", f"{IMAGE}@3"),
    ("diff", "--content", f"{IMAGE}@1", f"{IMAGE}@3"),
    ("which", "--image", IMAGE, "/etc/motd"),
)


def _process(words: Sequence[str | Path], environment: Mapping[str, str], **streams: int) -> subprocess.Popen[bytes]:
    if words[0] == PROGRAM:
        return started(words[1:], environment, **streams)
    return subprocess.Popen([str(word) for word in words], env=environment, **streams)  # type: ignore[call-overload,no-any-return]


def on_terminal(*words: str | Path, columns: int = WIDE, stderr: bool = False, **settings: str) -> str:
    """What a command writes on a terminal: its stdout, or its stderr and the stdout goes nowhere."""
    ours, theirs = pty.openpty()
    # Rows, columns, and pixels, which nobody asks for.
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    mode = termios.tcgetattr(theirs)
    mode[1] &= ~termios.OPOST  # A newline stays one.
    termios.tcsetattr(theirs, termios.TCSANOW, mode)
    environment: Mapping[str, str] = {
        **{name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")},
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "LC_ALL": "C.UTF-8",
        "TERM": "xterm-256color",
        **settings,
    }
    streams = {"stdout": subprocess.DEVNULL, "stderr": theirs} if stderr else {"stdout": theirs}
    with _process(words, environment, **streams) as process:
        os.close(theirs)
        written = bytearray()
        try:
            while data := os.read(ours, 1 << 16):
                written += data
        except OSError as error:
            # Nobody has the terminal any more.
            assert error.errno == errno.EIO
        os.close(ours)
        assert process.wait(MINUTE) == 0, written
    return written.decode()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("terminal")
    teaching_image(where / "image.tar")
    (where / "odd.tar").write_bytes(
        docker_save(
            [
                layer([("[red]x[/]", "1"), ("caf\udce9", "1"), ("\x1b[31m", "1"), (":smile:", "1")]),
                layer({"宽宽": "1"}),
            ],
            "odd:1",
        )
    )
    (where / "long.tar").write_bytes(
        docker_save(
            [layer({"usr/share/" + "deep/" * 20 + "file": "x" * 2000}), layer({"usr": WHITEOUT})], f"{LONG}:1.0"
        )
    )
    for name in ("image.tar", "odd.tar", "long.tar"):
        loaded = run("overlayfs-demo", "load", "--store", where / "store", where / name)
        assert loaded.returncode == 0, loaded.stderr
    return where / "store"


@pytest.mark.parametrize("words", TABLES, ids=" ".join)
def test_a_terminal_shows_what_a_pipe_gets_with_styles_around_it(store: Path, words: tuple[str, ...]) -> None:
    command: tuple[str | Path, ...] = ("overlayfs-demo", words[0], "--store", store, *words[1:])
    shown, piped = on_terminal(*command), run(*command)
    assert piped.returncode == 0 and "\x1b" not in piped.stdout
    assert STYLE.sub("", shown) == piped.stdout
    assert STYLE.search(shown)


NARROW = (
    *((*words, image) for image in (IMAGE, f"{LONG}:1.0") for words in (("history",), ("history", "--layers"))),
    *((*words, image) for image in (IMAGE, f"{LONG}:1.0") for words in (("analyze", "--all"), ("ghosts",))),
    ("images",),
    ("layers",),
    ("df",),
    ("ps",),
    ("which", "--image", IMAGE, "/etc/motd"),
    ("which", "--image", f"{LONG}:1.0", "-l", "/"),
    ("tour", "--list"),
    ("lab", "--list"),
    ("manual", "--list"),
)


@pytest.mark.parametrize("width", [80, 200])
@pytest.mark.parametrize("words", NARROW, ids=" ".join)
def test_no_line_of_a_table_is_longer_than_the_terminal(store: Path, words: tuple[str, ...], width: int) -> None:
    command = ("overlayfs-demo", *words)
    shown = STYLE.sub("", on_terminal(*command, columns=width, OVERLAYFS_DEMO_STORE=str(store)))
    assert shown.count("\n") > 0
    assert [line for line in shown.splitlines() if len(line) > width] == []


def test_build_layers_has_a_line_for_each_layer(store: Path, tmp_path: Path) -> None:
    command = ("build-layers", store.parent / "image.tar")
    shown = on_terminal(*command, tmp_path / "shown", columns=80).splitlines()
    piped = run(*command, tmp_path / "piped").stdout.splitlines()
    assert [line[:40] for line in shown[:-1]] == [line[:40] for line in piped[:-1]]
    assert max(map(len, shown[:-1])) <= 80
    assert shown[-1].startswith("lowerdir=")


def test_a_terminal_of_80_columns_keeps_what_the_layers_of_a_step_are(store: Path) -> None:
    shown = STYLE.sub("", on_terminal("overlayfs-demo", "history", "--layers", "--store", store, IMAGE, columns=80))
    header = shown.splitlines()[0]
    assert header.split("  ")[0] == "CREATED BY" and "DIFF ID" in header and "WHITEOUTS" in header


def test_names_are_shown_literally(store: Path) -> None:
    command = ("overlayfs-demo", "diff", "--store", store, f"{IMAGE}@1", "odd:1")
    shown = STYLE.sub("", on_terminal(*command))
    assert shown == run(*command).stdout
    for name in ("/[red]x[/]", "/:smile:", "/宽宽"):
        assert f"A {name}\n" in shown
    assert "\x1b" not in shown and "/caf" in shown


def test_headers_are_bold_and_waste_is_red(store: Path) -> None:
    shown = on_terminal("overlayfs-demo", "analyze", "--store", store, IMAGE)
    assert shown.startswith("\x1b[1mLAYER")
    assert "\x1b[31m1.5MB\x1b[0m" in shown
    assert "\x1b[31m3MB\x1b[0m" in shown and "\x1b[2m0B\x1b[0m" in shown


def test_kinds_of_change_have_colours(store: Path) -> None:
    shown = on_terminal("overlayfs-demo", "diff", "--store", store, f"{IMAGE}@3", IMAGE)
    assert "\x1b[31mD\x1b[0m /root/.cache" in shown


def test_no_color_and_a_dumb_terminal_are_respected(store: Path) -> None:
    command = ("overlayfs-demo", "analyze", "--store", store, IMAGE)
    assert "\x1b[31m" not in on_terminal(*command, NO_COLOR="1")
    assert on_terminal(*command, TERM="dumb") == run(*command).stdout


def test_json_has_no_styles(store: Path) -> None:
    command = ("overlayfs-demo", "images", "--store", store, "--json")
    assert on_terminal(*command) == run(*command).stdout


# --- long work -------------------------------------------------------------------------------------


def test_a_bar_tells_how_far_a_load_is_and_goes_away(store: Path, tmp_path: Path) -> None:
    told = on_terminal("overlayfs-demo", "load", "--store", tmp_path / "new", store.parent / "image.tar", stderr=True)
    assert "layer 4 of 4" in told
    assert told.endswith("\x1b[?25h\r\x1b[1A\x1b[2K"), "the cursor is shown again, and the line taken away"


def test_a_quiet_load_shows_no_bar(store: Path, tmp_path: Path) -> None:
    archive = store.parent / "image.tar"
    told = on_terminal("overlayfs-demo", "load", "--quiet", "--store", tmp_path / "new", archive, stderr=True)
    assert told == ""


def test_an_archive_is_the_same_with_a_bar_beside_it(store: Path, tmp_path: Path) -> None:
    if problem := why_no_mounts():
        pytest.skip(problem)
    assert run("overlayfs-demo", "create", "--store", store, IMAGE, "--name", "c1").returncode == 0
    try:
        for words in (("save", IMAGE), ("export", "c1")):
            command = ("overlayfs-demo", words[0], "--store", store, *words[1:], "--output")
            assert BAR.search(on_terminal(*command, tmp_path / "bar.tar", stderr=True))
            assert run(*command, tmp_path / "plain.tar").returncode == 0
            assert (tmp_path / "bar.tar").read_bytes() == (tmp_path / "plain.tar").read_bytes()
        assert BAR.search(on_terminal("overlayfs-demo", "commit", "--store", store, "c1", "made:1", stderr=True))
    finally:
        unmount_all(str(store))
        assert run("overlayfs-demo", "rm", "--store", store, "c1").returncode == 0


def test_a_bar_beside_an_archive_on_stdout_leaves_it_whole(store: Path, tmp_path: Path) -> None:
    script = f"overlayfs-demo save --store {store} {IMAGE} > {tmp_path / 'piped.tar'}"
    assert BAR.search(on_terminal("sh", "-c", script, stderr=True))
    assert run("overlayfs-demo", "save", "--store", store, IMAGE, "-o", tmp_path / "plain.tar").returncode == 0
    assert (tmp_path / "piped.tar").read_bytes() == (tmp_path / "plain.tar").read_bytes()


def test_a_bar_goes_away_when_the_load_fails(tmp_path: Path, store: Path) -> None:
    whole = (store.parent / "image.tar").read_bytes()
    (tmp_path / "bad.tar").write_bytes(whole.replace(b"Welcome", b"welcome"))
    script = f"overlayfs-demo load --store {tmp_path / 'new'} {tmp_path / 'bad.tar'} || true"
    told = on_terminal("sh", "-c", script, stderr=True)
    assert "\x1b[?25h\r\x1b[1A\x1b[2Koverlayfs-demo: " in told and told.count("\noverlayfs-demo: ") == 0


def test_a_dumb_terminal_is_told_nothing(store: Path, tmp_path: Path) -> None:
    command = ("overlayfs-demo", "load", "--store", tmp_path / "new", store.parent / "image.tar")
    assert on_terminal(*command, stderr=True, TERM="dumb") == ""
