"""Does every command in the README work as it stands, in its order, and say what the README shows?"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from overlayfs_demo.ui.console import PROGRAM
from tests.conftest import unmount_all, wait_until, why_no_sandbox
from tests.places import BIN, MINUTE, ROOT
from tests.terminal import Terminal, solve_whiteout
from tests.test_documents import verbs

README = (ROOT / "README.md").read_text()

# Why a command is not run here.
NOT_RUN = {
    "sudo scripts/provision --system": "it changes this machine; test_scripts.py runs it in a root of its own",
    "pip install '.[web,browse,registry]'": "it needs PyPI; scripts/provision has installed the same",
    "vagrant up && vagrant ssh": "it needs a hypervisor",
    "overlayfs-demo run --rm IMAGE COMMAND": "the sample image has no programs; cli/test_container_run.py has one",
    "scripts/check": ".ci/run runs it before the tests",
    "scripts/test": "it would run this test again",
    "scripts/benchmark": "it measures for minutes; test_benchmark.py runs a part",
    "scripts/benchmark-load": "it measures for minutes, and needs podman",
    "scripts/soak": "it goes on for an hour; test_soak.py runs a part",
    "scripts/fuzz": "it goes on for minutes; differential/test_differential.py runs a part",
    "scripts/pictures": "it needs a browser, and writes into the project",
}
# The programs besides its own that a command needs, if this machine may lack them.
NEEDS = {"overlayfs-demo manual | man -l -": "man"}
# What a command that works does not say on stderr.
COMPLAINT = re.compile(r"^(?:usage: |(?:overlayfs-demo|build-layers)\b(?!: note: )).*", re.MULTILINE)


@dataclass(frozen=True)
class Typed:
    """A command, and the output that is shown below it; `shown` is None if the README shows only the command."""

    command: str
    shown: str | None


def typed(text: str) -> list[Typed]:
    """The commands of all code blocks: lines that are indented, and in fenced blocks those behind `$ `."""
    found: list[Typed] = []
    for fenced, indented in re.findall(r"^```\w*\n(.*?)^```$|^ {4}(\S[^\n]*)$", text, re.DOTALL | re.MULTILINE):
        for line in [indented] if indented else []:
            found.append(Typed(re.split(r"\s+# ", line)[0].strip(), None))
        # The tour shows commands of its own, and has the rest of its block.
        prompts = 1 if fenced.startswith("$ overlayfs-demo tour ") else 0
        for part in re.split(r"^\$ ", fenced, maxsplit=prompts, flags=re.MULTILINE)[1:]:
            command, _, shown = part.partition("\n")
            found.append(Typed(command, shown.strip("\n")))
    return found


def test_commands_are_found_in_both_kinds_of_blocks() -> None:
    fenced = "```\n$ three '# 3'\nshown\n$ four\n```\n\n```\nonly shown\n```\n"
    text = f"Text `not this`:\n\n    one   # about it\n    two\n\n{fenced}"
    shown = [("one", None), ("two", None), ("three '# 3'", "shown"), ("four", "")]
    assert [(found.command, found.shown) for found in typed(text)] == shown


def test_what_is_not_run_or_run_otherwise_is_in_the_readme() -> None:
    assert {*NOT_RUN, *NEEDS, *AT_TERMINAL} - {found.command for found in typed(README)} == set()


def test_verbs_that_are_named_beside_a_command_exist() -> None:
    named = [word for also in re.findall(r"\balso: ([^;\n]+)", README) for word in re.findall(r"([a-z]+)(?:,|$)", also)]
    assert {"import", "ps", "rmi", "exec", "export", "cp"} <= set(named)
    assert set(named) - set(verbs()) == set()


# --- commands that are used with keys ----------------------------------------------------------------


def _tour(screen: Terminal) -> None:
    screen.shows("Enter: go on")
    screen.press("\r")
    screen.shows("Enter: (more|next)")
    screen.press("q")
    screen.ends(0)


def _lecture(screen: Terminal) -> None:
    screen.shows(r"lecture\$[\s\S]*layer 2: app|layer 2: app[\s\S]*lecture\$")
    screen.press("exit\r")
    screen.ends(0)


def _watch(screen: Terminal) -> None:
    screen.shows("layer 1")
    screen.press("q")
    screen.ends(0)


def _browse(screen: Terminal) -> None:
    screen.shows("config.ini|etc")
    screen.press("q")
    screen.ends(0)


def _serve(screen: Terminal) -> None:
    screen.shows(r"http://\S+\s")
    address = re.search(r"http://\S+", screen.text)
    assert address
    # The address has a key, and is answered with a cookie.
    browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
    with browser.open(address[0], timeout=MINUTE) as page:
        assert b"overlayfs-demo" in page.read()
    screen.press("\x03")
    screen.ends(130)


AT_TERMINAL: dict[str, Callable[[Terminal], None]] = {
    "overlayfs-demo tour": _tour,
    "overlayfs-demo lab whiteout": solve_whiteout,
    "overlayfs-demo lecture": _lecture,
    "overlayfs-demo watch view": _watch,
    "overlayfs-demo watch c1": _watch,
    "overlayfs-demo browse app:1.0": _browse,
    "overlayfs-demo serve view": _serve,
}


# --- all commands, in their order --------------------------------------------------------------------


@pytest.fixture
def me(temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory of a reader who has a home, a store and commands of their own."""
    if problem := why_no_sandbox():
        pytest.skip(problem)
    if not shutil.which("tmux"):
        pytest.skip("needs tmux")
    home = tmp_path / "me"
    home.mkdir()
    settings = {
        "HOME": str(home),
        "OVERLAYFS_DEMO_STORE": str(tmp_path / "store"),
        "OVERLAYFS_DEMO_BIN": str(tmp_path / "commands"),
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "LC_ALL": "C.UTF-8",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(home)
    yield home
    unmount_all(str(tmp_path))


def in_any_directory(text: str, place: Path) -> str:
    """What ls(1) and build-layers print, without times, sizes of directories and the place."""
    text = text.replace(str(place), "/home/me")
    text = re.sub(r"[A-Z][a-z]{2} +\d+ +(\d\d:\d\d|\d{4})", "DATE", text)
    return re.sub(r"^(total|d\S+ \d+ \w+ \w+) +\d+", r"\1 N", text, flags=re.MULTILINE)


def bash(command: str) -> subprocess.CompletedProcess[str]:
    """Run it as somebody in the working directory does; what begins with scripts/ is typed in the project's own."""
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        cwd=ROOT if command.startswith("scripts/") else None,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=5 * MINUTE,
        check=False,
    )


