"""Does a running lab give hints and checks without being left, and is its result written down?"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from overlayfs_demo.mounts import runtime_directory
from overlayfs_demo.tour import results
from overlayfs_demo.tour.labs import LABS
from overlayfs_demo.tour.results import Result
from overlayfs_demo.ui.table import render_text
from tests.command import call_as_patched, started
from tests.places import BIN, MINUTE, fails, run
from tests.terminal import Terminal

RIGHT = "rm merged/notes"


def lab(*words: str | Path, typed: str = "") -> subprocess.CompletedProcess[str]:
    pipe = subprocess.PIPE
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
    with started(["lab", *words], environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        told, complaint = process.communicate(typed, timeout=MINUTE)
    return subprocess.CompletedProcess(process.args, process.returncode, told, complaint)


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A runtime directory in which only the labs of this test are."""
    monkeypatch.setattr(runtime_directory, "_OF_ROOT", str(tmp_path / "run"))
    return tmp_path / "run"


def sockets(runtime: Path) -> list[str]:
    return [path.name for path in runtime.glob("*.lab")]


def asked(word: str, *names: str) -> subprocess.CompletedProcess[str]:
    return call_as_patched(["lab", word, *names], {"LC_ALL": "C.UTF-8"})


# --- inside the lab's shell ------------------------------------------------------------------------


def test_check_inside_tells_without_leaving_and_restores_nothing(temporary: Path) -> None:
    commands = f"""
        overlayfs-demo lab --check; echo status $?
        echo x > lower/notes; overlayfs-demo lab --check; echo 'notes' > /dev/null
        cat lower/notes
        {RIGHT}
    """
    done = lab("whiteout", typed=commands)
    told = " ".join(done.stdout.split())
    assert "Not yet. Nothing has changed yet." in told and "status 1" in told
    assert "lower is restored when you leave the shell. x " in told
    assert "lower has been restored" in told and done.returncode == 1


def test_check_inside_says_when_it_is_solved(temporary: Path) -> None:
    done = lab("whiteout", typed=f"{RIGHT}\noverlayfs-demo lab --check; echo status $?\nls merged")
    told = " ".join(done.stdout.split())
    assert "Leave the shell with Ctrl-D. status 0" in told
    assert done.stdout.count("Solved.") == 2 and done.returncode == 0


def test_hints_come_one_by_one_and_the_last_stays(temporary: Path) -> None:
    hints = next(one for one in LABS if one.name == "whiteout").all_hints()
    done = lab("whiteout", typed="overlayfs-demo lab --hint\n" * (len(hints) + 1) + RIGHT)
    assert done.returncode == 0
    told = " ".join(done.stdout.split())
    for number, hint in enumerate(hints, 1):
        assert f"Hint {number} of {len(hints)}. {' '.join(hint.split())}" in told
    assert told.count(f"Hint {len(hints)} of") == 2


@pytest.mark.parametrize("words", ["lab copy-up", "tour delete"])
def test_nothing_begins_inside_a_lab(temporary: Path, words: str) -> None:
    done = lab("whiteout", typed=f"overlayfs-demo {words} </dev/null\necho status $?\n{RIGHT}")
    assert "status 2" in done.stdout and done.returncode == 0
    assert "does not start in the shell of a lab: leave the lab with Ctrl-D first" in done.stderr


def test_list_is_still_allowed_inside_a_lab(temporary: Path) -> None:
    assert "copy-up" in lab("whiteout", typed=f"overlayfs-demo lab --list\n{RIGHT}").stdout


# --- from another terminal -------------------------------------------------------------------------


@pytest.mark.parametrize("shell", ["/bin/bash", "/bin/sh"])
def test_lab_at_a_terminal_is_checked_from_another(temporary: Path, alone: Path, shell: str) -> None:
    with Terminal("lab", "whiteout", settings={"SHELL": shell}) as screen:
        screen.shows(r"lab whiteout\$ $")
        done = asked("--check")
        assert done.returncode == 1 and done.stdout.startswith("Not yet. ")
        screen.press(f"{RIGHT}; echo do''ne\r")
        screen.shows(r"done[\s\S]*lab whiteout\$ $")
        assert asked("--check", "whiteout").returncode == 0
        fails(asked("--check", "copy-up"), "lab 'copy-up' is not running")
        screen.press("\x04")
        screen.shows("Solved")
        screen.ends(0)
    fails(asked("--check"), "no lab is running")


def test_of_several_labs_one_is_named(temporary: Path, alone: Path) -> None:
    with Terminal("lab", "whiteout") as first, Terminal("lab", "copy-up") as second:
        first.shows(r"\$ $")
        second.shows(r"\$ $")
        fails(asked("--hint"), "several labs are running: copy-up, whiteout")
        assert asked("--hint", "copy-up").stdout.startswith("Hint 1 of ")
        for screen in (first, second):
            screen.press("\x04")
            screen.shows("try again")
            screen.press("n\r")
            screen.ends(1)


def test_killed_lab_is_not_asked(temporary: Path, alone: Path) -> None:
    with runtime_directory.mine() as directory, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as left:
        left.bind(f"/proc/self/fd/{directory}/whiteout-1.lab")
    assert sockets(alone) == ["whiteout-1.lab"]
    fails(asked("--check"), "no lab is running")
    assert sockets(alone) == []


