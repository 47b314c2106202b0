"""Is a lab solved by what is right, and is what is wrong explained?"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from overlayfs_demo.tour.experiment import labelled
from overlayfs_demo.tour.lab import Lab
from overlayfs_demo.tour.labs import LABS
from overlayfs_demo.tour.picture import WIDTH
from tests.command import started
from tests.conftest import unmount_all
from tests.places import BIN, MINUTE, at_terminal, fails, run

NAMES = [one.name for one in LABS]
FLAT = "overlayfs-demo create app:1.0 --name c1 && overlayfs-demo export c1 -o flat.tar"
RIGHT = r"100001\n1\n200000\n0\n50000\n4\n"
JOIN = "sed -i 's:make-app /app:make-app /app \\&\\& rm -r /cache:' Dockerfile"
DROP = "sed -i '/^RUN rm -r .cache$/d' Dockerfile"
MERGE = JOIN.replace(":' Dockerfile", ":; ") + DROP.partition("'")[2]
STAGES = (
    r"FROM scratch AS build\nCOPY rootfs /\nRUN make-app /app\nFROM scratch\nCOPY rootfs source.c /\n"
    r"COPY --from=build /app /app\nRUN chmod 600 /motd\nCMD [\"/app\"]\n"
)
SOLUTIONS = [
    ("copy-up", "echo changed > merged/motd"),
    ("copy-up", "echo 'one line more' >> merged/motd"),
    ("copy-up", "echo 'one line more' >> merged/motd; cat merged/*"),
    ("whiteout", "rm merged/notes"),
    ("opaque", "rm -r merged/docs; mkdir merged/docs; echo 3 > merged/docs/three"),
    ("undelete", "rm upper/report"),
    ("undelete", "overlayfs-demo umount merged; rm upper/report"),
    ("smallest-upper", "chmod 755 merged/tools/run.sh"),
    ("smallest-upper", "chmod -R +x merged/tools; rm upper/tools/data upper/tools/library"),
    ("rename", "mv merged/docs merged/papers; getfattr --only-values -m redirect upper/papers > answer"),
    ("no-trace", "rm upper/motd"),
    ("no-trace", "rm merged/motd; rm upper/motd"),
    ("no-trace", "overlayfs-demo umount merged; rm -r upper work && mkdir upper work"),
    ("no-trace", "overlayfs-demo umount merged; rm -r upper"),
    ("hard-link", "echo more >> merged/one"),
    ("hard-link", "echo more >> merged/two"),
    ("rescue", "cp middle/report merged/rescued"),
    ("rescue", "cat middle/report > merged/rescued; overlayfs-demo which merged/report"),
    ("predict", f"printf '{RIGHT}' > answer"),
    ("predict", "printf '100,001 1 200,000 0 50,000 4' > answer; printf x >> merged/log"),
    ("match-history", "printf '1\\n3\\n4\\n6\\n' > answer"),
    ("match-history", "echo 1 3 4 6 > answer"),
    ("find-secret", "build-layers --userxattr app.tar layers 2> log; cat layers/02*/password > answer"),
    ("find-secret", "cat .store/layers/*/password > answer 2> log"),
    ("mend-dockerfile", MERGE),
    ("mend-dockerfile", f"sed -i 's:^RUN rm -r:RUN rm -rf:' Dockerfile; {JOIN}"),
    ("mend-dockerfile", f"sed -i 's:^RUN make:RUN --mount=type=cache,target=/cache make:' Dockerfile; {DROP}"),
    ("mend-dockerfile", f"printf '{STAGES}' > Dockerfile"),
    ("shrink", f"{FLAT} && overlayfs-demo import flat.tar app:clean"),
]
MISTAKES = [
    ("copy-up", "touch draft", "upper/motd does not exist"),
    ("copy-up", "echo changed > lower/motd", "lower/motd was changed in the lower itself"),
    ("copy-up", "touch merged/motd", "have the same data"),
    ("copy-up", "echo changed > merged/motd; cp merged/motd merged/motd~", "also contains motd~ (8B)"),
    ("copy-up", "rm merged/motd", "You deleted motd"),
    ("copy-up", "ln -sf notes merged/motd", "upper/motd is a file"),
    ("whiteout", "touch draft", "upper/notes does not exist"),
    ("whiteout", "rm lower/notes", "lower has been restored"),
    ("whiteout", ": > merged/notes", "An empty file is still a file"),
    ("whiteout", "mv merged/notes merged/other", "a rename makes a copy"),
    ("whiteout", "touch upper/.wh.notes", "a whiteout is a character device 0/0"),
    ("opaque", "rm -rf merged/docs", "not created again yet"),
    ("opaque", "rm merged/docs/*; echo 3 > merged/docs/three", "whiteouts for one, two"),
    ("opaque", "rm -r merged/docs; mkdir merged/docs", "upper/docs/three does not exist"),
    ("opaque", "rm -r lower/docs; mkdir lower/docs", "was changed in the lower itself"),
    ("undelete", "touch draft", "still hides the report"),
    ("undelete", "cp lower/report merged/report", "its bytes stored a second time"),
    ("smallest-upper", "touch draft", "upper/tools/run.sh does not exist"),
    ("smallest-upper", "chmod -R 755 merged/tools", "tools/data, tools/library (2MB)"),
    ("smallest-upper", "touch merged/tools/run.sh", "upper/tools/run.sh is executable"),
    ("rename", "cp -r merged/docs merged/papers; rm -r merged/docs", "upper/papers contains copies"),
    ("rename", "mv merged/docs merged/papers", "The file answer is still empty"),
    ("rename", "mv merged/docs merged/papers; echo papers > answer", "says 'papers'"),
    ("no-trace", "touch draft", "The copy is still there"),
    ("no-trace", "rm merged/motd", "also hides the file of the lower"),
    ("no-trace", "echo hello > merged/motd", "The text is right again, but"),
    ("no-trace", "echo more >> merged/motd", "The copy is still there, and hides the motd of the lower: rm upper/motd"),
    ("whiteout", "overlayfs-demo umount merged; rm -r upper", "The directory upper was removed"),
    ("hard-link", "touch draft", "The upper is empty"),
    ("hard-link", "sed -i s/first/second/ merged/one", "separates it from its other names"),
    ("hard-link", "rm merged/two", "two has been deleted"),
    ("hard-link", "chmod 600 merged/one", "one line more than before"),
    ("rescue", "touch draft", "upper/rescued does not exist. Copy the file from the layer that has it"),
    ("rescue", "cp bottom/report merged/rescued", "That is an older one"),
    ("rescue", "rm top/report", "top/report was changed in the lower itself"),
    ("rescue", "cp middle/report merged/report; cp middle/report merged/rescued", "Only the rescued file"),
    ("rescue", "echo 'from memory' > merged/rescued", "middle/report and upper/rescued have the same data"),
    ("predict", "touch draft", "It needs 6 lines"),
    ("predict", "echo 1 2 3 > answer", "has 3 numbers, and there are 6 commands"),
    ("predict", "echo 1 2 3 4 5 1kB > answer", "'1kB' in the file answer is not a number of bytes"),
    ("predict", "echo 1 1 200000 0 50000 4 > answer", "Copy-up works on whole files"),
    ("predict", "echo 100001 100002 200000 0 50000 4 > answer", "The file is in the upper already"),
    ("predict", "echo 100001 1 0 0 50000 4 > answer", "Line 3 says 0 bytes for 'chmod 755 merged/tool'"),
    ("predict", "echo 100001 1 200000 3000 50000 4 > answer", "a whiteout has no data"),
    ("predict", "echo 100001 1 200000 0 0 4 > answer", "copied up under its new name"),
    ("predict", "echo 100001 1 200000 0 50000 70004 > answer", "emptied before it is written"),
    ("match-history", "touch draft", "The file answer is still empty"),
    ("match-history", "echo one > answer", "'one' in the file answer is not the number of a row"),
    ("match-history", "echo 7 5 4 2 > answer", "You counted from the newest row"),
    ("match-history", "echo 6 4 3 1 > answer", "in another order: inspect lists the bottom layer first"),
    ("match-history", "echo 1 2 3 4 > answer", "Row 2 only changed the image's config"),
    ("match-history", "echo 1 3 4 > answer", "Row 6 is missing. A SIZE of 0B does not mean"),
    ("find-secret", "touch draft", "The file answer is still empty"),
    ("find-secret", "overlayfs-demo ghosts app:1.0 > answer", "password is the name of the file"),
    ("find-secret", "cat .store/layers/*/motd > answer", "The answer says 'hello'"),
    ("mend-dockerfile", "touch draft", "still has the same instructions"),
    ("mend-dockerfile", "rm Dockerfile", "The file Dockerfile is gone"),
    ("mend-dockerfile", "echo '# better' >> Dockerfile", "still has the same instructions"),
    ("mend-dockerfile", DROP, "Nobody removes the cache now"),
    ("mend-dockerfile", JOIN, "rm fails, and so does the build"),
    ("mend-dockerfile", "echo 'LABEL team=red' >> Dockerfile", "still removed by a step of its own"),
    ("mend-dockerfile", "sed -i '/chmod/d' Dockerfile", "no longer have the mode 600 of motd"),
    ("mend-dockerfile", "sed -i '/make-app/d' Dockerfile", "no longer have the app"),
    ("mend-dockerfile", "sed -i '/CMD/d' Dockerfile", "no longer have the setting"),
    ("mend-dockerfile", f"sed -i 's:make-app:rm -r /cache; make-app:' Dockerfile; {DROP}", "before make-app fills it"),
    ("shrink", "touch draft", "There is no image app:clean yet"),
    ("shrink", "overlayfs-demo tag app:1.0 app:clean", "Layer 2 of app:clean still has the file password"),
    ("shrink", "overlayfs-demo create app:1.0 --name c1; overlayfs-demo commit c1 app:clean", "Layer 2 of app:clean"),
]


def lab(name: str, typed: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
    pipe = subprocess.PIPE
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
    with started(["lab", name, *words], environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        told, complaint = process.communicate(typed, timeout=MINUTE)
    return subprocess.CompletedProcess(process.args, process.returncode, told, complaint)


def in_one_line(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize(("name", "typed"), SOLUTIONS)
def test_what_is_right_solves_it(temporary: Path, name: str, typed: str) -> None:
    if "getfattr" in typed and not shutil.which("getfattr"):
        pytest.skip("needs getfattr")
    done = lab(name, typed)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\nSolved. " in done.stdout


@pytest.mark.parametrize(("name", "typed", "said"), MISTAKES)
def test_what_is_wrong_is_explained(temporary: Path, name: str, typed: str, said: str) -> None:
    done = lab(name, typed)
    assert (done.returncode, done.stderr) == (1, "")
    assert said in in_one_line(done.stdout.partition("\nNot yet. ")[2])
    assert max(map(len, done.stdout.partition("\nNot yet. ")[2].splitlines())) <= WIDTH


READING = """ls -lR . merged upper; cat merged/*; for verb in images ps df layers; do overlayfs-demo $verb; done
for verb in history inspect ghosts analyze; do overlayfs-demo $verb app:1.0; done; overlayfs-demo which merged/motd
"""


@pytest.mark.parametrize("one", LABS, ids=NAMES)
def test_nothing_is_explained_before_anything_is_done(temporary: Path, one: Lab) -> None:
    unmount = "overlayfs-demo umount merged" if one.layers else ""
    done = lab(one.name, f"({READING}) >/dev/null 2>&1\noverlayfs-demo lab --check\n{unmount}\n")
    said = "Not yet. Nothing has changed yet. In the shell of the lab, 'overlayfs-demo lab --hint' says how to begin."
    assert (done.returncode, done.stderr) == (1, "")
    told = in_one_line(done.stdout)
    assert told.count("Not yet.") == told.count(said) == 2


def test_undone_work_is_told_as_nothing_done(temporary: Path) -> None:
    assert "Nothing has changed yet" in lab("whiteout", "rm merged/notes; rm upper/notes").stdout


def test_every_lab_has_a_solution_and_mistakes() -> None:
    assert {name for name, _ in SOLUTIONS} == {name for name, _, _ in MISTAKES} == set(NAMES)


def commands_of(name: str) -> set[str]:
    """The commands that solve a lab, without their redirections."""
    typed = [line for solved, line in SOLUTIONS if solved == name]
    return {part.partition(">")[0].strip() for line in typed for part in re.split(r"&&|\|\||[;|]", line)} - {""}


@pytest.mark.parametrize("one", LABS, ids=NAMES)
def test_hints_begin_with_a_question_and_never_have_the_command_that_solves_it(one: Lab) -> None:
    assert 2 <= len(one.hints) <= 3 and "?" in one.hints[0]
    told_already = in_one_line(one.task)
    secret = {command for command in commands_of(one.name) if command not in told_already}
    assert secret and not [command for command in secret for hint in one.hints if command in in_one_line(hint)]


@pytest.mark.parametrize("one", LABS, ids=NAMES)
def test_each_hint_fits_a_small_terminal(one: Lab) -> None:
    for hint in one.all_hints():
        lines = "".join(text for text, _ in labelled("Hint 1 of 4.", "", hint)).splitlines()
        assert max(map(len, lines)) <= WIDTH and len(lines) <= 8


def test_the_directory_one_names_is_kept(temporary: Path) -> None:
    where = Path(tempfile.mkdtemp())
    try:
        assert lab("whiteout", "rm merged/notes", "--at", where / "new").returncode == 0
        assert sorted(os.listdir(where / "new")) == ["lower", "merged", "upper", "work"]
        assert (where / "new/upper/notes").is_char_device()
        fails(lab("whiteout", "", "--at", where / "new"), "is not empty")
    finally:
        shutil.rmtree(where)


def test_what_the_learner_mounted_is_not_emptied(temporary: Path) -> None:
    where = temporary.parent / "precious"
    where.mkdir()
    (where / "file").write_text("1")
    done = lab("whiteout", f"rm merged/notes; mkdir bound; mount --bind {where} bound")
    assert done.returncode == 1
    assert "bound is still mounted: unmount it, and remove" in done.stderr and done.stderr.count("\n") == 1
    assert (where / "file").read_text() == "1"
    unmount_all(str(temporary))
    for left in temporary.iterdir():
        shutil.rmtree(left)


def test_who_made_a_mistake_may_try_again(temporary: Path) -> None:
    shown = at_terminal(
        "rm -r lower/docs\nexit\ny\nrm -r merged/docs; mkdir merged/docs; echo 3 > merged/docs/three\nexit\n",
        "lab",
        "opaque",
    )
    assert "lower/docs was changed" in in_one_line(shown) and "try again? [Y/n]" in shown
    assert "Solved." in shown and shown.endswith("status 0")


def test_who_gives_up_is_told_so_by_the_status(temporary: Path) -> None:
    assert at_terminal("exit\nn\n", "lab", "whiteout").endswith("status 1")


def test_list_and_wrong_words() -> None:
    assert run("overlayfs-demo", "lab", "--list").stdout.splitlines()[1].split()[:2] == ["2", "whiteout"]
    rows = [json.loads(line) for line in run("overlayfs-demo", "lab", "--list", "--json").stdout.splitlines()]
    assert [row["Name"] for row in rows] == NAMES
    fails(run("overlayfs-demo", "lab"), "which lab?", status=2)
    fails(run("overlayfs-demo", "lab", "none"), "lab --list")
