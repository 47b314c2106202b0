"""Does the tour show what it says, the same to everybody, and leave nothing behind?"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest

from overlayfs_demo.cli import main, tour
from overlayfs_demo.tour import checks
from overlayfs_demo.tour.experiment import Experiment
from overlayfs_demo.tour.experiments import ALL
from overlayfs_demo.tour.picture import WIDTH, picture
from overlayfs_demo.tour.scan import Kind, ScanEntry
from tests.conftest import unmount_all, why_no_mounts, why_no_mounts_of_others
from tests.contract.conftest import why_unavailable
from tests.places import BIN, MINUTE, fails, run
from tests.terminal import as_user
from tests.test_ordinary_user import USER

NAMES = [one.name for one in ALL]
HEADING = re.compile(r"^--- \d+ of \d+: (\S+) -+\n", re.MULTILINE)


@pytest.fixture(scope="module")
def told() -> str:
    """What the whole tour prints, for root."""
    if problem := why_no_mounts():
        pytest.skip(problem)
    done = subprocess.run(
        ["overlayfs-demo", "tour"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=5 * MINUTE,
        env={**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"},
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout[-2000:] + done.stderr
    return done.stdout


def sections(text: str) -> dict[str, str]:
    """What the tour prints about each experiment, by its name."""
    _, *pieces = HEADING.split(text)
    return dict(zip(pieces[::2], pieces[1::2], strict=True))


# --- what is told ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_experiment_is_done_shown_and_holds(told: str, name: str) -> None:
    section = sections(told)[name]
    one = ALL[NAMES.index(name)]
    if "Skipped:" in section:
        pytest.skip(section)
    for command in one.do:
        typed = command if isinstance(command, str) else command.command
        assert f"\n$ {typed}\n" in section
    assert section.count("[ok]") == len(one.checks) + len(one.layers)
    assert "DOES NOT HOLD" not in section


def test_no_line_is_wider_than_a_terminal(told: str) -> None:
    assert max(map(len, told.splitlines())) <= WIDTH
    assert told.splitlines()[-1].startswith(f"Experiments: {len(ALL)}. ")


def test_nothing_told_depends_on_machine_or_moment(told: str) -> None:
    assert tempfile.gettempdir() not in told
    assert not re.search(r"\bago\b|\b\d\d:\d\d|\b20\d\d-", told)


def test_ordinary_user_is_told_the_same_byte_for_byte(told: str) -> None:
    if not shutil.which("fusermount3") or not shutil.which("setpriv"):
        pytest.skip("needs fusermount3 and setpriv")
    if problem := why_no_mounts_of_others():
        pytest.skip(problem)
    # Not below pytest's own, which nobody else may enter.
    home = Path(tempfile.mkdtemp(prefix="overlayfs-demo-test-"))
    try:
        os.chown(home, USER, USER)
        done = subprocess.run(
            [*as_user(USER), "overlayfs-demo", "tour"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            cwd="/",
            timeout=5 * MINUTE,
            env={
                **os.environ,
                "PATH": f"{BIN}:{os.environ['PATH']}",
                "TMPDIR": str(home),
                "XDG_RUNTIME_DIR": str(home),
            },
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == told
        assert set(os.listdir(home)) <= {"overlayfs-demo"}, "only the directory of records is left"
    finally:
        unmount_all(str(home))
        shutil.rmtree(home)


@pytest.mark.parametrize("name", ["new-file", "open-reader", "remove-directory", "rename-directory", "hard-link"])
def test_fusepy_front_shows_the_same(told: str, temporary: Path, name: str) -> None:
    if problem := why_unavailable("fusepy-front"):
        pytest.skip(problem)
    done = run("overlayfs-demo", "tour", "--yes", "--front", "fusepy", name)
    assert (done.returncode, done.stderr) == (0, "")
    # The last line counts.
    assert sections(done.stdout)[name].splitlines()[:-1] == sections(told)[name].splitlines()


def sentences(text: str) -> list[str]:
    return re.split(r"(?<=[.?]) ", " ".join(text.split()))


def test_the_order_is_from_what_everybody_meets_to_what_is_advanced() -> None:
    first = ["new-file", "edit", "append", "delete", "re-create", "remove-directory", "rename-file"]
    assert [*first, "three-layers"] == NAMES[: len(first) + 1]
    assert NAMES.index("lowers-reversed") < NAMES.index("history-sizes") < NAMES.index("chmod")
    assert NAMES[-1] == "kernel-overlayfs"
    assert NAMES.index("inspect") < NAMES.index("shared-layers") < NAMES.index("chain-id")
    assert len(NAMES) == len(set(NAMES)) >= 34


@pytest.mark.parametrize("one", ALL, ids=NAMES)
def test_an_explanation_has_two_sentences_and_perhaps_one_about_docker(one: Experiment) -> None:
    told, _, docker = " ".join(one.explained.split()).partition("In Docker:")
    assert len(sentences(told.strip())) == 2
    assert len(sentences(docker)) == 1
    assert one.question.strip().endswith("?")


@pytest.mark.parametrize("one", ALL, ids=NAMES)
def test_what_no_check_can_prove_has_a_source(one: Experiment) -> None:
    """Every sentence about others: the kernel, Docker, BuildKit, and what is so by default."""
    text = f"{' '.join(one.question.split())} {' '.join(one.explained.split())}"
    for words in one.sources:
        assert words in text, f"{words}: no longer told"
    if one.name == "kernel-overlayfs":
        return  # It asks the kernel itself.
    for sentence in sentences(" ".join(one.explained.split())):
        if re.search(r"kernel|Docker|BuildKit|default|Linux \d", sentence):
            assert any(words in sentence for words in one.sources), sentence


def test_the_tests_that_are_named_as_sources_exist() -> None:
    written = "".join(path.read_text() for path in Path(__file__).parent.glob("test_beside_*.py"))
    named = {name for one in ALL for source in one.sources.values() for name in re.findall(r"test_\w+", source)}
    assert named and all(f"def {name}(" in written for name in named), named
    experiments = {
        name
        for one in ALL
        for source in one.sources.values()
        for name in re.findall(r"the experiment ([a-z-]+)", source)
    }
    assert experiments <= set(NAMES)


# --- what if it were not so? -----------------------------------------------------------------------


def tour_of(monkeypatch: pytest.MonkeyPatch, one: Experiment) -> int:
    monkeypatch.setattr(tour, "ALL", (one,))
    return main.main(["tour", "--yes"])


def test_a_sentence_that_does_not_hold_fails_the_tour(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    delete = ALL[NAMES.index("delete")]
    assert tour_of(monkeypatch, dataclasses.replace(delete, do=("echo No such file",))) == 1
    out, err = capfd.readouterr()
    assert "[DOES NOT HOLD] upper/motd is a whiteout" in out
    assert "[ok] lower/motd contains: hello" in out
    assert err.startswith("overlayfs-demo: 2 of 5 sentences did not hold: delete: upper/motd is a whiteout")
    assert err.count("\n") == 1


def test_a_changed_lower_fails_the_tour(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    edit = ALL[NAMES.index("edit")]
    assert tour_of(monkeypatch, dataclasses.replace(edit, do=(*edit.do, "touch lower/notes"))) == 1
    assert "[DOES NOT HOLD] lower is unchanged" in capfd.readouterr().out


def test_a_command_that_fails_ends_the_tour(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert tour_of(monkeypatch, dataclasses.replace(ALL[0], do=("rmdir upper/none",))) == 1
    out, err = capfd.readouterr()
    assert "failed to remove 'upper/none'" in out
    assert "'rmdir upper/none' exited with status 1" in err


def test_what_a_machine_cannot_do_is_left_out_with_the_reason(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert tour_of(monkeypatch, dataclasses.replace(ALL[-1], missing=lambda stage: "it is too old")) == 0
    assert "Skipped: it is too old\n" in capfd.readouterr().out


def test_ctrl_c_leaves_nothing_behind(temporary: Path) -> None:
    with subprocess.Popen(
        ["overlayfs-demo", "tour", "--yes"],
        env={**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        for line in process.stdout:
            if line.startswith("$ echo 'good morning'"):
                break
        os.killpg(process.pid, signal.SIGINT)
        assert process.stderr.read() == "overlayfs-demo: interrupted\n"
        assert process.wait(MINUTE) == 130


# --- the command line ------------------------------------------------------------------------------


def test_list_numbers_what_there_is() -> None:
    lines = run("overlayfs-demo", "tour", "--list").stdout.splitlines()
    assert [line.split()[:2] for line in lines] == [[str(number), name] for number, name in enumerate(NAMES, 1)]
    assert max(map(len, lines)) <= WIDTH
    rows = [json.loads(line) for line in run("overlayfs-demo", "tour", "--list", "--json").stdout.splitlines()]
    assert [row["Name"] for row in rows] == NAMES


def test_wrong_words_are_one_line() -> None:
    fails(run("overlayfs-demo", "tour", "none"), "unknown name 'none'", "tour --list")
    fails(run("overlayfs-demo", "tour", "delte"), "did you mean 'delete'?")
    fails(run("overlayfs-demo", "tour", "--json"), "add --list", status=2)


# --- the picture -----------------------------------------------------------------------------------


def test_picture_shows_each_kind_as_what_it_is() -> None:
    lower = {
        "docs": ScanEntry(Kind.DIRECTORY, 0o755),
        "docs/a": ScanEntry(Kind.FILE, 0o755, 1500, 2),
        "link": ScanEntry(Kind.SYMLINK, 0o777, target="docs/a"),
        "pipe": ScanEntry(Kind.OTHER, 0o644),
    }
    upper = {
        "docs": ScanEntry(Kind.DIRECTORY, 0o755, opaque=True),
        "link": ScanEntry(Kind.WHITEOUT, 0),
        "moved": ScanEntry(Kind.DIRECTORY, 0o755, redirect="/old"),
    }
    assert picture({"lower": lower, "upper": upper}) == [
        "        lower              upper",
        "docs/   dir                dir, opaque",
        "  a     1.5kB, x, 2 links  -",
        "link    -> docs/a          whiteout",
        "moved/  -                  dir, redirect",
        "pipe    special file       -",
        'upper/moved has the mark redirect="/old"',
    ]


def test_picture_of_nothing_says_so() -> None:
    assert picture({"lower": {}, "upper": {}})[1].split() == ["(empty)", "(empty)"]


def test_picture_never_exceeds_a_terminal() -> None:
    names = {"n" * 200: ScanEntry(Kind.SYMLINK, 0o777, target="t" * 200), "\n": ScanEntry(Kind.FILE, 0o644)}
    for count in range(1, 6):
        lines = picture({f"layer {number}": names for number in range(count)})
        assert max(map(len, lines)) <= WIDTH and all(line.isprintable() for line in lines)


def test_checks_tell_a_whiteout_from_nothing(temporary: Path) -> None:
    from overlayfs_demo.tour.building import WHITEOUT
    from overlayfs_demo.tour.stage import stage

    with stage() as made:
        made.layers({"lower": {"gone": WHITEOUT, "here": "1"}})
        assert checks.whiteout("lower/gone").holds(made) and not checks.absent("lower/gone").holds(made)
        assert not checks.whiteout("lower/none").holds(made) and checks.absent("lower/none").holds(made)
        assert not checks.exactly("lower", "here").holds(made)