@pytest.mark.parametrize(
    ("answers", "status"), [("ls", None), ("y", "shell"), ("", "shell"), ("yes", "shell"), ("n", 1), ("no", 1)]
)
def test_only_yes_is_taken_for_yes(temporary: Path, answers: str, status: object) -> None:
    with Terminal("lab", "whiteout") as screen:
        screen.shows(r"\$ $")
        screen.press("\x04")
        screen.shows(r"try again\? \[Y/n\] $")
        screen.press(f"{answers}\r")
        if status is None:
            screen.shows(r"Type y [\s\S]*try again\? \[Y/n\] $")
            screen.press("n\r")
            screen.ends(1)
        elif status == "shell":
            screen.shows(r"lab whiteout\$ $")
            screen.press(f"{RIGHT}; exit\r")
            screen.ends(0)
        else:
            screen.ends(1)


def test_closed_terminal_leaves_no_socket(temporary: Path, alone: Path) -> None:
    with Terminal("lab", "whiteout") as screen:
        screen.shows(r"\$ $")
        assert len(sockets(alone)) == 1
        screen.close()
        screen.process.wait(MINUTE)
    assert sockets(alone) == []


# --- results ---------------------------------------------------------------------------------------


def test_report_says_how_it_went(temporary: Path, tmp_path: Path) -> None:
    report = tmp_path / "results.jsonl"
    typed = f"overlayfs-demo lab --hint\noverlayfs-demo lab --check\n{RIGHT}\noverlayfs-demo lab --check\n"
    assert lab("whiteout", "--report", report, "--name", "Ada", typed=typed).returncode == 0
    assert lab("whiteout", "--report", report, "--name", "Bob").returncode == 1
    first, second = map(json.loads, report.read_text().splitlines())
    assert first.pop("seconds") >= 0 and second.pop("seconds") >= 0
    assert first == {"lab": "whiteout", "student": "Ada", "passed": True, "attempts": 2, "hints": 1}
    assert second == {"lab": "whiteout", "student": "Bob", "passed": False, "attempts": 1, "hints": 0}


def test_interrupted_lab_is_reported(temporary: Path, tmp_path: Path) -> None:
    report = tmp_path / "results.jsonl"
    with Terminal("lab", "whiteout", "--report", report) as screen:
        screen.shows(r"\$ $")
        screen.process.send_signal(signal.SIGTERM)
        screen.process.wait(MINUTE)
    row = json.loads(report.read_text())
    assert (row["passed"], row["attempts"], row["student"]) == (False, 0, os.environ.get("SUDO_USER") or "root")


def test_report_that_cannot_be_written_is_told_before_the_work(temporary: Path) -> None:
    fails(lab("whiteout", "--report", "/nowhere/results", typed="echo never"), "/nowhere/results: No such file")
    fails(lab("whiteout", "--name", "Ada"), "add --report FILE", status=2)


CLASS = [
    Result(lab="whiteout", student="Ada", passed=False, attempts=2, seconds=60, hints=1),
    Result(lab="whiteout", student="Ada", passed=True, attempts=1, seconds=30, hints=0),
    Result(lab="whiteout", student="Bob", passed=False, attempts=4, seconds=300, hints=2),
    Result(lab="copy-up", student="Ada", passed=True, attempts=1, seconds=3605, hints=0),
]


def test_summary_counts_labs_and_students_once(tmp_path: Path) -> None:
    for number, result in enumerate(CLASS):
        results.append(tmp_path / f"{number % 2}.jsonl", result)
    done = run("overlayfs-demo", "lab", "--summary", tmp_path / "0.jsonl", tmp_path / "1.jsonl")
    assert (done.returncode, done.stderr) == (0, "")
    rows = [line.split() for line in done.stdout.splitlines()]
    assert rows == [
        ["LAB", "PASSED", "ATTEMPTS", "TIME", "HINTS"],
        ["whiteout", "1", "of", "2", "3.5", "3:15", "1.5"],
        ["copy-up", "1", "of", "1", "1.0", "60:05", "0.0"],
        [],
        ["STUDENT", "PASSED", "ATTEMPTS", "TIME", "HINTS"],
        ["Ada", "2", "of", "2", "4", "61:35", "1"],
        ["Bob", "0", "of", "1", "4", "5:00", "2"],
    ]


def test_hostile_names_stay_in_their_cell() -> None:
    hostile = Result(lab="whiteout", student="\x1b[2J\n", passed=True, attempts=1, seconds=1, hints=0)
    assert render_text(results.per_student([hostile])).splitlines()[1].startswith(r"\x1b[2J\n ")


@pytest.mark.parametrize("line", ["", "[]", "{", '{"lab": "x"}', '{"lab": 1, "student": "a"}'])
def test_line_that_is_not_a_result_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "results"
    results.append(path, CLASS[0])
    with path.open("a") as file:
        file.write(f"{line}\n")
    done = run("overlayfs-demo", "lab", "--summary", path)
    if line:
        fails(done, "not the result of a lab", f"{path}, line 2")
    else:
        assert done.returncode == 0


@pytest.mark.parametrize("kind", ["link", "fifo", "socket", "directory"])
def test_report_goes_only_to_a_regular_file(tmp_path: Path, kind: str) -> None:
    """In a directory that a class shares, another user may have put something in its place."""
    path, elsewhere = tmp_path / "results.jsonl", tmp_path / "elsewhere"
    with socket.socket(socket.AF_UNIX) as listening:
        if kind == "link":
            path.symlink_to(elsewhere)
        elif kind == "fifo":
            os.mkfifo(path)
        elif kind == "socket":
            listening.bind(str(path))
        else:
            path.mkdir()
        done = lab("whiteout", "--report", path, typed=RIGHT)
    assert done.returncode == 1 and done.stdout == "" and done.stderr.count("\n") == 1
    assert not elsewhere.exists()


def test_summary_reads_only_regular_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    fails(
        run("overlayfs-demo", "lab", "--summary", tmp_path / "fifo"),
        "is not a regular file: name files that 'lab --report'",
    )
