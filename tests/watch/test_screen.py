"""What does a person see who watches on a terminal, and is the terminal the same afterwards?"""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import select
import signal
import struct
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from overlayfs_demo.events import Action, Event
from overlayfs_demo.mounts.control.protocol import Happened
from overlayfs_demo.mounts.layer_facts import Count, LayerFacts, unwalked, walked
from overlayfs_demo.mounts.registry import MountRecord
from overlayfs_demo.watch.screen import drawing, visible
from overlayfs_demo.watch.state import Choice, Line, Scene, State
from tests import builders
from tests.command import started
from tests.conftest import PATIENCE
from tests.places import MINUTE, Place

COPY_UP = Event(Action.COPY_UP, b"/etc/motd", 812, 0, "open", layer="layer 1 (ADD base.tar)", size=1234)
WRITE = Event(Action.WRITE, b"/etc/motd", 812, 0, "write", size=2)
WHITEOUT = Event(Action.WHITEOUT, b"/gone", 9, 0, "unlink", layer="layer 2 (RUN two)")


def stack(count: int) -> list[LayerFacts]:
    """The upper on so many layers."""
    return [
        LayerFacts("upper", "", "/containers/c1/upper", Count(0, 0, 0)),
        *(LayerFacts(f"layer {n} (RUN {n})", f"RUN {n}", f"/l{n}", Count(1000 * n, n, 0)) for n in range(count, 0, -1)),
    ]


def drawn(scene: Scene, width: int = 80, height: int = 24) -> list[str]:
    """The rows of the picture."""
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=True, color_system=None)
    lines = console.render_lines(drawing(scene), console.options.update(width=width, height=height))
    return ["".join(segment.text for segment in line).rstrip() for line in lines]


def told(*events: Event) -> tuple[Line, ...]:
    return tuple(Line(event, "vim") for event in events)


def happened(event: Event) -> Happened:
    """The event as a daemon sends it."""
    return Happened(0.0, event, "vim")


def state(*events: Event) -> State:
    made = State("/view", has_keys=True)
    for event in events:
        made.take(happened(event), shown=True)
    return made


# --- the picture ----------------------------------------------------------------------------------


def test_three_layers_are_boxes_with_what_made_them_their_size_and_entries() -> None:
    rows = drawn(Scene("/view", stack(3), lines=told(COPY_UP)))
    shown = "\n".join(rows)
    assert len(rows) == 24 and max(map(cell_len, rows)) <= 80
    assert [re.sub(r"\W", "", row) for row in rows if re.match(r"[╭┏]", row)] and shown.count("╭─") == 4
    places = [next(at for at, row in enumerate(rows) if name in row) for name in ("upper", "RUN 3", "RUN 2", "RUN 1")]
    assert places == sorted(places)
    assert "3kB in 3 entries" in shown and "1kB in 1 entry" in shown
    assert re.search(r"vim\[812\] copied up /etc/motd", shown) and "(1.23kB) from" in shown


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40), (69, 24), (39, 23), (20, 6), (1, 1), (400, 100)])
@pytest.mark.parametrize("count", [1, 3, 600])
def test_every_size_is_filled_and_not_exceeded(count: int, width: int, height: int) -> None:
    events = [COPY_UP, WHITEOUT, Event(Action.MKDIR, b"/" + b"long" * 1000, 1, 0, "mkdir")] * 20
    lit = frozenset({"upper", "layer 1 (RUN 1)"})
    scene = Scene("/view" * 50, stack(count), lit, told(*events), "9 reads", unseen=3)
    rows = drawn(scene, width, height)
    assert len(rows) >= height and not any(rows[height:])
    assert max(map(cell_len, rows)) <= width


def test_of_many_layers_the_upper_the_top_and_the_lit_one_are_seen() -> None:
    rows = drawn(Scene("/view", stack(600), frozenset({"upper", "layer 300 (RUN 300)"})))
    names = [found[1] for row in rows if (found := re.match(r"[│┃] (upper|layer \d+)", row))]
    assert names == ["upper", *(f"layer {number}" for number in range(600, 583, -1)), "layer 300"]
    assert [row.strip() for row in rows if "more" in row] == ["… 283 more", "… 299 more"]
    assert [row.split()[1:] for row in rows if row.startswith("┃")] == [
        ["upper", "0B", "0", "entries"],
        [*names[-1].split(), "300kB", "RUN", "300"],
    ]