def follow(found: Typed, place: Path) -> None:
    """Run a command, and compare what it says with what is shown."""
    if found.command in AT_TERMINAL:
        program, *words = shlex.split(found.command)
        assert program == PROGRAM
        with Terminal(*words) as screen:
            AT_TERMINAL[found.command](screen)
        return
    done = bash(found.command)
    assert done.returncode == 0, (found.command, done.stdout, done.stderr)
    if found.shown is None:
        assert COMPLAINT.findall(done.stderr) == [], found.command
        return
    # Notes on stderr are shown only where there is nothing else.
    said = (done.stdout or done.stderr).strip("\n")
    assert in_any_directory(said, place) == in_any_directory(found.shown, place), found.command


def test_every_command_works_as_it_stands_and_says_what_is_shown(me: Path) -> None:
    for found in typed(README):
        needed = NEEDS.get(found.command)
        if found.command not in NOT_RUN and (needed is None or shutil.which(needed)):
            print(f"$ {found.command}")
            follow(found, me)


# --- what the mount reports meanwhile ----------------------------------------------------------------


def without_pids(text: str) -> str:
    return re.sub(r"^(\w+)\[\d+\]", r"\1", text, flags=re.MULTILINE)


def test_the_mount_reports_the_first_look_as_is_shown(me: Path) -> None:
    look = README.partition("## First look")[2].partition("\n## ")[0]
    told = re.findall(r"```\n(.*?)```", look, re.DOTALL)[-1].strip()
    commands = [found.command for found in typed(look)]
    mount = next(command for command in commands if " mount " in command)
    for command in commands[: commands.index(mount)]:
        assert bash(command).returncode == 0, command
    with (
        (me / "told").open("wb") as out,
        subprocess.Popen(
            ["bash", "-c", "exec " + mount.replace(" mount ", " mount --foreground --trace ")], stdout=out
        ) as daemon,
    ):
        try:
            wait_until((me / "view/etc").exists, "the view")
            for command in commands[commands.index(mount) + 1 :]:
                assert bash(command).returncode == 0, command
        finally:
            bash("overlayfs-demo umount view")
            daemon.wait(MINUTE)
    assert without_pids((me / "told").read_text().strip()) == without_pids(told)
