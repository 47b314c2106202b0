"""What does `browse` do on a real terminal, and what does it say where there is none?"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.images.builders import docker_save, layer
from tests.places import BIN, MINUTE, ROOT, fails, run

# Any escape sequence, so that only the text stays.
_ESCAPE = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|[()][A-B0]|[=>78]|\][^\x07\x1b]*(\x07|\x1b\\))")


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """A store with the image test:1."""
    archive, store = tmp_path / "test.tar", tmp_path / "store"
    archive.write_bytes(docker_save([layer({"motd": "hello"}), layer({"other": "12"})]))
    assert run("overlayfs-demo", "load", "--store", store, archive).returncode == 0
    return store


class Terminal:
    """A program on a terminal of 80 columns and 24 rows."""

    def __init__(self, process: subprocess.Popen[bytes], ours: int) -> None:
        self.process = process
        self._ours = ours
        self.written = ""

    def type(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def read(self) -> bool:
        """Read more, for at most a second; False at the end."""
        ready, _, _ = select.select([self._ours], [], [], 1)
        try:
            data = os.read(self._ours, 1 << 16) if ready else b""
        except OSError:  # EIO: nobody has the terminal any more.
            return False
        self.written += data.decode(errors="replace")
        return True

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + MINUTE
        while text not in _ESCAPE.sub("", self.written):
            assert time.monotonic() < deadline and self.read(), self.written

    def end(self) -> int:
        """The exit status, once the program has ended."""
        while self.process.poll() is None:
            self.read()
        while select.select([self._ours], [], [], 0)[0] and self.read():
            pass
        return self.process.wait(MINUTE)

    def settings(self) -> list[object]:
        return termios.tcgetattr(self._ours)


@contextmanager
def terminal(store: Path, **environment: str) -> Iterator[Terminal]:
    """`browse test:1` on a terminal."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    settings = {**os.environ, "TERM": "xterm-256color", **environment}
    words: list[str | Path] = [BIN / "overlayfs-demo", "browse", "--store", store, "test:1"]
    process = subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=theirs, env=settings, start_new_session=True)
    try:
        yield Terminal(process, ours)
    finally:
        process.kill()
        process.wait()
        os.close(theirs)
        os.close(ours)


def test_a_person_browses_and_leaves_the_terminal_as_it_was(stored: Path) -> None:
    pytest.importorskip("textual")
    with terminal(stored) as shown:
        before = shown.settings()
        shown.wait_for("other")
        shown.wait_for("q quit")
        shown.type("c")
        shown.wait_for("changes only")
        shown.type("q")
        assert shown.end() == 0
        assert shown.settings() == before
        # The alternate screen is left, the cursor is shown, and the mouse is the terminal's again.
        assert shown.written.rindex("\x1b[?1049l") > shown.written.rindex("\x1b[?1049h")
        assert shown.written.rindex("\x1b[?25h") > shown.written.rindex("\x1b[?25l")
        assert shown.written.rindex("\x1b[?1000l") > shown.written.rindex("\x1b[?1000h")


def test_sigterm_leaves_the_terminal_as_it_was(stored: Path) -> None:
    pytest.importorskip("textual")
    with terminal(stored) as shown:
        before = shown.settings()
        shown.wait_for("q quit")
        shown.process.send_signal(signal.SIGTERM)
        assert shown.end() == 128 + signal.SIGTERM
        assert shown.settings() == before
        assert "Traceback" not in shown.written
        assert shown.written.rindex("\x1b[?1049l") > shown.written.rindex("\x1b[?1049h")


def test_without_colours_the_letters_stay(stored: Path) -> None:
    pytest.importorskip("textual")
    with terminal(stored, NO_COLOR="1") as shown:
        shown.wait_for("q quit")
        shown.wait_for("A 2")
        shown.type("q")
        assert shown.end() == 0
        colours = re.compile(r"\x1b\[[0-9;]*\b(3[1-7]|4[1-7]|[34]8;[25])\b[0-9;]*m")
        assert not colours.search(shown.written)


def test_a_dumb_terminal_is_refused_in_one_line(stored: Path) -> None:
    with terminal(stored, TERM="dumb") as shown:
        assert shown.end() == 2
        (line,) = " ".join(shown.written.split()).split("overlayfs-demo: ")[1:]
        assert "TERM says that this one cannot" in line


def test_without_a_terminal_it_says_what_prints_to_a_pipe(stored: Path) -> None:
    fails(run("overlayfs-demo", "browse", "--store", stored, "test:1"), "needs a terminal", "'analyze'", status=2)


def test_a_missing_library_is_named_with_its_remedy(stored: Path) -> None:
    script = (
        "import sys; sys.modules['textual'] = None\n"
        "from overlayfs_demo.cli import browse, main\n"
        "browse._require_terminal = lambda: None\n"
        "sys.exit(main.main())"
    )
    done = run(sys.executable, "-c", script, "browse", "--store", stored, "test:1", cwd=ROOT)
    fails(done, "the browser needs the Python package textual: pip install 'overlayfs-demo[browse]'")


def test_what_is_neither_a_view_nor_an_image_is_named(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from overlayfs_demo.cli import browse

    monkeypatch.setattr(browse, "_require_terminal", lambda: None)
    fails(run("overlayfs-demo", "browse", "--store", stored, "nothing:1"), "nothing:1", "no view is mounted there")
    fails(run("overlayfs-demo", "browse", "--store", stored, "/"), "/ is not in a view")