def test_half_a_terminal_shows_all_of_five_layers_and_all_keys() -> None:
    for made in (state(COPY_UP), state()):
        rows = drawn(made.scene(stack(5)), 39, 23)
        assert [row.split()[1] for row in rows if re.match("[│┃]", row)] == ["upper", *["layer"] * 5]
        assert rows[0].endswith("since you began:") and rows[1].endswith("B), 0 whiteouts")
        assert rows[-1] == "p pause  f show: all  c clear  q quit"
        made.press("p")
        made.press("f")
        keys = drawn(made.scene(stack(5)), 39, 23)[-3:]
        assert keys == ["paused, 0 more  p resume", "f show: copy-ups and whiteouts  c clear", "q quit"]


def test_what_was_touched_and_nothing_else_is_lit() -> None:
    rows = drawn(Scene("/view", stack(3), frozenset({"upper", "layer 1 (RUN 1)"})))
    assert [re.sub("[━ ┏┓]", "", row[:34]) for row in rows if row.startswith("┏")] == ["upper", "layer1"]


@pytest.mark.parametrize("rows", range(30))
def test_boxes_and_gaps_never_take_more_rows_than_there_are(rows: int) -> None:
    for lit in ([], [5], [0, 9], [3, 5, 7], list(range(10))):
        shown = visible(10, lit, rows, 3)
        gaps = sum(at not in shown and (at == 0 or at - 1 in shown) for at in range(10))
        assert not shown or len(shown) * 3 + gaps <= rows
        assert rows < 7 or 0 in shown


def test_a_long_path_keeps_its_end() -> None:
    path = b"/usr/share/" + b"deep/" * 60 + b"name.txt"
    rows = drawn(Scene("/view", stack(1), lines=told(Event(Action.MKDIR, path, 1, 0, "mkdir"))))
    said = " ".join(row[34:].strip() for row in rows)
    assert "/usr/share" in said and "…" in said and "name.txt in the upper" in said


def test_sentences_name_layers_by_the_numbers_that_stand_in_the_boxes() -> None:
    shown = " ".join("\n".join(drawn(Scene("/view", stack(3), lines=told(COPY_UP)), 200)).split())
    assert "copied up /etc/motd (1.23kB) from layer 1 to write to it" in shown and "─ layer 1 ─" in shown


def test_the_title_says_since_when_it_counts() -> None:
    assert drawn(state(COPY_UP).scene(stack(1)))[0].endswith("since you began: 1 copy-up (1.23kB), 0 whiteouts")


@pytest.mark.parametrize("path", ["/" + "宽" * 300, "/a" + "\u0301" * 300, "/" + "👩\u200d👩" * 99, "/\x1b[2J" * 50])
def test_a_name_of_any_characters_does_not_break_the_picture(path: str) -> None:
    event = Event(Action.COPY_UP, path.encode(), 812, 0, "open", layer="layer 1 (" + "宽" * 40 + ")", size=1)
    scene = Scene("/view", stack(3), lines=told(event, WRITE))
    for width in (40, 69, 80, 200):
        rows = drawn(scene, width)
        assert len(rows) == 24 and max(map(cell_len, rows)) <= width
        assert "wrote 2B" in " ".join(" ".join(rows).split())


def test_sentences_wrap_at_words() -> None:
    rows = [row[34:].strip() for row in drawn(Scene("/view", stack(1), lines=told(COPY_UP)))]
    said = [row for row in rows if row and "since" not in row]
    assert " ".join(said).startswith("vim[812] copied up /etc/motd (1.23kB) from layer 1 to write to it")


def test_a_layer_that_may_not_be_read_has_a_question_mark() -> None:
    assert "│ ?" in "\n".join(drawn(Scene("/view", [LayerFacts("upper", "", "/up")])))


# --- what is shown --------------------------------------------------------------------------------


def test_a_copy_up_lights_its_layer_and_the_upper_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    made = state(COPY_UP)
    assert made.scene([]).lit >= {"upper", COPY_UP.layer}
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 2.0)
    assert made.scene([]).lit == frozenset()


