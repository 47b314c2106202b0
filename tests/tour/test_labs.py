"""Is a lab solved by what is right, and is what is wrong explained?"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from overlayfs_demo.tour.labs import LABS
from overlayfs_demo.tour.picture import WIDTH
from tests.command import started
from tests.conftest import unmount_all
from tests.places import BIN, MINUTE, at_terminal, fails, run

NAMES = [one.name for one in LABS]
FLAT = "overlayfs-demo create app:1.0 --name c1 && overlayfs-demo export c1 -o flat.tar"
SOLUTIONS = [
    ("copy-up", "echo changed > merged/motd"),
    ("copy-up", "echo 'one line more' >> merged/motd; cat merged/*"),
    ("whiteout", "rm merged/notes"),
    ("opaque", "rm -r merged/docs; mkdir merged/docs; echo 3 > merged/docs/three"),
    ("undelete", "rm upper/report"),
    ("undelete", "overlayfs-demo umount merged; rm upper/report"),
    ("smallest-upper", "chmod 755 merged/tools/run.sh"),
    ("smallest-upper", "chmod -R +x merged/tools; rm upper/tools/data upper/tools/library"),
    ("rename", "mv merged/docs merged/papers; getfattr --only-values -m redirect upper/papers > answer"),
    ("no-trace", "rm upper/motd"),
    ("no-trace", "overlayfs-demo umount merged; rm -r upper"),
    ("hard-link", "echo more >> merged/one"),
    ("hard-link", "echo more >> merged/two"),
    ("shrink", f"{FLAT} && overlayfs-demo import flat.tar app:clean"),
]
MISTAKES = [
    ("copy-up", "cat merged/motd", "upper/motd does not exist"),
    ("copy-up", "echo changed > lower/motd", "lower/motd was changed in the lower itself"),
    ("copy-up", "touch merged/motd", "have the same data"),
    ("copy-up", "echo changed > merged/motd; cp merged/motd merged/motd~", "also contains motd~ (8B)"),
    ("copy-up", "rm merged/motd", "You deleted motd"),
    ("copy-up", "ln -sf notes merged/motd", "upper/motd is a file"),
    ("whiteout", "true", "upper/notes does not exist"),
    ("whiteout", "rm lower/notes", "lower has been restored"),
    ("whiteout", ": > merged/notes", "An empty file is still a file"),
    ("whiteout", "mv merged/notes merged/other", "a rename makes a copy"),
    ("whiteout", "touch upper/.wh.notes", "a whiteout is a character device 0/0"),
    ("opaque", "rm -rf merged/docs", "not created again yet"),
    ("opaque", "rm merged/docs/*; echo 3 > merged/docs/three", "whiteouts for one, two"),
    ("opaque", "rm -r merged/docs; mkdir merged/docs", "upper/docs/three does not exist"),
    ("opaque", "rm -r lower/docs; mkdir lower/docs", "was changed in the lower itself"),
    ("undelete", "true", "still hides the report"),
    ("undelete", "cp lower/report merged/report", "its bytes stored a second time"),
    ("smallest-upper", "true", "upper/tools/run.sh does not exist"),
    ("smallest-upper", "chmod -R 755 merged/tools", "tools/data, tools/library (2MB)"),
    ("smallest-upper", "touch merged/tools/run.sh", "upper/tools/run.sh is executable"),
    ("rename", "cp -r merged/docs merged/papers; rm -r merged/docs", "upper/papers contains copies"),
    ("rename", "mv merged/docs merged/papers", "The file answer is still empty"),
    ("rename", "mv merged/docs merged/papers; echo papers > answer", "says 'papers'"),
    ("no-trace", "true", "The copy is still there"),
    ("no-trace", "rm merged/motd", "also hides the file of the lower"),
    ("no-trace", "echo hello > merged/motd", "The text is right again, but"),
    ("whiteout", "overlayfs-demo umount merged; rm -r upper", "The directory upper was removed"),
    ("hard-link", "true", "The upper is empty"),
    ("hard-link", "sed -i s/first/second/ merged/one", "separates it from its other names"),
    ("hard-link", "rm merged/two", "two has been deleted"),
    ("hard-link", "chmod 600 merged/one", "one line more than before"),
    ("shrink", "true", "There is no image app:clean yet"),
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


def test_every_lab_has_a_solution_and_mistakes() -> None:
    assert {name for name, _ in SOLUTIONS} == {name for name, _, _ in MISTAKES} == set(NAMES)


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