def test_in_a_pause_the_sentences_stand_still_and_the_rest_is_counted() -> None:
    made = state(COPY_UP)
    made.press("p")
    for number in range(12):
        made.take(happened(WHITEOUT._replace(path=b"/gone/%d" % number)), shown=True)
    scene = made.scene(stack(3))
    assert (len(scene.lines), scene.unseen, scene.totals.whiteouts) == (1, 12, 12)
    assert "paused, 12 more" in drawn(scene)[-1]
    made.press(" ")
    assert (len(made.scene([]).lines), made.scene([]).unseen) == (13, None)


def test_filters_go_round_and_clearing_forgets() -> None:
    made = state(COPY_UP, WRITE, WHITEOUT, Event(Action.MKDIR, b"/made", 1, 0, "mkdir"))
    seen = {}
    for _ in Choice:
        scene = made.scene([])
        seen[scene.choice] = len(scene.lines)
        made.press("f")
    assert seen == {Choice.ALL: 4, Choice.COPY_ON_WRITE: 2, Choice.NO_WRITES: 3}
    assert made.scene([]).choice is Choice.ALL
    made.press("c")
    assert made.scene([]).lines == () and made.scene([]).totals.copy_ups == 0


def test_writes_of_one_process_to_one_file_are_one_line() -> None:
    [line] = state(WRITE, WRITE, WRITE).scene([]).lines
    assert line.words() == "vim[812] wrote 6B to /etc/motd in the upper"


def test_an_event_that_repeats_is_one_line_with_a_count() -> None:
    chmod = Event(Action.CHMOD, b"/a", 812, 0, "chmod", detail="0644")
    [line, other] = state(chmod, chmod, chmod, chmod._replace(pid=1)).scene([]).lines
    assert line.words() == "vim[812] set the mode of /a to 0644 in the upper (3 times)"
    assert other.times == 1


def test_what_is_not_wanted_is_counted_but_not_told() -> None:
    made = State("/view", has_keys=True)
    made.take(happened(COPY_UP), shown=False)
    assert (made.scene([]).lines, made.scene([]).totals.size) == ((), 1234)


# --- the layers -----------------------------------------------------------------------------------


def test_a_layer_is_walked_without_following_links_and_counts_a_file_once(tmp_path: Path) -> None:
    builders.directories(tmp_path, "layer/d", "elsewhere")
    builders.fill(os.fsencode(tmp_path / "layer"), {"d/a": "12345", "d/.wh.gone": ""})
    builders.fill(os.fsencode(tmp_path / "elsewhere"), {"big": "x" * 1000})
    os.link(tmp_path / "layer/d/a", tmp_path / "layer/again")
    (tmp_path / "layer/out").symlink_to(tmp_path / "elsewhere")
    os.mknod(tmp_path / "layer/deleted", 0o020000, 0)
    layer = walked(LayerFacts("layer 1 (x)", "", str(tmp_path / "layer")))
    assert layer.count == (5 + len(str(tmp_path / "elsewhere")), 4, 2)


def test_a_layer_that_is_not_there_is_unknown(tmp_path: Path) -> None:
    assert walked(LayerFacts("layer 1 (x)", "", str(tmp_path / "none"))).count is None


def test_a_record_names_its_layers_as_events_do() -> None:
    labels = ["layer 3 (RUN b)", "layer 2 (a)", "layer 1 (data)"]
    record = MountRecord("/v", 1, "kernel", ["/b", "/a"], "/u", ["RUN b"], ["/data"], labels, "", 1)
    upper, *below = [(one.label, one.title, one.path) for one in unwalked(record)]
    assert upper == ("upper", "", "/u")
    assert below == list(zip(labels, ("RUN b", "", ""), ("/b", "/a", "/data"), strict=True))


# --- on a terminal --------------------------------------------------------------------------------


class Terminal:
    """A `watch` with a terminal of its own, 80 by 24."""

    def __init__(self, view: Path, *words: str) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.theirs = theirs
        self.before = termios.tcgetattr(theirs)
        self.written = ""
        environment = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS")}
        self.process = started(
            ["watch", view, *words],
            {**environment, "LC_ALL": "C.UTF-8", "TERM": "xterm-256color"},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )

    def shows(self, pattern: str, since: int = 0) -> None:
        """Read until it has been written; spaces and line ends of the picture are one space."""
        self._read(lambda: re.search(pattern, re.sub(r"\s+", " ", self.text(since))) is not None, pattern)

    def text(self, since: int = 0) -> str:
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|[│┃]", "", self.written[since:])

    def _read(self, enough: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not enough():
            assert time.monotonic() < deadline, f"{what} is not in {self.text()!r}"
            if select.select([self._ours], [], [], 0.1)[0]:
                self.written += os.read(self._ours, 1 << 16).decode(errors="replace")

    def press(self, keys: str) -> int:
        """Press keys; where what is written from now on begins."""
        os.write(self._ours, keys.encode())
        return len(self.written)

    def resize(self, rows: int, columns: int) -> int:
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        return len(self.written)

    def ends(self, status: int) -> None:
        """It ends, and leaves screen, cursor and terminal as they were."""
        self._read(lambda: self.process.poll() is not None and not select.select([self._ours], [], [], 0)[0], "the end")
        assert self.process.returncode == status, self.text()
        assert "Traceback" not in self.written
        assert self.written.rindex("\x1b[?1049l") > self.written.index("\x1b[?1049h")
        assert self.written.rindex("\x1b[?25h") > self.written.rindex("\x1b[?25l")
        assert termios.tcgetattr(self.theirs) == self.before

    def close(self) -> None:
        self.process.kill()
        self.process.wait(MINUTE)
        os.close(self._ours)
        os.close(self.theirs)


@pytest.fixture
def terminal(mounted: Place) -> Iterator[Terminal]:
    shown = Terminal(mounted.view)
    try:
        shown.shows("q quit")
        yield shown
    finally:
        shown.close()


def append(place: Place) -> None:
    with (place.view / "motd").open("a") as file:
        file.write("more\n")


def test_a_copy_up_is_seen_and_q_gives_the_terminal_back(mounted: Place, terminal: Terminal) -> None:
    terminal.shows(r"6B in 1 entry")
    append(mounted)
    # The picture's rows have a box's row before each piece of the sentence.
    terminal.shows(r"\[\d+\] copied up /motd .*\(6B\) .*from .*layer 2 .*to write to it")
    terminal.shows(r"since you began: 1 copy-up \(6B\), 0 whiteouts")
    terminal.shows(r"answered: .*1 open")
    terminal.shows(r"11B in 1 entry")
    terminal.press("q")
    terminal.ends(0)
    assert "requests answered: " in terminal.written.rpartition("\x1b[?1049l")[2]


def test_the_end_of_the_mount_is_the_end_of_the_view(mounted: Place, terminal: Terminal) -> None:
    assert mounted.umount().returncode == 0
    terminal.ends(0)
    assert "was unmounted" in " ".join(terminal.written.rpartition("\x1b[?1049l")[2].split())


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_gives_the_terminal_back(terminal: Terminal, number: signal.Signals, status: int) -> None:
    terminal.process.send_signal(number)
    terminal.ends(status)


def test_keys_pause_and_choose(mounted: Place, terminal: Terminal) -> None:
    at = terminal.press("p")
    terminal.shows("paused, 0 more", at)
    append(mounted)
    terminal.shows("paused, 2 more", at)
    assert "copied up /motd" not in terminal.text(at)
    at = terminal.press("pf")
    terminal.shows("copied up /motd", at)
    terminal.shows("f show: copy-ups and whiteouts", at)


def test_a_resize_is_followed(terminal: Terminal) -> None:
    assert "━" * 60 not in terminal.text() and "─" * 60 not in terminal.text()
    terminal.shows("upper: ", terminal.resize(20, 65))
    terminal.shows("─" * 40)


def test_plain_is_sentences_on_a_terminal_too(mounted: Place) -> None:
    shown = Terminal(mounted.view, "--plain")
    try:
        shown.shows("watching ")
        append(mounted)
        shown.shows(r"copied up /motd \(6B\) from layer 2 \(top\) to write to it")
        assert "\x1b" not in shown.written
    finally:
        shown.close()
